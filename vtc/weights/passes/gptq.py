"""GPTQ: round column by column, later columns make up for it (arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.weights.fitting.gram import DAMP
from vtc.weights.fitting.sweep import Rule, sweep
from vtc.weights.passes import register
from vtc.weights.passes._matrix import as_ints
from vtc.weights.passes.base import Candidate, Pass, check_bits, check_flag, check_group


@register("gptq")
@dataclass(frozen=True)
class GPTQ(Pass):
    """Integers of ``bits`` bits with a scale for every ``group`` inputs (0: whole rows), after any pruning and beside
    any low rank.

    Departs from the paper: a symmetric grid reaches from -max|w| to max|w| even where no weight is negative (as in
    llm-compressor). Columns go in natural order.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    damp: float = DAMP
    name = "gptq"

    def __post_init__(self) -> None:
        check_bits(self.bits, tuple(range(2, 9)))
        check_group(self.group)
        check_flag("symmetric", self.symmetric)

    def fit(self, layer: Candidate) -> Candidate:
        group = 0 if self.group >= layer.gram.width else self.group
        rule = Rule(self.bits, group, self.symmetric, mask=layer.mask, dtype=layer.dtype)
        done = sweep(layer.beside_matrix, layer.gram.damped(self.damp), layer.gram.dead, rule)
        zero = None if self.symmetric else done.zero
        return as_ints(layer, done.codes, done.scale, zero, self.bits, group)
