"""What a pass gets and returns: the layer as it is compressed so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.codec.sparsity import n_of_m
from vtc.weights.codec.terms.base import Tensors, Term
from vtc.weights.fitting.gram import Gram


@dataclass(frozen=True)
class Candidate:
    """A layer under compression: its weight and what was fitted to it so far.

    weight ``[O, D]`` float32, the original; gram: what its inputs look like (a unit one where no pass asks);
    parts: the fitted terms with their tensors; ``matrix`` is the one that holds the (masked, quantized) matrix, None
    while there is none; mask ``[O, D]`` bool: where the matrix may be other than zero (None: everywhere), made by the
    n:m ``pattern`` or without one; dtype: of the tensors that are stored as floats.
    """

    weight: Tensor
    gram: Gram
    dtype: torch.dtype = torch.float32
    parts: tuple[tuple[Term, Tensors], ...] = ()
    matrix: tuple[Term, Tensors] | None = None
    mask: Tensor | None = field(default=None, repr=False)
    pattern: str | None = None

    @property
    def all_parts(self) -> tuple[tuple[Term, Tensors], ...]:
        return self.parts if self.matrix is None else (self.matrix, *self.parts)

    @property
    def approximation(self) -> Tensor:
        """``[O, D]`` float32: what the terms add up to, exactly as they are stored."""
        total = torch.zeros_like(self.weight)
        for term, tensors in self.all_parts:
            total += term.dense(tensors, *self.weight.shape).float()
        return total

    @property
    def beside_matrix(self) -> Tensor:
        """``[O, D]``: what is left for the matrix, when the other parts have taken theirs."""
        return self.weight - replace(self, matrix=None).approximation

    @property
    def for_matrix(self) -> Tensor:
        """``[O, D]``: what the matrix is to hold: ``beside_matrix``, 0 where the layer's mask prunes."""
        return self.beside_matrix if self.mask is None else self.beside_matrix * self.mask

    @property
    def rest(self) -> Tensor:
        """``[O, D]``: what no part has taken yet."""
        return self.weight - self.approximation

    def with_matrix(self, term: Term, tensors: Tensors) -> Candidate:
        """The same with another matrix."""
        return replace(self, matrix=(term, tensors))

    def with_part(self, term: Term, tensors: Tensors) -> Candidate:
        """The same with one more part."""
        return replace(self, parts=(*self.parts, (term, tensors)))

    @property
    def bytes(self) -> int:
        """Bytes of every tensor, scales and masks included."""
        return sum(t.numel() * t.element_size() for _, tensors in self.all_parts for t in tensors.values())

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes / self.weight.numel()

    @property
    def flops(self) -> int:
        """Of one token."""
        return sum(term.flops(*self.weight.shape) for term, _ in self.all_parts)

    @property
    def error(self) -> float:
        """Squared output error over squared output, under the gram: exact, measured on what is stored."""
        return self.gram.error(self.rest, self.weight)


@dataclass(frozen=True)
class Pass:
    """A pass over one layer: its fields are its options, checked when it is made."""

    name: ClassVar[str]
    needs_gram: ClassVar[bool] = True

    def fit(self, layer: Candidate) -> Candidate:
        """The layer with this pass's term fitted to what the others leave. Pure: nothing given is changed."""
        raise NotImplementedError


def check_bits(bits: int, allowed: tuple[int, ...] = (2, 3, 4, 8)) -> None:
    if bits not in allowed:
        raise WeightsError(f"bits must be one of {', '.join(map(str, allowed))}, not {bits!r}")


def check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise WeightsError(f"{name} must be a share between 0 and 1, like 0.5, not {value!r}")


def check_group(group: int) -> None:
    if isinstance(group, bool) or not isinstance(group, int) or group < 0:
        raise WeightsError(f"group must be a number of inputs, like 128, or 0 for whole rows, not {group!r}")


def check_pattern(pattern: str | None) -> None:
    if pattern is not None and (not isinstance(pattern, str) or n_of_m(pattern) is None):
        raise WeightsError(f'pattern must be like "2:4" (2 of every 4 inputs go), not {pattern!r}')


def check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise WeightsError(f"{name} must be true or false, not {value!r}")
