"""Is a saved model the one that was saved? Its tensors and its logits, compared after loading."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import CheckpointError
from vtc.models import family_of
from vtc.models.inspection import unwrapped

CLOSE = 0.05  # of the largest logit, for a format whose reader rounds elsewhere; wrong weights are off by about 1


@torch.no_grad()
def check_copy(model: nn.Module, folder: Path, load: Callable[..., nn.Module], format: str = "vtc") -> None:
    """``load`` what ``folder`` holds and compare it with ``model``: every tensor bit by bit and the logits of a short
    text, equal; in another format than vtc's the logits alone, close. Raises ``CheckpointError`` for a difference."""
    plain: Any = unwrapped(model)
    device = next(plain.parameters()).device
    options = {"dtype": plain.dtype, "attn_implementation": attention_of(plain.config)}
    try:
        copy: Any = unwrapped(load(folder, **options)).to(device)
    except ImportError as error:
        raise CheckpointError(
            f"this format cannot be loaded here ({error}); pip install 'vtc-vlm[ct]', or save without verify"
        ) from error
    if format == "vtc":
        for name, tensor in differing(plain.state_dict(), copy.state_dict()):
            raise CheckpointError(f"{folder}: {name} {tensor}; nothing was published, report this")
    ids = text_for(plain, device)
    with evaluating(plain), evaluating(copy):
        want, got = plain(input_ids=ids).logits.float(), copy(input_ids=ids).logits.float()
    off = float((want - got).abs().max() / want.abs().max().clamp_min(1e-12))
    if not (torch.equal(want, got) or format != "vtc" and off <= CLOSE):
        raise CheckpointError(
            f"{folder}: the loaded model's logits are off by {off:.2g} of the largest (allowed: "
            f"{0 if format == 'vtc' else CLOSE:.2g}); nothing was published, report this"
        )


def attention_of(config: Any) -> dict[str, str]:
    """The attention implementation of the model and of each part, as ``from_pretrained`` takes them."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    found = {"": config, **parts}
    return {name: part._attn_implementation for name, part in found.items() if part is not None}


def differing(want: dict[str, Tensor], got: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Names of tensors that are not the same bits in both, and how they differ."""
    found = [(name, "is in one of the two only") for name in sorted(set(want) ^ set(got))]
    for name in sorted(set(want) & set(got)):
        if not same_bits(want[name], got[name]):
            found.append((name, "came back with other values"))
    return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in shape, dtype and every bit, those of NaNs included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, other)))


def text_for(model: nn.Module, device: torch.device, length: int = 16) -> Tensor:
    """``[1, length]``: tokens that are no placeholders of pictures, the same each time."""
    family = family_of(model)
    size = family.decoder.get_input_embeddings().num_embeddings
    words = [n for n in range(min(size, 1000)) if n not in set(family.token_ids.values())]
    at = torch.linspace(0, len(words) - 1, length).long().tolist()
    return torch.tensor([[words[n] for n in at]], device=device)


@contextmanager
def evaluating(model: nn.Module):
    """Without dropout, and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
