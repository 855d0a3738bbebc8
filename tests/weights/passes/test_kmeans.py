"""Codebooks: against the best clustering there is, and what counts for them."""

from dataclasses import replace

import pytest
import torch

from tests.weights.layers import layer
from vtc.errors import WeightsError
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes.kmeans import centroids, nearest


def cost(values, counts, table):
    return float((counts * (values - table.gather(1, nearest(values, table))) ** 2).sum())


def least_cost(values, counts, k):
    """By dynamic programming over the sorted values of one row."""
    order = values[0].argsort()
    v, c = values[0][order].double(), counts[0][order].double()

    def stretch(i, j):
        mean = (c[i:j] * v[i:j]).sum() / c[i:j].sum()
        return float((c[i:j] * (v[i:j] - mean) ** 2).sum())

    n = len(v)
    best = [0.0] + [float("inf")] * n
    for _ in range(k):
        best = [0.0] + [min(best[i] + stretch(i, j) for i in range(j)) for j in range(1, n + 1)]
    return best[n]


def test_close_to_the_best_there_is():
    draw = torch.Generator().manual_seed(3)
    values, counts = torch.randn(1, 40, generator=draw), torch.rand(1, 40, generator=draw) + 0.1
    least = least_cost(values, counts, 5)
    assert 0.999 * least <= cost(values, counts, centroids(values, counts, 5)) <= 1.2 * least


def test_many_values_of_a_gaussian_come_near_the_known_bound():
    values = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(5))
    got = cost(values, torch.ones_like(values), centroids(values, torch.ones_like(values), 256)) / values.numel()
    assert got <= 1.1 * 3**0.5 * torch.pi / 2 / 256**2  # Panter and Dite's, for many values


def test_each_centre_is_the_mean_of_what_is_nearest_to_it():
    draw = torch.Generator().manual_seed(4)
    values, counts = torch.randn(3, 500, generator=draw), torch.rand(3, 500, generator=draw)
    table = centroids(values, counts, 8)
    assert (table.diff(dim=1) > 0).all()
    where = nearest(values, table)
    means = torch.zeros(3, 8).scatter_add_(1, where, counts * values)
    means /= torch.zeros(3, 8).scatter_add_(1, where, counts)
    assert torch.allclose(means, table, atol=1e-5)
    distance = (values[..., None] - table[:, None]).abs()
    assert torch.allclose(distance.gather(2, where[..., None])[..., 0], distance.amin(-1))


def test_a_weight_counts_as_often_as_it_is_counted():
    values, counts = torch.tensor([[0.0, 1.0, 5.0, 6.0]]), torch.tensor([[3.0, 1.0, 1.0, 1.0]])
    again = values.repeat_interleave(torch.tensor([3, 1, 1, 1]), dim=1)
    table = centroids(values, counts, 2)
    assert torch.equal(table, torch.tensor([[0.25, 5.5]]))
    assert torch.equal(table, centroids(again, torch.ones(1, 6), 2))


@pytest.mark.parametrize("rows", [False, True])
def test_weights_of_two_values_stay(rows):
    two = torch.where(layer().weight > 0.5, 0.75, -0.25)
    got = registry["kmeans"](bits=1, rows=rows).fit(replace(layer(), weight=two))
    assert torch.equal(got.approximation, two)
    assert got.bytes == 48 * 8 + 2 * 4 * (48 if rows else 1)


def test_large_inputs_count():
    given = layer()
    flat = replace(given, gram=Gram.of(torch.eye(64)))
    told, not_told = (registry["kmeans"](bits=3, rows=True).fit(each).approximation for each in (given, flat))
    error = [given.gram.error(given.weight - each, given.weight) for each in (told, not_told)]
    assert error[0] < 0.8 * error[1]
    assert (given.weight - told).norm() > (given.weight - not_told).norm()


def test_better_than_even_steps_at_equal_bits_and_more_bits_are_better():
    given = layer()
    error = [registry["kmeans"](bits=bits, rows=True).fit(given).error for bits in (1, 2, 3, 4, 6)]
    assert error == sorted(error, reverse=True)
    assert error[3] < registry["rtn"](bits=4, group=0).fit(given).error


@pytest.mark.parametrize("bits", [1, 2])
def test_after_pruning_one_value_is_zero(bits):
    got = registry["kmeans"](bits=bits).fit(registry["wanda"](pattern="2:4").fit(layer()))
    assert torch.equal(got.approximation != 0, got.mask)
    assert len(got.approximation.unique()) == 2**bits


@pytest.mark.parametrize("bits", [0, 9, 2.5, "4"])
def test_absurd_bits(bits):
    with pytest.raises(WeightsError, match="bits must be one of"):
        registry["kmeans"](bits=bits)
