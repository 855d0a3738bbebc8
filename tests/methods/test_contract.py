"""What every registered method must do; a new method is tested without editing this file."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import golden
from tests.own import known, walked
from tests.pictures import batch, check, picture, ready, reduce, signals
from tests.tolerances import assert_same
from vtc.kernels.merge import merge
from vtc.methods import registry
from vtc.methods._share import share

METHODS = {name: ready(method()) for name, method in known(registry).items()}
RANKING = (  # they keep the best by a score or a distance
    *("cdpruner", "dart", "divprune", "fastervlm", "fastv", "hired", "hiprune", "holov", "prumerge"),
    *("act_learned", "perceiver", "pyramiddrop", "router", "scope", "sparsevlm_v2", "vscan"),
)
CUTS = {  # its stages that cut; where tokens stop nothing is reduced
    name: [n for n, stage in enumerate(method.stages()) if not stage.freezes] for name, method in METHODS.items()
}
each = pytest.mark.parametrize("name", [name for name in walked(registry) if CUTS.get(name) != []])
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
pictures = st.lists(st.tuples(shapes, st.floats(0.01, 1), st.integers(0, 2**20)), min_size=1, max_size=4)


def build(drawn):
    """Batch and counts to keep from what hypothesis drew: shape, share and seed of each picture."""
    made = [picture(shape, seed) for shape, _, seed in drawn]
    keep = [max(1, round(part * p.count[0])) for p, (_, part, _) in zip(made, drawn, strict=True)]
    return made, keep


@each
@quick
@given(drawn=pictures, pad=st.integers(0, 5))
def test_reduction_meets_the_contract(name, drawn, pad):
    made, keep = build(drawn)
    tokens = batch(made, pad)
    for stage in CUTS[name]:
        check(reduce(METHODS[name], tokens, keep, stage), tokens, keep)


@each
@quick
@given(drawn=pictures, pad=st.integers(0, 5))
def test_a_picture_is_reduced_alone_as_in_any_batch(name, drawn, pad):
    """Neither padding, nor the other pictures, nor their order may matter (and twice the same is the same)."""
    made, keep = build(drawn)
    together = reduce(METHODS[name], batch(made, pad), keep)
    turned = reduce(METHODS[name], batch(made[::-1], pad), keep[::-1])
    for i, (one, k) in enumerate(zip(made, keep, strict=True)):
        n = one.count[0]
        alone = reduce(METHODS[name], batch([one]), [k])
        for where, got, j in (("batch", together, i), ("turned batch", turned, len(made) - 1 - i)):
            assert_same(f"slot in the {where}", got.slot[j, :n], alone.slot[0])
            assert_same(f"anchor in the {where}", got.anchor[j, :k], alone.anchor[0])
            if alone.weight is not None:
                assert_same(f"weight in the {where}", got.weight[j, :n], alone.weight[0])


@each
@quick
@given(drawn=pictures)
def test_share_makes_sizes_add_up(name, drawn):
    made, keep = build(drawn)
    tokens = batch(made, 2)
    plain = reduce(METHODS[name], tokens, keep)
    shared = share(tokens, plain)
    check(shared, tokens, keep)
    assert shared.sizes(tokens).sum(1).tolist() == tokens.count
    kept = plain.slot >= 0
    assert_same("slots that were given", shared.slot[kept], plain.slot[kept])


@each
def test_keeping_all_changes_nothing(name):
    tokens = batch([picture((1, 4, 5), 1), picture((2, 2, 2), 2)])
    keep = list(tokens.count)
    got = reduce(METHODS[name], tokens, keep)
    check(got, tokens, keep)
    values = merge(tokens.features, got.slot, got.weight, tokens.size, max(keep))
    assert_same("features", values[tokens.valid], tokens.features[tokens.valid])


@each
def test_one_token(name):
    tokens = batch([picture((1, 1, 1), 1), picture((1, 3, 3), 2)])
    for keep in ([1, 1], [1, 9]):
        check(reduce(METHODS[name], tokens, keep), tokens, keep)
    alone = batch([picture((1, 1, 1), 1)])
    check(reduce(METHODS[name], alone, [1]), alone, [1])


@each
def test_a_picture_without_tokens_does_no_harm(name):
    tokens = batch([picture((1, 0, 0), 1), picture((1, 3, 3), 2)])
    got = reduce(METHODS[name], tokens, [0, 4])
    check(got, tokens, [0, 4])
    check(share(tokens, got), tokens, [0, 4])


@each
def test_ties_are_documented(name):
    """All tokens alike: the contract holds, and selection by score or distance takes the lowest indices."""
    tokens = batch([picture((1, 4, 4), 3)], 1)
    tokens.features[:, :16] = tokens.features[:, :1]
    got = reduce(METHODS[name], tokens, [5])
    check(got, tokens, [5])
    if name in RANKING:
        assert got.anchor.tolist() == [[0, 1, 2, 3, 4]]


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("spread", ["one", "all"])
def test_nan_and_infinity_are_documented(name, bad, spread):
    """The contract holds; methods that rank features or scores put a NaN last."""
    tokens = batch([picture((1, 4, 4), 3), picture((1, 2, 3), 4)], 1)
    tokens.features[0, 2 if spread == "one" else slice(None)] = bad
    for keep in ([5, 2], [15, 6], [16, 3]):
        got = reduce(METHODS[name], tokens, keep)
        check(got, tokens, keep)
        check(share(tokens, got), tokens, keep)
    if bad != bad and spread == "one" and name in (*RANKING, "prumerge_plus"):
        assert 2 not in reduce(METHODS[name], tokens, [15, 6]).anchor[0].tolist()


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(name, dtype):
    tokens = batch([picture((1, 5, 6), 5, dtype), picture((1, 3, 3), 6, dtype)])
    got = reduce(METHODS[name], tokens, [7, 4])
    check(got, tokens, [7, 4])
    for reduction in (got, share(tokens, got)):
        values = merge(tokens.features, reduction.slot, reduction.weight, tokens.size, 7)
        assert values.dtype == dtype
        assert values.isfinite().all()


@each
def test_gradients_reach_what_is_merged(name):
    tokens = batch([picture((1, 4, 4), 7, torch.float64)])
    got = reduce(METHODS[name], tokens, [5])
    tokens.features.requires_grad_()
    again = reduce(METHODS[name], tokens, [5])
    assert_same("slot under autograd", again.slot, got.slot)
    values = merge(tokens.features, again.slot, again.weight, tokens.size, 5)
    values.square().sum().backward()
    used = tokens.features.grad.abs().sum(2) > 0
    assert_same("tokens with a gradient", used, again.slot >= 0)
    assert again.merges == METHODS[name].trains
    assert METHODS[name].trains or used.sum() == 5


@each
def test_inputs_are_left_alone(name):
    tokens = batch([picture((1, 4, 4), 7)], 1)
    given_signals = signals(METHODS[name], tokens)
    copies = {k: v.clone() for k, v in (vars(tokens) | given_signals).items() if isinstance(v, torch.Tensor)}
    METHODS[name].reduce(0, tokens, given_signals, [5])
    for key, value in copies.items():
        assert_same(str(key), (vars(tokens) | given_signals)[key], value)


@each
def test_is_a_frozen_hashable_record_with_its_papers(name):
    method = METHODS[name]
    assert method == type(method)()
    assert hash(method) == hash(type(method)())
    assert method.name == name
    assert method.paper
    assert type(method).__doc__
    with pytest.raises(FrozenInstanceError):
        setattr(method, fields(method)[0].name, None)


@each
def test_share_is_for_cuts_at_the_input(name):
    cls = type(METHODS[name])
    if any(stage.layer == 0 for stage in METHODS[name].stages()):
        assert cls(share=True).share
    else:
        with pytest.raises(ValueError, match=r"share=True needs a stage at the decoder's input"):
            cls(share=True)
    with pytest.raises(ValueError, match=r"share=1 is not a bool"):
        cls(share=1)


def test_every_golden_file_has_its_method():
    """Of the authors' outputs on record none is left without a method that is compared with it."""
    files = {path.stem for path in [*golden.HERE.glob("*.npz"), *golden.SHARED.glob("*.npz")]}
    assert files and files <= set(registry), f"no method for {sorted(files - set(registry))}"
