"""Pictures as an engine wants them that takes embeddings: reduced rows, where they stood, what they weigh."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.stages import merge_rows
from vtc.engine.state import Cut, Prefill
from vtc.errors import UnsupportedModel, VTCError
from vtc.files.atomic import write_atomic
from vtc.methods._spelling import spell
from vtc.patching.api import patch_of
from vtc.patching.memory_file import weights_hash
from vtc.patching.patch import Patch
from vtc.version import __version__


@dataclass(frozen=True)
class EncodedPicture:
    """K rows of the decoder's input, instead of ``tokens`` placeholders one behind the other: a picture, or one of its
    tiles or rows where a prompt has words between these (K may be 0 then).

    embeddings ``[K, D]``; positions ``[K, A]``: the position ids of each row less those of the picture's first
    placeholder (A is 1, or 3 for M-RoPE's t, y, x); sizes ``[K]``: what a row weighs in every softmax, 1 but with
    ``share``; span: by how much the position of what stands behind is past the first placeholder's.
    """

    embeddings: Tensor
    positions: Tensor
    sizes: Tensor
    tokens: int
    span: int


@dataclass(frozen=True)
class EncodedPictures:
    """What ``vtc.encode`` returns: ``pictures`` in the order of their prompts."""

    pictures: list[EncodedPicture]
    about: dict[str, str]  # method, budget, a hash of the model's weights, vtc's version

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file: ``N.embeddings``, ``N.positions`` and ``N.sizes`` of picture N, and under ``vtc``
        in its metadata, as JSON, ``about`` with the ``tokens`` and ``span`` of every picture."""
        from safetensors.torch import save_file

        held = {
            f"{n}.{name}": getattr(one, name).cpu().contiguous()
            for n, one in enumerate(self.pictures)
            for name in ("embeddings", "positions", "sizes")
        }
        said = {**self.about, "pictures": [{"tokens": one.tokens, "span": one.span} for one in self.pictures]}
        file = Path(path)
        write_atomic(file, lambda temporary: save_file(held, temporary, metadata={"vtc": json.dumps(said)}))
        return file


@torch.no_grad()
def encode(model: nn.Module, inputs: Mapping[str, Any] | None = None, **more: Any) -> EncodedPictures:
    """Reduce pictures for another engine. The model is patched with a method that cuts at the decoder's input by the
    picture alone, and runs once.

    inputs: what the processor gave for prompts with pictures (or the same as keywords); the words are not looked at.
    Raises ``VTCError`` for a model without such a patch, ``UnsupportedModel`` where more than these rows would be
    needed (DeepStack, states that are changed between the embeddings and the first layer), ``ValueError`` without a
    picture.
    """
    patch = checked(model)
    seen: dict[str, Any] = {}
    hooks = [
        patch.family.decoder.register_forward_pre_hook(lambda _, a, kw: seen.update(kw), with_kwargs=True),
        patch.family.layers[0].register_forward_pre_hook(
            lambda _, a, kw: seen.update(states=a[0] if a else kw["hidden_states"]), with_kwargs=True
        ),
    ]
    engine = patch.engine
    try:
        engine.bypass = False  # also where every token stays
        model(**{**(inputs or {}), **more, "use_cache": False})
        passed = engine.current
    finally:
        engine.bypass = True
        for hook in hooks:
            hook.remove()
    if passed is None or not passed.cuts:
        raise ValueError("the prompts have no picture; give what the processor made of pictures and their prompts")
    if not torch.equal(seen["states"], seen["inputs_embeds"]):
        raise UnsupportedModel(
            f"{type(patch.model).__name__} changes its embeddings before the first decoder layer, so rows taken there "
            "are none that another engine could be given"
        )
    about = {"method": spell(patch.method), "budget": str(patch.budget), "model": weights_hash(patch.model)}
    places = positions_of(seen.get("position_ids"), passed)
    return EncodedPictures(pictures_of(passed, seen["states"], places), {**about, "vtc": __version__})


def checked(model: nn.Module) -> Patch:
    """Raises ``VTCError`` for a model whose pictures are not reduced once and for all before its first layer."""
    patch = patch_of(model)
    if patch is None or not isinstance(patch, Patch):
        raise VTCError("this model is not patched; call vtc.patch(model, 'divprune', budget=...) first")
    method = patch.method
    stages, name = method.stages(), spell(method)
    inside = len(stages) > 1 or stages[0].layer != 0 or method.freezes or method.rest
    if inside or method.reduces_keys or method.skips_layers:
        raise VTCError(
            f"{name} works inside the decoder, and rows handed to another engine are all that it gets; patch with a "
            "method that cuts at the decoder's input, such as divprune"
        )
    if asking := [signal for signal in method.signals(0) if signal.asks]:
        raise VTCError(
            f"{name} looks at the question ({asking[0].words()}), so a picture has no rows without one; patch with a "
            "method that does not, such as divprune"
        )
    if patch.family.deepstack:
        raise UnsupportedModel(
            f"{type(patch.model).__name__} adds features of its tower after decoder layers, too (DeepStack), and rows "
            "at the decoder's input do not hold them"
        )
    return patch


def positions_of(given: Any, passed: Prefill) -> Tensor:
    """``[A, B, L]``: the position ids of the prompts, A = 3 for M-RoPE, else 1."""
    if given is None:  # the text model counts itself
        return torch.arange(passed.length).expand(1, passed.batch, -1)
    ids = given if given.dim() == 3 else given[None]
    return ids[-3:].expand(-1, passed.batch, -1).cpu()  # the first of four is the text's, for masks


def pictures_of(passed: Prefill, states: Tensor, places: Tensor) -> list[EncodedPicture]:
    cut: Cut = passed.cuts[0]
    layout, rows = passed.layout, cut.rows
    values = merge_rows(states, cut)
    sizes = torch.ones_like(rows) if cut.log_size is None else cut.log_size.exp().round().long()
    return [
        picture_of(values[prompt], rows[prompt], sizes[prompt], places[:, prompt], layout.text[prompt].cpu(), run)
        for n, prompt in enumerate(layout.prompts)
        for run in runs_of(layout.row[n, : layout.count[n]], layout.newline_row[n, : layout.newlines[n]])
    ]


def runs_of(scored: Tensor, newlines: Tensor) -> list[Tensor]:
    """A picture's rows of its prompt, parted where others stand between."""
    own = torch.cat([scored, newlines]).sort().values.cpu()
    return list(own.tensor_split((own.diff() > 1).nonzero()[:, 0] + 1))


def picture_of(
    values: Tensor, rows: Tensor, sizes: Tensor, places: Tensor, text: Tensor, run: Tensor
) -> EncodedPicture:
    """Of one prompt: values ``[n, D]`` of its ``rows [n]``, the ``places [A, L]`` of all, which are ``text [L]``."""
    kept = torch.isin(rows, run.to(rows.device))
    first, at = places[:, run[0]], rows[kept].cpu()
    positions = (places[:, at] - first[:, None]).T.contiguous()
    end = int(run[-1]) + 1  # models differ in where text goes on behind a video
    followed = end < len(text) and bool(text[end])
    behind = places[:, end].amin() if followed else places[:, run].amax() + 1
    span = int(behind - first.amin())
    return EncodedPicture(values[kept], positions, sizes[kept], len(run), span)
