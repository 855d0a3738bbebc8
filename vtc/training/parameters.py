"""What is trained: the projector, the patch's own parameters, low-rank adapters of the decoder, some layers, or all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import UnsupportedModel, VTCError
from vtc.models import family_of
from vtc.models.base import Family
from vtc.models.inspection import unwrapped
from vtc.training.losses import answer_loss, at_labels

KINDS = ("projector", "compressor", "lora", "all", "layers:auto")
PROJECTORS = ("multi_modal_projector", "connector", "aligner", "merger", "deepstack_merger_list", "image_newline")
LEARNED = "vtc_learned."
SHARE = 0.5  # of the squared gradient that the layers of layers:auto hold together


def choose(model: nn.Module, train: str, rank: int = 16, layers: Iterable[int] = ()) -> nn.Module:
    """Let only what ``train`` names learn, one of ``KINDS``; returns the model, with ``lora`` as a ``PeftModel``.

    rank: of the adapters; layers: those of ``layers:auto``, from ``essential``. What the patch's method learns is
    trained by all kinds but ``projector``. Raises ``VTCError`` for another name, ``UnsupportedModel`` where there is
    nothing of that kind.
    """
    if train not in KINDS:
        raise VTCError(f"--train {train!r} is none of {', '.join(KINDS)}")
    base = unwrapped(model)
    family = family_of(base)
    own = [p for name, p in base.named_parameters() if name.startswith(LEARNED)]
    if train == "compressor" and not own:
        raise UnsupportedModel("this patch has no parameters of its own; use a learned method, such as perceiver")
    base.requires_grad_(train == "all")
    if train == "lora":
        model = lora(model, family, rank)
    learns = projector(base) if train == "projector" else own
    if train == "layers:auto":
        learns = learns + [p for n in layers for p in family.layers[n].parameters() if p.is_floating_point()]
    for parameter in learns:
        parameter.requires_grad_(True)
    return model


def projector(model: nn.Module) -> list[nn.Parameter]:
    """The parameters between vision tower and decoder. Raises ``UnsupportedModel`` where they were not found."""
    inner = {id(p) for p in family_of(model).decoder.parameters()}
    found = [
        p
        for name, p in model.named_parameters()
        if set(name.split(".")) & set(PROJECTORS) and id(p) not in inner and p.is_floating_point()
    ]
    if not found:
        raise UnsupportedModel(
            f"{type(model).__name__}: its projector was not found (none of {', '.join(PROJECTORS)}); use lora or all"
        )
    return found


def lora(model: nn.Module, family: Family, rank: int) -> nn.Module:
    """The model with low-rank adapters at every linear layer of its decoder layers, and nowhere else."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise VTCError("lora needs the library peft; pip install 'vtc-vlm[train]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=lora_targets(unwrapped(model), family))
    return get_peft_model(model, config)  # type: ignore[arg-type]


def lora_targets(model: nn.Module, family: Family) -> str:
    """A pattern for the linear layers of the decoder layers. Names alone, such as q_proj, are in towers, too."""
    prefix = next(name for name, module in model.named_modules() if module is family.layers)
    linear = sorted({n for layer in family.layers for n, m in layer.named_modules() if isinstance(m, nn.Linear)})
    if not linear:
        raise UnsupportedModel(f"{type(model).__name__} has no plain linear layers in its decoder; use projector")
    return rf"{re.escape(prefix)}\.\d+\.({'|'.join(map(re.escape, linear))})"


def essential(squares: Iterable[float], share: float = SHARE) -> list[int]:
    """The fewest layers that hold ``share`` of the squared gradients ``squares[layer]``, in order."""
    squares = list(squares)
    chosen: list[int] = []
    for layer in sorted(range(len(squares)), key=lambda n: (-squares[n], n)):
        if sum(squares[n] for n in chosen) >= share * sum(squares):
            break
        chosen.append(layer)
    return sorted(chosen)


def sensitivities(model: nn.Module, batches: Iterable[dict[str, Any]]) -> list[float]:
    """By decoder layer, the squared gradient of the answers' loss through the patch, divided by the number of its
    parameters: a sensitivity pass of one backward a batch, and no step.

    Edge-LLM (arXiv 2406.15758) measures what pruning or rounding a layer costs; here a layer is essential where the
    loss under the patch asks it to change most.
    """
    family = family_of(unwrapped(model))
    wanted = [[p for p in layer.parameters() if p.is_floating_point()] for layer in family.layers]
    learns = [(p, p.requires_grad) for p in model.parameters()]
    total = [0.0] * len(wanted)
    try:
        model.requires_grad_(False)
        for parameter in sum(wanted, []):
            parameter.requires_grad_(True)
        for batch in batches:
            batch = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
            labels = batch.pop("labels")
            scores, gold = at_labels(model(**batch, use_cache=False).logits, labels)
            (answer_loss(scores, gold) / max(1, len(gold))).backward()
            for layer, parameters in enumerate(wanted):
                grads = [p.grad for p in parameters if p.grad is not None]
                squares = sum(float(grad.float().norm()) ** 2 for grad in grads)
                total[layer] += squares / sum(p.numel() for p in parameters)
            model.zero_grad(set_to_none=True)
    finally:
        for parameter, learned in learns:
            parameter.requires_grad_(learned)
    return total


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def set_trained(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Put ``tensors`` where they were trained. Raises ``VTCError`` when names or shapes are others."""
    there = trained(model)
    lost, new = sorted(set(there) - set(tensors)), sorted(set(tensors) - set(there))
    other = sorted(n for n in set(there) & set(tensors) if there[n].shape != tensors[n].shape)
    if lost or new or other:
        raise VTCError(
            f"{where}: it lacks {lost[:3]}, brings {new[:3]}, and {other[:3]} have other shapes; "
            "the checkpoint is of another model or method"
        )
    for name, parameter in there.items():
        parameter.copy_(tensors[name])
