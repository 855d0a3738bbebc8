import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, check, merged, picture, reduce, video
from tests.tolerances import assert_close, assert_same
from vtc.methods.fastvid import FastVID


def of(params: dict) -> FastVID:
    return FastVID(
        context=params["STPrune_d"],
        segments=params["DySeg_c"],
        alike=params["DySeg_tau"],
        stride=params["DTM_p"],
        own=params["DTM_beta"],
    )


@pytest.mark.parametrize(("given", "want", "params"), cases("fastvid"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Their frames are compared by the tower's pooled vectors, which ``compress`` takes as they are."""
    begin, frames, n = params["video_start"], params["frames"], params["tokens_per_frame"]
    inside = slice(begin, begin + frames * n)
    tokens = video(given["hidden"][inside].to(dtype).unflatten(0, (frames, n)))
    kept = want["keep"][(want["keep"] >= begin) & (want["keep"] < begin + frames * n)] - begin
    looks, attention = given["frame_global"][None].to(dtype), given["frame_attn"].flatten()[None].to(dtype)
    got = of(params).compress(tokens, attention, tokens.grid[..., 0], looks, [len(kept)])
    assert_same("kept", got.anchor[0], kept)
    assert_close("tokens", merged(got, tokens)[0], want["tokens"][begin : begin + len(kept)])


@pytest.mark.parametrize(("given", "want", "params"), cases("fastvid"))
def test_segments_and_anchors_equal_the_authors(given, want, params):
    count = torch.full((1, params["frames"]), params["tokens_per_frame"])
    method = of(params)
    start, end = method.bounds(given["frame_global"][None], count)
    assert_same("segments", (end - start + 1)[0][start[0] == torch.arange(len(start[0]))], want["segment_sizes"])
    keep = int(params["tokens_per_frame"] * params["retention_ratio"]) * params["frames"]
    _, centres = method.quotas(count, start, end, [keep])
    assert_same("anchors per frame", centres[0], want["anchors_per_frame"].long())


def test_every_budget_is_kept_where_centres_do_not_fit():
    """An anchor frame has fewer tokens than its long segment's part of a large budget."""
    still = picture((1, 4, 4), 1).features
    tokens = batch([video(still[0].repeat(8, 1, 1)), picture((3, 2, 5), 2), picture((1, 3, 3), 3)], 2)
    for part in (0.02, 0.3, 0.7, 0.9, 1):
        keep = [max(1, int(part * n)) for n in tokens.count]
        check(reduce(FastVID(), tokens, keep), tokens, keep)


def test_a_still_picture_is_salient_tokens_and_context():
    tokens = batch([picture((1, 5, 6), 1)])
    got = reduce(FastVID(), tokens, [10])
    size = got.sizes(tokens)[0]
    assert (size == 1).sum() >= 6
    assert size.sum() == 30


@pytest.mark.parametrize(
    ("option", "value"), [("context", 1.5), ("context", True), ("own", "x"), ("stride", 0), ("segments", 2.0)]
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=rf"fastvid: {option}=.* is not an? (number in|int of)"):
        FastVID(**{option: value})
