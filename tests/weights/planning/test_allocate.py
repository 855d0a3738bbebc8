"""The allocator: within the limit, as good as trying everything, and never long."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.errors import WeightsError
from vtc.weights.planning.allocate import exact, lagrangian, lagrangian_bound, solve


def best(damage, cost, limit):
    rows = range(len(damage))
    choices = itertools.product(range(damage.shape[1]), repeat=len(damage))
    return min(
        sum(damage[r, c] for r, c in zip(rows, choice, strict=True))
        for choice in choices
        if sum(cost[r, c] for r, c in zip(rows, choice, strict=True)) <= limit
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.floats(0, 1))
def test_as_good_as_trying_everything(seed, layers, candidates, share):
    rng = np.random.default_rng(seed)
    damage, cost = rng.exponential(size=(layers, candidates)), rng.integers(1, 20, (layers, candidates)).astype(float)
    limit = cost.min(1).sum() + share * (cost.max(1).sum() - cost.min(1).sum())
    found = solve(damage, cost, limit)
    rows = np.arange(layers)
    assert cost[rows, found].sum() <= limit + 1e-9
    assert damage[rows, found].sum() <= best(damage, cost, limit + 1e-9) * (1 + 2e-4) + 1e-12
    assert lagrangian_bound(damage, cost, limit) <= best(damage, cost, limit + 1e-9) * (1 + 1e-9)
    bisected = lagrangian(damage, cost, limit)
    assert cost[rows, bisected].sum() <= limit + 1e-9


def test_the_bound_is_close_where_layers_are_many():
    rng = np.random.default_rng(0)
    damage, cost = rng.exponential(size=(200, 6)), rng.uniform(1, 10, (200, 6))
    bound = lagrangian_bound(damage, cost, 500.0)
    found = solve(damage, cost, 500.0)
    assert 0 < bound <= damage[range(200), found].sum() <= 1.01 * bound


def test_a_candidate_that_is_not_there_is_never_chosen():
    damage = np.array([[0.0, 5.0], [1.0, 0.5]])
    cost = np.array([[np.inf, 2.0], [1.0, 2.0]])
    assert solve(damage, cost, 4.0) == [1, 1]


def test_too_small_a_limit_names_the_least():
    with pytest.raises(WeightsError, match="from 3 on"):
        solve(np.ones((2, 2)), np.array([[1.0, 2.0], [2.0, 4.0]]), 2.9)


@pytest.mark.parametrize("damage", [np.array([[np.nan, 1.0]]), np.full((1, 2), np.inf), np.zeros((0, 2)), np.zeros(3)])
def test_tables_that_make_no_sense(damage):
    with pytest.raises(WeightsError):
        solve(damage, np.ones_like(damage), 5.0)


def test_a_solver_that_finds_nothing_in_time_leaves_the_lagrangian_answer():
    rng = np.random.default_rng(0)
    damage, cost = rng.exponential(size=(560, 12)), rng.uniform(1, 10, (560, 12))
    limit = float(cost.mean() * 560)
    rows = np.arange(560)
    found = solve(damage, cost, limit, seconds=1e-6)
    assert cost[rows, found].sum() <= limit
    quick = lagrangian(damage, cost, limit)
    assert damage[rows, found].sum() <= damage[rows, quick].sum()
    exact(damage, cost, limit, seconds=0.5)
