"""The contract between a method and the engine, checked: what ``reduce`` must return."""

from __future__ import annotations

import torch

from vtc.errors import VTCError
from vtc.tokens import Reduction, VisionTokens


def check_reduction(
    name: str, reduction: Reduction, tokens: VisionTokens, keep: list[int], values: bool = True
) -> None:
    """Raise ``VTCError`` where ``reduction`` is not one of ``tokens`` to exactly ``keep[i]`` slots a picture.

    values: look at the numbers, too, and not at types and shapes alone (a device is waited for).
    """
    wrong = _of_shape(reduction, tokens, keep) or (_of_values(reduction, tokens, keep) if values else None)
    if wrong:
        raise VTCError(
            f"{name}.reduce returned {wrong}; it must return a vtc.Reduction of slot [I, N] and anchor [I, K], int64, "
            "with exactly keep[i] anchors for picture i (different tokens of it, ascending, then -1), each in the slot "
            "of its own place, and all other tokens in one of these slots or in -1"
        )


def _of_shape(reduction: Reduction, tokens: VisionTokens, keep: list[int]) -> str | None:
    if not isinstance(reduction, Reduction):
        return f"a {type(reduction).__name__}"
    for part, tensor, shape in (
        ("slot", reduction.slot, tuple(tokens.row.shape)),
        ("anchor", reduction.anchor, (len(keep), max(keep))),
    ):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64:
            return f"{part} as {getattr(tensor, 'dtype', type(tensor).__name__)}"
        if tensor.shape != shape:
            return f"{part} {list(tensor.shape)} where {list(shape)} was asked (keep = {keep})"
    weight = reduction.weight
    if weight is not None and (not isinstance(weight, torch.Tensor) or not weight.is_floating_point()):
        return f"weight as {getattr(weight, 'dtype', type(weight).__name__)}"
    if weight is not None and weight.shape != tokens.row.shape:
        return f"weight {list(weight.shape)} for {list(tokens.row.shape)} tokens"
    return None


def _of_values(reduction: Reduction, tokens: VisionTokens, keep: list[int]) -> str | None:
    slot, anchor, valid = reduction.slot.cpu(), reduction.anchor.cpu(), tokens.valid.cpu()
    if bool((slot[~valid] != -1).any()):
        return "a slot for padding"
    if reduction.weight is not None and not bool(reduction.weight.isfinite().all()):
        return "a weight that is not finite"
    for i, (k, count) in enumerate(zip(keep, valid.sum(dim=1).tolist(), strict=True)):
        own = anchor[i, :k]
        given = int((anchor[i] >= 0).sum())
        if given != k or bool((own < 0).any()):
            return f"{given} anchors for picture {i}, which keeps {k}"
        if bool((own >= count).any()) or bool((own.diff() <= 0).any()):
            return f"anchors {own.tolist()[:8]} for picture {i}, of {count} tokens"
        if bool((slot[i] < -1).any()) or bool((slot[i] >= k).any()):
            return f"slots from {int(slot[i].min())} to {int(slot[i].max())} for picture {i}, which has {k}"
        if slot[i, own].tolist() != list(range(k)):
            return f"anchors of picture {i} in slots that are not theirs"
    for source, more, weight in reduction.also:
        into = valid.gather(1, source.cpu()) | (more.cpu() < 0)
        if not bool(into.all()) or bool((more.cpu().amax(1) >= torch.tensor(keep)).any()):
            return "further tokens (also) that are padding or in no slot there is"
        if not bool(weight[more >= 0].isfinite().all()):
            return "further tokens (also) of a weight that is not finite"
    return None
