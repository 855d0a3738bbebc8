"""What a linear layer sees, summed up: the one statistic that every pass works with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vtc.errors import WeightsError

DAMP = 0.01  # of the mean diagonal: what GPTQ, SparseGPT and llm-compressor add before factorising


@dataclass
class Gram:
    """Sums over the tokens x that reach a linear layer of D inputs.

    moment ``[D, D]`` = sum of x xT; total ``[D]`` = sum of x; absolute ``[D]`` = sum of |x|; largest ``[D]`` = max |x|;
    count: tokens seen (weighted, so not always whole).
    """

    moment: Tensor
    total: Tensor
    absolute: Tensor
    largest: Tensor
    count: float = 0.0

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Gram:
        square, (a, b, c) = torch.zeros(width, width, device=device), torch.zeros(3, width, device=device)
        return cls(square, a, b, c)

    @classmethod
    def of(cls, x: Tensor) -> Gram:
        """The Gram of the rows of ``x [T, D]``."""
        return cls.empty(x.shape[1], x.device).add(x)

    @property
    def width(self) -> int:
        return len(self.total)

    def add(self, x: Tensor) -> Gram:
        """Count the rows of ``x [T, D]``, in place. Raises ``WeightsError`` when one is not finite."""
        x = x.detach().float()
        if not bool(torch.isfinite(x).all()):
            raise WeightsError(
                "a calibration example makes activations that are not finite; run the model in bfloat16 or float32, "
                "or leave that example out"
            )
        if len(x):
            self.moment += x.T @ x
            self.total += x.sum(0)
            self.absolute += x.abs().sum(0)
            self.largest = torch.maximum(self.largest, x.abs().amax(0))
            self.count += len(x)
        return self

    def scaled(self, weight: float) -> Gram:
        """Every token counted ``weight`` times (0: not at all)."""
        largest = self.largest if weight else torch.zeros_like(self.largest)
        return Gram(self.moment * weight, self.total * weight, self.absolute * weight, largest, self.count * weight)

    def __add__(self, other: Gram) -> Gram:
        largest = torch.maximum(self.largest, other.largest)
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "largest"}
        return Gram(**sums, largest=largest)

    @property
    def mean(self) -> Tensor:
        """``[D]``: the mean input."""
        return self.total / max(self.count, 1e-12)

    @property
    def mean_absolute(self) -> Tensor:
        """``[D]``: the mean of |x|."""
        return self.absolute / max(self.count, 1e-12)

    @property
    def variance(self) -> Tensor:
        """``[D]``: the variance of each input."""
        return (self.moment.diagonal() / max(self.count, 1e-12) - self.mean**2).clamp_min(0)

    @property
    def dead(self) -> Tensor:
        """``[D]`` bool: inputs that were zero for every token."""
        return self.moment.diagonal() == 0

    def damped(self, damp: float = DAMP) -> Tensor:
        """``[D, D]`` float64: the moment, its dead inputs given a diagonal of 1, plus ``damp`` of the mean diagonal."""
        h = self.moment.double().clone()
        diagonal = h.diagonal()
        diagonal[self.dead] = 1.0
        diagonal += damp * diagonal.mean()
        return h

    def root(self) -> Tensor:
        """``L [D, D]``, lower triangular, float64, with L LT = moment: as measured where it can be factorised, else
        lifted by just enough that it can. ``||(W - V) L||`` is then the output error of V in place of W."""
        h = self.moment.double()
        factor, failed = torch.linalg.cholesky_ex(h)
        if not int(failed):
            return factor
        least = float(torch.linalg.eigvalsh(h)[0])
        lift = 1e-6 * max(float(h.diagonal().mean()), 1e-12)
        return torch.linalg.cholesky(h + (lift - min(least, 0.0)) * torch.eye(len(h), dtype=h.dtype, device=h.device))

    def error(self, left: Tensor, weight: Tensor) -> float:
        """Mean squared output error of leaving ``left [O, D]`` of ``weight [O, D]`` out, relative to the mean squared
        output: ``tr(left H leftT) / tr(weight H weightT)``. Needs no factor, so it is exact for singular moments."""
        h = self.moment.double()

        def energy(w: Tensor) -> float:
            w = w.double()
            return float(((w @ h) * w).sum())

        whole = energy(weight)
        return max(energy(left), 0.0) / whole if whole > 0 else 0.0
