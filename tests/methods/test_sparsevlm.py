import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, check, picture, plain
from tests.support import engine
from tests.tolerances import assert_close, assert_same
from vtc.kernels.merge import merge
from vtc.methods.sparsevlm import SparseVLM, recycling
from vtc.patching.api import patch
from vtc.signals.rater_attention import RaterAttention, choose_raters


def spans(params):
    """The picture's columns and the text's."""
    start, n, words = (params[key] for key in ("image_start", "image_len", "text_len"))
    return torch.arange(start, start + n), torch.arange(start + n, start + n + words)


def raters_of(given, params, dtype):
    """The raters of a golden case, counted from the text's first row."""
    vision, text = spans(params)
    found = choose_raters(given["embeds"][None].to(dtype), vision[None], text[None], torch.ones(1, len(text)).bool())[0]
    return found[found >= 0] - text[0]


@pytest.mark.parametrize(("given", "want", "params"), cases("sparsevlm"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Where the budget is what they keep and what they merge."""
    vision, _ = spans(params)
    raters = raters_of(given, params, dtype)
    assert_same("raters", raters, want["raters"])
    tokens = plain(given["hidden"][None, vision].to(dtype))
    attention = given["text_rows"].to(dtype)[:, raters].mean(1).T[None]
    assert_close("score", attention[0].mean(1), want["score"])

    kept, merged = want["keep"].tolist(), want["merged"]
    got = SparseVLM().reduce(0, tokens, {RaterAttention(): attention}, [len(kept) + len(merged)])
    value = merge(tokens.features, got.slot, got.weight, tokens.size, got.anchor.shape[1])[0]
    anchors = got.anchor[0].tolist()
    recycled = set(want["recycled"].tolist())
    assert [n for n in anchors if n not in recycled] == kept
    assert set((got.slot[0] >= 0).nonzero()[:, 0].tolist()) == set(kept) | recycled
    ours = torch.stack([v for n, v in zip(anchors, value, strict=True) if n in recycled])
    near = torch.cdist(merged.to(dtype), ours).argmin(dim=1)
    assert sorted(near.tolist()) == list(range(len(merged)))
    assert_close("merged", ours[near], merged)


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 40, 576])
def test_merged_tokens_count_in_the_budget(count, share):
    for keep in range(1, count + 1):
        clusters, spent = recycling(count, keep, share)
        dropped = count - keep + clusters
        assert (clusters == 0 or clusters <= spent <= dropped) and clusters <= keep - 1 or keep == count
        if keep == count:
            assert (clusters, spent) == (0, 0)
        elif clusters < keep - 1:
            assert spent == min(dropped, int(share * dropped) + 1)
            assert clusters == spent // 10 + 1


def test_what_is_not_finite_joins_none():
    tokens = batch([picture((1, 4, 5), 1), picture((1, 3, 4), 2)])
    tokens.features[0, 3] = torch.nan
    attention = torch.linspace(1, 2, 20).expand(2, -1)[..., None].clone()
    attention[1, 5] = torch.nan
    got = SparseVLM(recycle=1.0).reduce(0, tokens, {RaterAttention(): attention}, [6, 4])
    check(got, tokens, [6, 4])
    assert got.slot[0, 3] == -1 and (got.slot[0, :3] >= 0).all()
    assert (got.slot[1, :5] >= 0).all() and 5 not in got.anchor[1].tolist()


def test_alike_tokens_are_clusters_of_their_own():
    """Duplicates are at no distance from a peak that is not theirs to be."""
    tokens = batch([picture((1, 8, 8), 1)])
    tokens.features[:] = tokens.features[:, :1]
    got = SparseVLM().reduce(0, tokens, {RaterAttention(): torch.ones(1, 64, 2)}, [8])
    check(got, tokens, [8])
    assert recycling(64, 8, 0.3) == (2, 18)
    assert got.anchor.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]] and (got.slot[0] == 6).sum() == 17


def test_stages_and_powers():
    method = SparseVLM()
    assert [s.index(32) for s in method.stages()] == [3, 7, 16]
    assert [s.power for s in method.stages()] == [1, 2, 3]
    assert SparseVLM(layers=[3, 7]) == SparseVLM(layers=(3, 7))


def test_fractions_on_one_layer_of_a_shallow_decoder_take_the_next(model_of):
    model = model_of("llava")
    patch(model, "sparsevlm", budget=0.5)
    assert engine(model).stage_at == {1: 0, 2: 1, 3: 2}
    with pytest.raises(ValueError, match="stages must increase"):
        patch(model, SparseVLM(layers=(0.9, 0.95)), budget=0.5)


@pytest.mark.parametrize("layers", [(), 3, (2, 2), (0.5, 0.25), (0, 2), (0.0, 0.5), (True, 2), (1, 0.5)])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match=r"layers?.*(give|must increase)"):
        SparseVLM(layers=layers)


@pytest.mark.parametrize("recycle", [0, -0.1, 1.1, True, "0.3", None, float("nan")])
def test_bad_shares(recycle):
    with pytest.raises(ValueError, match=r"recycle=.* is not a share"):
        SparseVLM(recycle=recycle)
