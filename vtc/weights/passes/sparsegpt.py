"""SparseGPT: prune column by column, later columns make up for it (arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vtc.weights.codec.sparsity import n_of_m, value_shape
from vtc.weights.fitting.gram import DAMP
from vtc.weights.fitting.sweep import Rule, sweep
from vtc.weights.passes import register
from vtc.weights.passes._matrix import as_floats, as_ints
from vtc.weights.passes.base import Candidate, Pass, check_bits, check_flag, check_group, check_pattern, check_share


@register("sparsegpt")
@dataclass(frozen=True)
class SparseGPT(Pass):
    """Prune ``sparsity`` of the weights, or n of every m inputs by ``pattern`` ("2:4"). With ``bits`` the kept weights
    are rounded to integers in the same sweep (a scale for every ``group`` inputs)."""

    sparsity: float = 0.5
    pattern: str | None = None
    bits: int = 0
    group: int = 128
    symmetric: bool = True
    damp: float = DAMP
    name = "sparsegpt"

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_group(self.group)
        check_flag("symmetric", self.symmetric)
        if self.bits:
            check_bits(self.bits)
        check_pattern(self.pattern)

    def fit(self, layer: Candidate) -> Candidate:
        pattern = n_of_m(self.pattern) if self.pattern else None
        if self.pattern:
            value_shape(self.pattern, 0, *layer.weight.shape)
        group = 0 if self.group >= layer.gram.width else self.group
        grid = Rule(self.bits, group, self.symmetric, dtype=layer.dtype)
        rule = replace(grid, sparsity=self.sparsity, pattern=pattern, mask=layer.mask)
        done = sweep(layer.beside_matrix, layer.gram.damped(self.damp), layer.gram.dead, rule)
        if not self.bits:
            return as_floats(layer, done.values, done.mask, self.pattern)
        masked = replace(layer, mask=done.mask, pattern=self.pattern)
        return as_ints(masked, done.codes, done.scale, None if self.symmetric else done.zero, self.bits, group)
