"""The column sweep behind GPTQ, SparseGPT, n:m pruning and any of them at once (optimal brain surgery, arXiv
2210.17323 and 2301.00774): set a column, and let the later ones make up for the error under the inputs' moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.weights import grids

BLOCK = 128


@dataclass(frozen=True)
class Rule:
    """What becomes of a column: rounded to a grid of ``bits`` (0: not), pruned where ``mask`` is False (None: the sweep
    chooses ``sparsity`` of each block of columns, or n of every m inputs by ``pattern`` (n, m)).

    group: inputs that share a scale (0: a row); static: every grid from the weights as given, not as corrected so far;
    dtype: in which scales are stored.
    """

    bits: int = 0
    group: int = 0
    symmetric: bool = True
    static: bool = False
    sparsity: float = 0.0
    pattern: tuple[int, int] | None = None
    mask: Tensor | None = None
    dtype: torch.dtype = torch.float32
    block: int = BLOCK


@dataclass(frozen=True)
class Swept:
    """values ``[O, D]``: the new weights; codes ``[O, D]``, scale and zero ``[O, G]`` (of no meaning without a grid);
    mask ``[O, D]`` bool: True where kept."""

    values: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor
    mask: Tensor


def sweep(weight: Tensor, moment: Tensor, dead: Tensor, rule: Rule) -> Swept:
    """Go through the columns of ``weight [O, D]``; ``moment [D, D]``: the damped second moment of the inputs;
    ``dead [D]``: inputs never seen, whose weights become 0."""
    out, width = weight.shape
    group = rule.group or width
    work = weight.float().masked_fill(dead, 0.0)
    first = work if rule.group else weight.float()  # a row's own grid is made before dead inputs go
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    values, codes = torch.zeros_like(work), torch.zeros_like(work)
    mask = torch.ones_like(work, dtype=torch.bool) if rule.mask is None else rule.mask.clone()
    scale, zero = grids.grid(grids.grouped(first, rule.group), rule.bits or 1, rule.symmetric, rule.dtype)
    for start in range(0, width, rule.block):
        stop = min(start + rule.block, width)
        part, factor = work[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.zeros_like(part)
        if rule.sparsity and rule.pattern is None:
            mask[:, start:stop] = _above(part**2 / factor.diagonal() ** 2, rule.sparsity)
        for j in range(stop - start):
            at = start + j
            if rule.pattern is not None and at % rule.pattern[1] == 0:
                n, m = rule.pattern
                mask[:, at : at + m] = _all_but(part[:, j : j + m] ** 2 / factor.diagonal()[j : j + m] ** 2, n)
            column = part[:, j]
            new = column
            if rule.bits:
                if rule.group and not rule.static and at % group == 0 and at:
                    scale[:, at // group], zero[:, at // group] = grids.grid(
                        work[:, at : at + group], rule.bits, rule.symmetric, rule.dtype
                    )
                s, z = scale[:, at // group], zero[:, at // group]
                codes[:, at] = grids.to_codes(column, s, z, rule.bits)
                new = grids.from_codes(codes[:, at], s, z)
            new = torch.where(mask[:, at], new, 0.0)
            values[:, at] = new
            errors[:, j] = (column - new) / factor[j, j]
            part[:, j + 1 :] -= errors[:, j, None] * factor[j, None, j + 1 :]
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return Swept(values, codes, scale, zero, mask)


def sweep_ordered(weight: Tensor, moment: Tensor, dead: Tensor, rule: Rule) -> tuple[Swept, Tensor]:
    """The same through the columns with the largest moment first ("act-order"), and that order ``[D]``. The columns and
    the groups of what is returned stand in it."""
    order = moment.diagonal().argsort(descending=True, stable=True)
    return sweep(weight[:, order], moment[order][:, order], dead[order], rule), order


def _above(score: Tensor, sparsity: float) -> Tensor:
    """True where ``score`` exceeds its ``sparsity`` quantile; one more than that share goes, as its authors do."""
    ordered = score.flatten().sort().values
    return score > ordered[min(int(score.numel() * sparsity), score.numel() - 1)]


def _all_but(score: Tensor, n: int) -> Tensor:
    """True but for the n lowest of each row; the first of equals goes."""
    lowest = score.argsort(dim=1, stable=True)[:, :n]
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, lowest, False)
