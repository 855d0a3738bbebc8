"""Blocks that borrow another block's weights (FlexiGPT, arXiv 2501.14713): the least needed decoder layers are rebuilt
from kept ones with low-rank adapters. It saves storage; every block still runs, so it saves no FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear

from vtc.errors import WeightsError
from vtc.weights.fitting.lowrank import truncated

Linears = Mapping[str, Tensor]  # weights [O, D] of one block by name


def block_influence(before: Tensor, after: Tensor) -> float:
    """1 - the mean cosine of a block's input and output states ``[..., D]``: 0 where it changes no direction."""
    return 1 - float(cosine_similarity(before.double(), after.double(), dim=-1).mean())


def least_needed(influence: Sequence[float], count: int) -> list[int]:
    """The ``count`` blocks with the least influence, in order. Raises ``WeightsError`` when none would be left."""
    if not 0 < count < len(influence):
        raise WeightsError(
            f"of {len(influence)} blocks 1 to {len(influence) - 1} can be rebuilt from others, not {count}"
        )
    return sorted(sorted(range(len(influence)), key=lambda n: (influence[n], n))[:count])


def residual(pruned: Linears, kept: Linears, rank: int) -> float:
    """What adapters of ``rank`` leave of ``pruned - kept``: squared, relative to the squared weights."""
    left = whole = 0.0
    for name, weight in _matched(pruned, kept, rank):
        left += float((torch.linalg.svdvals((weight - kept[name]).double())[rank:] ** 2).sum())
        whole += float((weight.double() ** 2).sum())
    return left / whole if whole else 0.0


def donor(pruned: Linears, kept: Mapping[int, Linears], rank: int) -> int:
    """The index of the kept block from which ``pruned`` is rebuilt best."""
    if not kept:
        raise WeightsError("no block is kept to borrow from; rebuild fewer")
    return min(kept, key=lambda n: (residual(pruned, kept[n], rank), n))


def _matched(pruned: Linears, kept: Linears, rank: int) -> list[tuple[str, Tensor]]:
    for name in {**pruned, **kept}:
        shapes = [list(block[name].shape) if name in block else None for block in (pruned, kept)]
        if shapes[0] != shapes[1]:
            raise WeightsError(f"{name} is {shapes[0]} in one block and {shapes[1]} in the other; share between equals")
        if not 1 <= rank <= min(pruned[name].shape):
            raise WeightsError(f"rank {rank} is not between 1 and {min(pruned[name].shape)}, the bounds of {name}")
    return list(pruned.items())


class BorrowedLinear(nn.Module):
    """``x (W + U V)T + b`` with the weight of another layer, held by that layer alone."""

    _lender: tuple[nn.Linear]

    def __init__(self, lender: nn.Linear, u: Tensor, v: Tensor, bias: Tensor | None):
        super().__init__()
        self.in_features, self.out_features = lender.in_features, lender.out_features
        self._lender = (lender,)  # in a tuple: no module of this one, so it is stored and counted once
        u, v = (t.to(lender.weight).contiguous() for t in (u, v))  # as they are loaded: layouts round differently
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @classmethod
    def empty(cls, lender: nn.Linear, rank: int, bias: bool) -> BorrowedLinear:
        """One without values, on the meta device."""
        with torch.device("meta"):
            u, v = torch.empty(lender.out_features, rank), torch.empty(rank, lender.in_features)
            made = cls(lender, u, v, torch.empty(lender.out_features, dtype=lender.weight.dtype) if bias else None)
        return made

    @property
    def lender(self) -> nn.Linear:
        return self._lender[0]

    @property
    def weight(self) -> Tensor:
        """The lender's, without what the adapters add."""
        return self.lender.weight

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias) + linear(linear(x, self.v), self.u)


class OutputNorm(nn.Module):
    """Each feature of a block's output, shifted and scaled to a wanted mean and deviation: ``y * scale + shift``."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    @classmethod
    def between(cls, got: Tensor, wanted: Tensor) -> OutputNorm:
        """From states ``[T, D]`` that the rebuilt block gives to those wanted of it: what the block gave before it was
        rebuilt. It was chosen because that is near its input, so the block starts near the identity."""
        first, second = ((t.double().mean(0), t.double().std(0)) for t in (got, wanted))
        return cls.of(first, second, got.dtype)

    @classmethod
    def of(cls, got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], dtype: torch.dtype) -> OutputNorm:
        """The same from means and deviations, float64 ``[D]`` each."""
        (mean, deviation), (to_mean, to_deviation) = got, wanted
        scale = torch.where(deviation > 0, to_deviation / deviation.clamp_min(1e-12), torch.ones_like(deviation))
        return cls(scale.to(dtype), (to_mean - mean * scale).to(dtype))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.scale + self.shift


def linears_of(block: nn.Module) -> dict[str, Tensor]:
    """The weights of the linear layers of a block."""
    return {name: m.weight.detach() for name, m in block.named_modules() if isinstance(m, nn.Linear)}


def borrow(block: nn.Module, lender: nn.Module, rank: int, put: Callable[[Any, str, Any], None] = setattr) -> nn.Module:
    """Rebuild the linear layers of ``block`` from those of ``lender``, in place; biases and norms stay its own. put:
    sets them, as ``setattr`` does."""
    for name, weight in _matched(linears_of(block), linears_of(lender), rank):
        own: Any = block.get_submodule(name)
        other: Any = lender.get_submodule(name)
        u, v = truncated(weight - other.weight.detach(), rank)
        parent, _, child = name.rpartition(".")
        put(block.get_submodule(parent), child, BorrowedLinear(other, u, v, own.bias))
    return block


def normalise(block: nn.Module, norm: OutputNorm) -> nn.Module:
    """Let ``norm`` act on what ``block`` gives (its first output, where it gives several), in place."""
    block.output_norm = norm
    block.register_forward_hook(_normalised)
    return block


def _normalised(block: Any, args: tuple, out: Any) -> Any:
    return (block.output_norm(out[0]), *out[1:]) if isinstance(out, tuple) else block.output_norm(out)


def unnormalise(block: nn.Module) -> None:
    """Undo ``normalise``."""
    del block.output_norm
    for key in [key for key, hook in block._forward_hooks.items() if hook is _normalised]:
        del block._forward_hooks[key]


def share(blocks: Sequence[nn.Module], influence: Sequence[float], count: int, rank: int) -> dict[int, int]:
    """Rebuild the ``count`` blocks of least ``influence`` from the rest, in place; which borrows from which."""
    if len(blocks) != len(influence):
        raise WeightsError(f"there are {len(blocks)} blocks and {len(influence)} scores; give one each")
    pruned = least_needed(influence, count)
    kept = {n: linears_of(block) for n, block in enumerate(blocks) if n not in pruned}
    plan = {n: donor(linears_of(blocks[n]), kept, rank) for n in pruned}
    for n, lender in plan.items():
        borrow(blocks[n], blocks[lender], rank)
    return plan
