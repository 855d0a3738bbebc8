import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pictures import batch, check, picture, without_grid
from vtc.errors import BudgetError
from vtc.tokens import Budget, Reduction, cut, scatter_valid, sort_padded, top


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, r"budget 0 is below 1 token; the least is 1"),
        (-1, r"budget -1 is below 1 token"),
        (1.5, r"budget 1.5 is not a share in \(0, 1\].* or 1 for that many"),
        (64.0, r"budget 64.0 is not a share.* or 64 for that many"),
        (0.0, r"budget 0.0 is not a share"),
        (-0.25, r"budget -0.25 is not a share"),
        (True, r"budget True is a bool; give an int"),
        (float("nan"), r"budget nan is not a share"),
        (float("inf"), r"budget inf is not a share"),
        ("many", r"budget 'many' is not a number; give tokens like 64, or a share like 0.25 or 25%"),
        ("150%", r"budget 1.5 is not a share"),
        (None, r"budget None is a NoneType; give an int"),
        ([64], r"budget \[64\] is a list"),
        (64 + 0j, r"is a complex"),
    ],
)
def test_bad_budgets(value, says):
    with pytest.raises(BudgetError, match=says) as caught:
        Budget.of(value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.least is None


@pytest.mark.parametrize(
    ("value", "count", "tokens"),
    [
        (1, 576, 1),
        (1.0, 576, 576),
        (64, 576, 64),
        ("64", 576, 64),
        ("25%", 576, 144),
        (10**9, 576, 576),
        (64, 20, 20),
        (0.25, 576, 144),
        (0.25, 7, 1),
        (0.0625, 196, 12),
        (1e-9, 576, 1),
        (0.1, 10, 1),
        (0.7, 10, 7),  # 0.7 * 10 is a little below 7
        (0.29, 100, 29),
    ],
)
def test_budgets(value, count, tokens):
    assert Budget.of(value).tokens(count) == tokens
    assert Budget.of(Budget.of(value)) == Budget.of(value)


@given(st.one_of(st.integers(1, 10**12), st.floats(1e-300, 1)), st.integers(1, 10**6))
def test_a_budget_allows_from_one_token_to_all(value, count):
    allowed = Budget(value).tokens(count)
    assert 1 <= allowed <= count
    assert allowed == int(allowed)
    assert allowed <= max(1, value if isinstance(value, int) else math.ceil(value * count))


def test_a_budget_reads_well():
    assert [str(Budget(v)) for v in (64, 1, 0.25, 0.0625, 1.0)] == ["64", "1", "25%", "6.25%", "100%"]
    assert hash(Budget(1)) != hash(Budget(0.5))


def test_top_takes_the_best_and_on_ties_the_first():
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0], [torch.nan, -torch.inf, 5.0, 9.0]])
    valid = torch.tensor([[True] * 4, [True, True, True, False]])
    assert top(score, [2, 3], valid).tolist() == [[1, 2, -1], [2, 1, 0]]
    assert top(score, [4, 1], valid).tolist() == [[1, 2, 3, 0], [2, -1, -1, -1]]


def test_nan_ranks_after_every_number():
    score = torch.tensor([[torch.nan, 0.0, -5.0, torch.inf]])
    assert top(score, [3], torch.ones(1, 4, dtype=torch.bool)).tolist() == [[3, 1, 2]]


def test_padded_helpers():
    assert sort_padded(torch.tensor([[3, -1, 0, 7], [-1, -1, 2, 1]])).tolist() == [[0, 3, 7, -1], [1, 2, -1, -1]]
    assert cut(torch.tensor([[4, 3, 2], [1, 0, 2]]), [1, 2]).tolist() == [[4, -1], [1, 0]]
    into = torch.tensor([[9, 9, 9]])
    assert scatter_valid(into, torch.tensor([[2, -1]]), torch.tensor([[5, 6]])).tolist() == [[9, 9, 5]]
    assert into.tolist() == [[9, 9, 9]]


def test_keep_drops_the_others():
    tokens = batch([picture((1, 2, 2), 1), picture((1, 1, 3), 2)])
    got = Reduction.keep(torch.tensor([[3, 0], [1, -1]]), tokens)
    check(got, tokens, [2, 1])
    assert got.slot.tolist() == [[0, -1, -1, 1], [-1, 0, -1, -1]]
    assert got.anchor.tolist() == [[0, 3], [1, -1]]
    assert not got.merges
    assert got.sizes(tokens).tolist() == [[1, 1], [1, 0]]


def test_join_follows_leaders():
    tokens = batch([picture((1, 1, 5), 1), picture((1, 1, 2), 2)])
    weight = torch.ones(2, 5)
    got = Reduction.join(torch.tensor([[3, 1, 1, 3, -1], [0, 0, -1, -1, -1]]), 2, weight)
    check(got, tokens, [2, 1])
    assert got.slot.tolist() == [[1, 0, 0, 1, -1], [0, 0, -1, -1, -1]]
    assert got.anchor.tolist() == [[1, 3], [0, -1]]
    assert got.sizes(tokens).tolist() == [[2, 2], [2, 0]]
    assert got.weight.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]


def test_has_grid_asks_the_valid_tokens_only():
    tokens = batch([picture((1, 2, 2), 1), picture((1, 1, 3), 2)], 3)
    assert tokens.has_grid
    assert not without_grid(tokens).has_grid
