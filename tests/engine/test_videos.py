"""Videos through whole models: what a method sees of them, and where the kept tokens stand afterwards."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.reference import before_norm, cuts_of, dropped_rows, masked, merged_input
from tests.support import engine, logits
from tests.tolerances import assert_close
from vtc.models import family_of

METHODS = ("evs", "dycoke", "vidcom2", "fastvid", "holitom", "prunevid")
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


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_a_token_merged_into_several_slots_counts_in_each(family, model_of):
    """Two anchor frames in one segment, against masked columns and sums by a plain loop."""
    model = model_of(family, dtype=torch.float64)
    prompt = zoo.video_prompt(model)
    vtc.patch(model, vtc.methods.FastVID(segments=1, alike=0, stride=1, context=0.8), budget=0.4)
    with before_norm(model) as ours:
        logits(model, prompt)
    cuts, gone = cuts_of(engine(model)), dropped_rows(engine(model))
    assert cuts[0].reduction.also
    vtc.unpatch(model)
    with (
        masked(model, gone),
        merged_input(model, cuts, True, deepstack=family == "qwen3_vl"),
        before_norm(model) as want,
    ):
        logits(model, prompt)
    kept = ~gone[max(gone)]
    assert_close("kept rows", ours[0][kept], want[0][kept])
