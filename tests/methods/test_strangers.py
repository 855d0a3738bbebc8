"""Methods that break the contract are told so in one sentence, before anything is reduced."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import vtc
from tests import zoo
from tests.support import logits
from vtc.errors import VTCError
from vtc.methods import Method
from vtc.tokens import Reduction, top


def keeping(count):
    """Keeps the first tokens, ``count(keep)`` of each picture."""
    return lambda tokens, keep: Reduction.top(-tokens.row.float(), count(keep), tokens)


def changed(change):
    """What keeps the first tokens, with parts of it changed."""

    def reduce(tokens, keep):
        right = Reduction.top(-tokens.row.float(), keep, tokens)
        return replace(right, **change(right))

    return reduce


def unpadded(tokens, keep):
    """Each picture as many as the one that keeps the most."""
    return Reduction.top(-tokens.row.float(), [max(keep)] * len(keep), tokens)


BROKEN = {  # what reduce does, and what the error says of it
    "too many slots": (keeping(lambda keep: [k + 1 for k in keep]), r"anchor \[2, 15\] where \[2, 14\]"),
    "too few slots": (keeping(lambda keep: [max(1, k - 1) for k in keep]), r"anchor \[2, 13\]"),
    "one picture's too few": (keeping(lambda keep: [keep[0] - 1, *keep[1:]]), "13 anchors for picture 0|anchor"),
    "no slot": (keeping(lambda keep: [0 for _ in keep]), r"anchor \[2, 0\]"),
    "a bare tensor": (lambda tokens, keep: top(-tokens.row.float(), keep, tokens.valid), "a Tensor"),
    "nothing": (lambda tokens, keep: None, "a NoneType"),
    "a pair": (lambda tokens, keep: (1, 2), "a tuple"),
    "lists": (changed(lambda r: {"slot": r.slot.tolist()}), "slot as list"),
    "floats": (changed(lambda r: {"anchor": r.anchor.float()}), "anchor as torch.float32"),
    "one picture": (changed(lambda r: {"slot": r.slot[:1]}), r"slot \[1, 36\]"),
    "a token twice": (changed(lambda r: {"anchor": r.anchor.clamp(max=5)}), "anchors .* for picture 0"),
    "descending": (changed(lambda r: {"anchor": r.anchor.flip(1)}), "anchors .* for picture 0"),
    "beyond the picture": (changed(lambda r: {"anchor": r.anchor + 30}), "anchors .* of 36 tokens"),
    "slots that are not there": (changed(lambda r: {"slot": r.slot.clamp(min=99)}), "slots from 99"),
    "anchors elsewhere": (changed(lambda r: {"slot": torch.zeros_like(r.slot)}), "in slots that are not theirs"),
    "weights that are no numbers": (changed(lambda r: {"weight": torch.full(r.slot.shape, torch.nan)}), "not finite"),
    "a list of weights": (changed(lambda r: {"weight": [1.0]}), "weight as list"),
    "weights of another shape": (changed(lambda r: {"weight": torch.ones(2, 3)}), r"weight \[2, 3\]"),
}


@dataclass(frozen=True)
class Stranger(Method):
    """Somebody's own."""

    name = "stranger"

    how: str = "too many slots"

    def reduce(self, stage, tokens, signals, keep):
        return BROKEN[self.how][0](tokens, keep)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("how", BROKEN)
def test_what_breaks_the_contract_is_told(how, share, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 2)
    plain = logits(model, prompt)
    vtc.patch(model, Stranger(how, share=share), budget=14)
    with pytest.raises(VTCError, match=rf"^stranger\.reduce returned .*({BROKEN[how][1]}).*; it must return a vtc"):
        logits(model, prompt)
    vtc.unpatch(model)
    assert torch.equal(logits(model, prompt), plain)


def test_a_picture_that_keeps_fewer_is_padded(model_of):
    """Of pictures of two sizes each has its own number of slots."""
    model = model_of("qwen2_5_vl")
    BROKEN["unpadded"] = (unpadded, "")
    vtc.patch(model, Stranger("unpadded"), budget=0.5)
    with pytest.raises(VTCError, match="anchors for picture 1, which keeps"):
        logits(model, zoo.prompt(model, 2))
    del BROKEN["unpadded"]
