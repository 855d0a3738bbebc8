"""Ranks by effective rank: hand-computed answers, budgets kept, bounds, and the move from Q and K to V."""

import itertools
import math

import pytest
import torch

from vtc.errors import WeightsError
from vtc.weights.planning.ranks import Matrix, allocate, effective_rank, toward_values


def matrix(out, width, decay):
    return Matrix(out, width, decay ** torch.arange(min(out, width), dtype=torch.float64))


def spent(ranks, matrices, itemsize=2):
    return sum(ranks[name] * m.price for name, m in matrices.items()) * itemsize


def test_effective_rank():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    p = torch.tensor([0.8, 0.2])
    assert effective_rank(p.sqrt() * 5) == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))))
    assert effective_rank(torch.zeros(4)) == 0


def test_ranks_go_as_the_root_of_effective_rank_over_price():
    matrices = {"poor": matrix(64, 64, 0.3), "rich": matrix(64, 64, 0.95), "wide": matrix(64, 192, 0.95)}
    ranks = allocate(matrices, budget=2 * 128 * 60)
    wanted = {n: math.sqrt(effective_rank(m.spectrum) / m.price) for n, m in matrices.items()}
    for a, b in itertools.combinations(matrices, 2):
        assert ranks[a] / ranks[b] == pytest.approx(wanted[a] / wanted[b], rel=0.15)


@pytest.mark.parametrize("budget", [2 * 600, 2 * 1111, 2 * 5000, 2 * 9000, 2 * 10**6])
def test_a_budget_is_kept_and_used_up(budget):
    matrices = {"a": matrix(20, 30, 0.9), "b": matrix(40, 10, 0.2), "c": matrix(100, 100, 0.99)}
    ranks = allocate(matrices, budget)
    assert all(1 <= ranks[n] <= m.most for n, m in matrices.items())
    assert spent(ranks, matrices) <= budget
    spare = budget - spent(ranks, matrices)
    assert all(ranks[n] == m.most or 2 * m.price > spare for n, m in matrices.items())


def test_the_answer_is_the_best_of_all():
    matrices = {"a": matrix(6, 8, 0.9), "b": matrix(10, 6, 0.5), "c": matrix(8, 8, 0.99)}
    budget = 2 * 160

    def cost(ranks):
        return sum(effective_rank(m.spectrum) / ranks[n] for n, m in matrices.items())

    every = itertools.product(*(range(1, m.most + 1) for m in matrices.values()))
    allowed = [dict(zip(matrices, ranks, strict=True)) for ranks in every]
    best = min(cost(r) for r in allowed if spent(r, matrices) <= budget)
    assert cost(allocate(matrices, budget)) <= best * 1.03  # whole ranks are handed out one by one


def test_a_weight_of_zeros_gets_the_least():
    matrices = {"dead": Matrix(16, 16, torch.zeros(16)), "alive": matrix(16, 16, 0.9)}
    assert allocate(matrices, 2 * 32 * 10) == {"dead": 1, "alive": 9}
    assert allocate({"dead": matrices["dead"]}, 10**6) == {"dead": 16}


def test_too_small_a_budget_names_the_least():
    with pytest.raises(WeightsError, match="99 bytes are less than the 128"):
        allocate({"a": matrix(16, 16, 0.9), "b": matrix(16, 16, 0.9)}, 99)


ATTENTION = [("q", "k", "v")]


def test_ranks_move_to_values_at_no_more_bytes():
    matrices = {name: matrix(64, 64, 0.9) for name in "qkvo"}
    before = {"q": 20, "k": 20, "v": 20, "o": 20}
    after = toward_values(before, matrices, ATTENTION, 0.25)
    assert after == {"q": 15, "k": 15, "v": 30, "o": 20}
    assert toward_values(before, matrices, ATTENTION, 0) == before


def test_grouped_values_take_only_what_they_can_hold():
    matrices = {"q": matrix(64, 64, 0.9), "k": matrix(16, 64, 0.9), "v": matrix(16, 64, 0.9)}
    before = {"q": 30, "k": 12, "v": 14}
    after = toward_values(before, matrices, ATTENTION, 0.5)
    assert after["v"] == 16 and after["q"] >= 27 and after["k"] >= 10
    assert spent(after, matrices) <= spent(before, matrices)
    assert toward_values({"q": 30, "k": 12, "v": 16}, matrices, ATTENTION, 0.5) == {"q": 30, "k": 12, "v": 16}
    assert toward_values({"q": 1, "k": 1, "v": 1}, matrices, ATTENTION, 0.9) == {"q": 1, "k": 1, "v": 1}


@pytest.mark.parametrize("share", [-0.1, 1, 2])
def test_malformed_shares_are_refused(share):
    with pytest.raises(WeightsError, match="share"):
        toward_values({}, {}, [], share)
