"""``CompressedLinear``: a linear layer whose weight is a sum of terms. Plain buffers, no tensor subclass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.weights.terms import Tensors, Term, read_term


class CompressedLinear(nn.Module):
    """Stands where an ``nn.Linear`` of D inputs and O outputs stood. The tensors of term n are buffers ``t{n}_{name}``.

    ``terms`` that hold no matrix (low rank, columns) are applied to the inputs one by one; the others are summed first.
    """

    def __init__(self, width: int, out: int, terms: Sequence[Term], bias: bool, dtype: torch.dtype, device: Any = None):
        super().__init__()
        self.in_features, self.out_features, self.terms = width, out, tuple(terms)
        for n, term in enumerate(self.terms):
            for name, (shape, kind) in term.shapes(out, width, dtype).items():
                self.register_buffer(f"t{n}_{name}", torch.empty(shape, dtype=kind, device=device))
        self.bias = nn.Parameter(torch.empty(out, dtype=dtype, device=device)) if bias else None

    @classmethod
    def filled(
        cls, width: int, out: int, parts: Sequence[tuple[Term, Tensors]], bias: Tensor | None, like: Tensor
    ) -> CompressedLinear:
        """One with its tensors in place; ``like``: the weight it stands for (dtype and device)."""
        layer = cls(width, out, [term for term, _ in parts], bias is not None, like.dtype, like.device)
        for n, (_, tensors) in enumerate(parts):
            for name, value in tensors.items():
                layer.buffer(n, name).copy_(value)
        if bias is not None and layer.bias is not None:
            layer.bias.data.copy_(bias)
        return layer

    def buffer(self, n: int, name: str) -> Tensor:
        return self.get_buffer(f"t{n}_{name}")

    def tensors(self, n: int) -> dict[str, Tensor]:
        """The tensors of term n by name."""
        prefix = f"t{n}_"
        return {k.removeprefix(prefix): v for k, v in self._buffers.items() if k.startswith(prefix) and v is not None}

    @property
    def weight(self) -> Tensor:
        """``[O, D]``: the weight that the terms add up to, made anew at each call."""
        return sum(term.dense(self.tensors(n), self.out_features, self.in_features) for n, term in self.each())  # type: ignore[return-value]

    def each(self) -> list[tuple[int, Term]]:
        return list(enumerate(self.terms))

    def forward(self, x: Tensor) -> Tensor:
        shape = self.out_features, self.in_features
        y = sum(term.product(x, self.tensors(n), *shape) for n, term in self.each())
        return y if self.bias is None else y + self.bias  # type: ignore[return-value]

    def written(self) -> dict[str, Any]:
        """The layer as ``config.json`` describes it."""
        return {"terms": [term.written() for term in self.terms], "bias": self.bias is not None}

    @classmethod
    def read(cls, written: dict[str, Any], instead_of: nn.Linear) -> CompressedLinear:
        """An empty layer as ``written`` describes it, on the meta device. Raises ``CheckpointError``."""
        terms = [read_term(term) for term in written["terms"]]
        linear = instead_of
        return cls(linear.in_features, linear.out_features, terms, written["bias"], linear.weight.dtype, "meta")

    def extra_repr(self) -> str:
        kinds = " + ".join(str(term) for term in self.terms)
        return f"in_features={self.in_features}, out_features={self.out_features}, {kinds}"
