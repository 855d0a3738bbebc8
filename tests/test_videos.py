"""Videos through whole models: what a method sees of them, and where the kept tokens stand afterwards."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.support import engine, logits
from vtc.models import family_of

METHODS = ("evs", "dycoke", "vidcom2")
FRAMES = {name: zoo.FRAMES // 2 if name in zoo.QWEN else zoo.FRAMES for name in zoo.VIDEOS}


def rotations(model, prompt: dict) -> list[torch.Tensor]:
    """What the second decoder layer's attention turns queries and keys by: cosines and sines."""
    seen: list[torch.Tensor] = []

    def note(module, args, kwargs):
        seen.extend(kwargs["position_embeddings"])

    handle = family_of(model).decoder_attention(1).register_forward_pre_hook(note, with_kwargs=True)
    logits(model, prompt)
    handle.remove()
    return seen


@pytest.mark.parametrize("family", zoo.VIDEOS)
@pytest.mark.parametrize("method", METHODS)
def test_frames_come_as_t_and_positions_stay_the_original_ones(family, method, model_of):
    model = model_of(family)
    prompt = zoo.video_prompt(model)
    plain = rotations(model, prompt)
    vtc.patch(model, method, budget=0.4)
    ours = rotations(model, prompt)
    tokens, rows = engine(model).current.cuts[0].tokens, engine(model).current.cuts[0].rows
    placed = tokens.grid[0, tokens.grid[0, :, 0] >= 0, 0]
    assert placed.unique().tolist() == list(range(FRAMES[family]))
    assert len(set(placed.bincount().tolist())) == 1, "every frame has as many tokens"
    (picture,) = vtc.report(model).pictures
    assert picture.average == int(0.4 * picture.tokens_in)
    for got, want in zip(ours, plain, strict=True):
        assert torch.equal(got, want[..., rows[0], :])


@pytest.mark.parametrize("method", METHODS)
def test_a_video_beside_a_picture_is_reduced_as_alone(method, model_of):
    model = model_of("qwen2_5_vl")
    video, picture = zoo.video_prompt(model), zoo.prompt(model, 1, seed=3)
    vtc.patch(model, method, budget=0.4)
    alone = []
    for prompt in (video, picture):
        logits(model, prompt)
        alone += [p.slot for p in vtc.report(model).pictures]
    logits(model, zoo.batch([video, picture]))
    assert [p.slot for p in vtc.report(model).pictures] == alone
