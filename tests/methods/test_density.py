import torch

from tests.tolerances import assert_close, assert_same
from vtc.methods import _density
from vtc.methods._density import closest, peaks


def drawn(n: int, groups: int, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n, 5, generator=draw, dtype=torch.float64)
    return x, torch.randint(-1, groups, (1, n), generator=draw)


def slow(x: torch.Tensor, k: int) -> list[float]:
    """The definition in plain loops, one group ``[n, D]``."""
    distance = (x[:, None] - x).norm(dim=2) / x.shape[1] ** 0.5
    rho = [float((-row.sort().values[:k].square().mean()).exp()) for row in distance]
    rank = sorted(range(len(x)), key=lambda n: (-rho[n], n))
    above = [[float(distance[n, m]) for m in rank[: rank.index(n)]] for n in range(len(x))]
    return [r * (min(a) if a else float(d.max())) for r, a, d in zip(rho, above, distance, strict=True)]


def test_peaks_are_the_definition_in_every_group():
    for groups, k in ((1, 4), (3, 7), (9, 2)):
        x, group = drawn(60, groups)
        got = peaks(x, group, k)
        for g in range(groups):
            mine = group[0] == g
            assert_close("rho * delta", got[0, mine], torch.tensor(slow(x[0, mine], k), dtype=torch.float64))


def test_as_many_neighbours_as_each_group_asks_for():
    x, group = drawn(40, 2)
    got = peaks(x, group, torch.where(group == 0, 3, 5))
    for g, k in ((0, 3), (1, 5)):
        assert_same("peaks", got[group == g], peaks(x, group, k)[group == g])


def test_closest_is_the_definition():
    x, group = drawn(60, 4)
    target = group.roll(7, 1)
    got = closest(x, group, target)[0]
    for n in range(60):
        there = [m for m in range(60) if target[0, m] == group[0, n] >= 0]
        assert got[n] == (min(there, key=lambda m: float((x[0, n] - x[0, m]).norm())) if there else -1)


def test_blocks_change_nothing(monkeypatch):
    x, group = drawn(200, 3)
    want = peaks(x, group, 4), closest(x, group, group.roll(1, 1))
    monkeypatch.setattr(_density, "BLOCK", 300)
    assert_same("peaks", peaks(x, group, 4), want[0])
    assert_same("closest", closest(x, group, group.roll(1, 1)), want[1])


def test_two_mutual_neighbours_are_not_equally_dense():
    """Of equals the first is the denser, so one of the two is a peak and the other is not."""
    x = torch.tensor([[[0.0], [1.0], [10.0], [11.5]]])
    score = peaks(x, torch.zeros(1, 4, dtype=torch.int64), 2)[0]
    assert score.argmax() == 0
    assert score[1] < score[2]
