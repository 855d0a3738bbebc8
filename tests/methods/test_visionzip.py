import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, plain, reduce
from tests.tolerances import assert_close, assert_same
from vtc.kernels.merge import merge
from vtc.methods.visionzip import VisionZip
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_keys import TowerKeys


@pytest.mark.parametrize(("given", "want", "params"), cases("visionzip"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """The golden row 0 is the CLS token, which has no placeholder row: everything here is one lower."""
    features = given["hidden"][:, 1:].to(dtype)
    keep = params["dominant"] + params["contextual"]
    tokens = plain(features)
    seen = {
        TowerAttention(-2): given["cls_attn"].to(dtype).sum(1)[:, 1:],
        TowerKeys(-2): given["metric"][:, 1:].to(dtype),
    }
    got = VisionZip(contextual=params["contextual"] / keep).reduce(0, tokens, seen, [keep] * len(features))

    dominant, targets = want["keep_dominant"][:, 1:] - 1, want["contextual_targets"] - 1
    assert_same("anchors", got.anchor, torch.cat([dominant, targets], 1).sort(1).values)
    joined = got.anchor.gather(1, got.slot.gather(1, want["merged_from"] - 1))
    assert_same("targets joined", joined, targets.gather(1, want["merged_to"]))
    values = merge(features, got.slot, got.weight, tokens.size, keep)
    by_place = torch.cat([dominant, targets], 1).argsort(1)
    wanted = want["tokens"][:, 1:].gather(1, by_place[..., None].expand_as(want["tokens"][:, 1:]))
    assert_close("tokens", values, wanted)


@pytest.mark.parametrize(("keep", "contextual"), [(64, 10), (128, 20), (192, 30), (1, 0), (2, 1), (6, 1), (23, 4)])
def test_the_papers_split(keep, contextual):
    tokens = batch([picture((1, 24, 24), 1)])
    got = reduce(VisionZip(), tokens, [keep])
    assert (got.sizes(tokens)[0] > 1).sum() == contextual


def test_contextual_is_target_plus_mean():
    tokens = batch([picture((1, 2, 3), 1)])
    got = reduce(VisionZip(contextual=0.5), tokens, [2])
    size = got.sizes(tokens)[0]
    (slot,) = (size > 1).nonzero()[0].tolist()
    target = got.anchor[0, slot]
    others = [n for n in range(6) if got.slot[0, n] == slot and n != target]
    value = merge(tokens.features, got.slot, got.weight, tokens.size, 2)[0, slot]
    assert_close("value", value, tokens.features[0, target] + tokens.features[0, others].mean(0))


def test_no_contextual_is_top_k_by_attention():
    tokens = batch([picture((1, 4, 4), 1)])
    got = reduce(VisionZip(contextual=0), tokens, [5])
    assert (got.slot >= 0).sum() == 5


@pytest.mark.parametrize("share", [-0.1, 1, 1.0, True, float("nan"), "0.2", None])
def test_bad_options(share):
    with pytest.raises(ValueError, match=r"contextual=.* is not a share in \[0, 1\)"):
        VisionZip(contextual=share)
