"""Blocks that borrow weights: the score, the choice of a lender, adapters, statistics, storage."""

import copy

import pytest
import torch
from torch import nn

from vtc.errors import WeightsError
from vtc.weights.structure.sharing import (
    BorrowedLinear,
    OutputNorm,
    block_influence,
    borrow,
    donor,
    least_needed,
    linears_of,
    normalise,
    residual,
    share,
)


class Block(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, width=16, hidden=24, size=1.0):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)
        self.size = size

    def forward(self, x):
        return x + self.size * self.down(torch.relu(self.up(x)))


def near(block, rank, noise=0.0):
    """A copy whose linear layers differ by a matrix of ``rank`` and a little noise."""
    made = copy.deepcopy(block)
    for layer in (made.up, made.down):
        out, width = layer.weight.shape
        layer.weight.data += 0.3 * torch.randn(out, rank) @ torch.randn(rank, width) + noise * torch.randn(out, width)
    return made


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def states(block, x):
    with torch.no_grad():
        return block(x)


def distinct_bytes(modules):
    held = {p.data_ptr(): p.numel() * p.element_size() for m in modules for p in m.parameters()}
    return sum(held.values())


def test_block_influence():
    x = torch.randn(50, 8)
    assert block_influence(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert block_influence(x, -x) == pytest.approx(2)
    assert block_influence(torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]])) == pytest.approx(1)
    assert least_needed([0.5, 0.1, 0.3, 0.1], 2) == [1, 3]
    small, large = Block(size=0.1), Block(size=10.0)
    x = torch.randn(50, 16)
    assert block_influence(x, states(small, x)) < block_influence(x, states(large, x))


def test_the_lender_is_the_block_that_differs_by_the_least_rank():
    first = Block()
    kept = {0: Block(), 2: near(first, rank=3), 5: Block()}
    weights = {n: linears_of(b) for n, b in kept.items()}
    assert donor(linears_of(first), weights, rank=3) == 2
    assert residual(linears_of(first), weights[2], rank=3) < 1e-10 < residual(linears_of(first), weights[0], rank=3)


def test_a_borrowed_block_of_enough_rank_answers_as_before():
    lender = Block()
    block = near(lender, rank=3)
    x = torch.randn(20, 16)
    before = states(block, x)
    borrow(block, lender, rank=3)
    assert torch.allclose(states(block, x), before, atol=1e-4)
    assert isinstance(block.up, BorrowedLinear) and block.up.weight is lender.up.weight
    assert not torch.allclose(states(borrow(near(lender, rank=8), lender, rank=1), x), before, atol=1e-2)


def test_adapters_learn():
    lender = Block().requires_grad_(False)
    block = borrow(near(lender, rank=8), lender, rank=2)
    trained = [p for p in block.parameters() if p.requires_grad]
    x, wanted = torch.randn(64, 16), torch.randn(64, 16)
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (block(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and lender.up.weight.grad is None


@pytest.mark.parametrize("several", [False, True])
def test_the_output_starts_with_the_statistics_of_the_block_it_replaces(several):
    lender = Block()
    block = near(lender, rank=12, noise=0.2)
    x = torch.randn(500, 16) * 3 + 1
    wanted = states(block, x)
    got = states(borrow(block, lender, rank=1), x)
    assert not torch.allclose(got.std(0), wanted.std(0), rtol=0.02)
    if several:
        plain = block.forward
        block.forward = lambda x: (plain(x), None)
    out = states(normalise(block, OutputNorm.between(got, wanted)), x)
    out = out[0] if several else out
    assert torch.allclose(out.mean(0), wanted.mean(0), atol=1e-3)
    assert torch.allclose(out.std(0), wanted.std(0), rtol=1e-3)


def test_a_feature_that_never_changes_is_shifted_only():
    got, wanted = torch.ones(10, 3), torch.randn(10, 3)
    norm = OutputNorm.between(got, wanted)
    assert torch.isfinite(norm.scale).all() and torch.allclose(norm(got).mean(0), wanted.mean(0), atol=1e-6)


def test_sharing_saves_storage():
    blocks = [Block(), Block(), Block()]
    blocks.insert(1, near(blocks[2], rank=2))
    before = distinct_bytes(blocks)
    plan = share(blocks, influence=[0.4, 0.1, 0.5, 0.6], count=1, rank=2)
    assert plan == {1: 3}
    weights = 2 * 16 * 24 * 4
    adapters = 2 * 2 * (16 + 24) * 4
    assert distinct_bytes(blocks) == before - weights + adapters


def test_what_cannot_be_shared_is_refused():
    block = Block()
    with pytest.raises(WeightsError, match="1 to 2 can be rebuilt"):
        least_needed([0.1, 0.2, 0.3], 3)
    with pytest.raises(WeightsError, match="3 blocks and 2 scores"):
        share([Block(), Block(), Block()], [0.1, 0.2], 1, 1)
    with pytest.raises(WeightsError, match="no block is kept"):
        donor(linears_of(block), {}, 2)
    with pytest.raises(WeightsError, match="share between equals"):
        borrow(block, Block(hidden=32), 2)
    for rank in (0, 17):
        with pytest.raises(WeightsError, match=f"rank {rank} is not between 1 and 16"):
            borrow(block, Block(), rank)
