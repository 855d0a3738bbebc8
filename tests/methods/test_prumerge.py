import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, merged, picture, plain, reduce
from tests.tolerances import assert_close, assert_same
from vtc.methods.prumerge import PruMerge
from vtc.methods.prumerge_plus import PruMergePlus
from vtc.signals.tower_attention import TowerAttention, joined_heads, received_in_tower
from vtc.signals.tower_keys import TowerKeys


@pytest.mark.parametrize(
    ("method", "given", "want", "params"),
    [
        pytest.param(kind(), *case.values, id=f"{kind.name}-{case.id}")
        for kind in (PruMerge, PruMergePlus)
        for case in cases(kind.name)
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(method, given, want, params, dtype):
    """Where the budget is the authors' count. The golden key 0 is the CLS token's, their last token the extra one."""
    tokens = plain(given["x"].to(dtype))
    q, k = given["q_cls"][:, None, None].to(dtype), given["k"][:, None].to(dtype)
    attention = received_in_tower(q, k, None, 1, q.shape[3] ** -0.5)[:, 1:]
    assert_close("attention", attention, want["cls_attn"])
    seen = dict(zip(method.signals(0), (attention, k[:, 0, 1:]), strict=True))
    kept = want["kept"].shape[1]
    got = method.reduce(0, tokens, seen, [kept + 1])

    (extra,) = set(got.anchor[0].tolist()) - set(want["kept"][0].tolist())
    assert set(got.anchor[0].tolist()) - {extra} == set(want["kept"][0].tolist())
    place = {n: slot for slot, n in enumerate(got.anchor[0].tolist())}
    order = [place[n] for n in [*want["kept_order"][0].tolist(), extra]]
    assert_close("tokens", merged(got, tokens)[0, order], want["tokens"][0])


def slow(method, x, attention, keys, keep):
    """The definition of the values for one picture, given the anchors, in loops."""
    tokens = plain(x[None])
    got = method.reduce(0, tokens, dict(zip(method.signals(0), (attention[None], keys[None]), strict=True)), [keep])
    anchors, slot = got.anchor[0].tolist(), got.slot[0].tolist()
    extra = [n for n in anchors if 1 < slot.count(slot[n])]
    out = []
    for n in anchors:
        if n in extra:
            out.append(sum(attention[m] * x[m] for m in range(len(x)) if slot[m] == slot[n]))
            continue
        cosine = torch.nn.functional.cosine_similarity(keys, keys[n : n + 1])
        cosine[n] = -2
        near = cosine.argsort(descending=True, stable=True)[: min(method.neighbours, len(x) - 1)]
        out.append(x[n] + (attention[near, None] * x[near]).sum(0))
    assert_close("values", merged(got, tokens)[0], torch.stack(out))


@pytest.mark.parametrize("method", [PruMerge(neighbours=3), PruMergePlus(neighbours=5), PruMerge()])
@pytest.mark.parametrize("keep", [1, 2, 9])
def test_values_equal_the_definition(method, keep):
    g = torch.Generator().manual_seed(3)
    x, keys = (torch.randn(21, 6, generator=g, dtype=torch.float64) for _ in range(2))
    slow(method, x, torch.rand(21, generator=g, dtype=torch.float64), keys, keep)


@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus()])
def test_what_is_added_depends_on_no_other_picture(method):
    made = [picture((1, 5, 7), 1), picture((1, 3, 3), 2), picture((1, 2, 2), 3)]
    keep = [9, 4, 4]
    together = reduce(method, batch(made, 3), keep)
    for i, (one, k) in enumerate(zip(made, keep, strict=True)):
        alone = reduce(method, batch([one]), [k])
        for (token, slot, by), (token_alone, slot_alone, by_alone) in zip(together.also, alone.also, strict=False):
            there = slot_alone[0] >= 0
            assert_same("slot", slot[i, :k], slot_alone[0])
            assert_same("token", token[i, :k][there], token_alone[0][there])
            assert_same("weight", by[i, :k][there], by_alone[0][there])
        assert all((slot[i] < 0).all() for _, slot, _ in together.also[len(alone.also) :])
    assert all((slot[2] < 0).all() for _, slot, _ in together.also), "a picture that keeps all is left alone"


def test_plus_takes_tokens_from_all_over():
    tokens = batch([picture((1, 24, 24), 1)])
    attention = torch.linspace(0, 1, 576)[None]  # all that stands out is at the end
    seen = dict(zip(PruMergePlus().signals(0), (attention, tokens.features), strict=True))
    kept = PruMergePlus().reduce(0, tokens, seen, [145]).anchor[0]
    gaps = kept[kept < 400].diff()
    assert len(set(gaps.tolist())) == 1 and gaps[0] <= 6
    assert PruMerge().reduce(0, tokens, seen, [145]).anchor[0].min() > 400


def test_a_nan_adds_nothing():
    tokens = batch([picture((1, 4, 4), 1)])
    tokens.features[0, 5] = torch.nan
    got = reduce(PruMerge(), tokens, [6])
    assert 5 not in got.anchor[0].tolist() and merged(got, tokens).isfinite().all()


def test_heads_are_joined_side_by_side():
    x = torch.randn(2, 3, 5, 4)
    joined = joined_heads(x, 3)
    assert joined.shape == (2, 1, 5, 12)
    assert_same("head 1 of token 2", joined[0, 0, 2, 4:8], x[0, 1, 2])
    assert_same("a shared head serves twice", joined_heads(x[:, :1], 2), torch.cat([x[:, :1], x[:, :1]], 3))


def test_signals_are_those_of_joined_heads():
    assert PruMerge().signals(0) == (TowerAttention(-1, joined=True), TowerKeys(-1, joined=True))


@pytest.mark.parametrize("count", [-1, 1.0, True, "32", None])
@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
def test_bad_options(count, kind):
    with pytest.raises(ValueError, match=r"neighbours=.* is not an int >= 0"):
        kind(neighbours=count)
