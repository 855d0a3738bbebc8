"""The column sweep behind GPTQ, SparseGPT, n:m pruning and any of them at once (optimal brain surgery, arXiv
2210.17323 and 2301.00774): set a column, and let the later ones make up for the error under the inputs' moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.weights.codec import grids
from vtc.weights.fitting.masks import all_but_lowest

BLOCK = 128


@dataclass(frozen=True)
class Rule:
    """What becomes of a column: rounded to a grid of ``bits`` (0: not), pruned where ``mask`` is False. The sweep
    prunes on to ``sparsity`` of each block of columns, or n of every m inputs by ``pattern`` (n, m).

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
    allowed = torch.ones_like(work, dtype=torch.bool) if rule.mask is None else rule.mask
    mask = allowed.clone()
    scale, zero = grids.grid(grids.grouped(first, rule.group), rule.bits or 1, rule.symmetric, rule.dtype)
    block = rule.block - rule.block % rule.pattern[1] if rule.pattern else rule.block  # no n:m group in two blocks
    for start in range(0, width, block):
        stop = min(start + block, width)
        part, factor = work[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.zeros_like(part)
        if rule.sparsity and rule.pattern is None:
            score = part**2 / factor.diagonal() ** 2
            mask[:, start:stop] = _above(score * allowed[:, start:stop], rule.sparsity)
        for j in range(stop - start):
            at = start + j
            if rule.pattern is not None and at % rule.pattern[1] == 0:
                n, m = rule.pattern
                score = part[:, j : j + m] ** 2 / factor.diagonal()[j : j + m] ** 2
                mask[:, at : at + m] = all_but_lowest(score * allowed[:, at : at + m], n)
            column, stays = part[:, j], mask[:, at] & allowed[:, at]
            new = column
            if rule.bits:
                if rule.group and not rule.static and at % group == 0 and at:
                    scale[:, at // group], zero[:, at // group] = grids.grid(
                        work[:, at : at + group], rule.bits, rule.symmetric, rule.dtype
                    )
                s, z = scale[:, at // group], zero[:, at // group]
                codes[:, at] = torch.where(stays, grids.to_codes(column, s, z, rule.bits), z)
                new = grids.from_codes(codes[:, at], s, z)
            new = torch.where(stays, new, 0.0)
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
