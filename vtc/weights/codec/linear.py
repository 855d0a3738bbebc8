"""``CompressedLinear``: a linear layer whose weight is a sum of terms. Plain buffers, no tensor subclass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import CheckpointError, WeightsError
from vtc.weights.codec import kernels as fast
from vtc.weights.codec.sparsity import DENSE
from vtc.weights.codec.terms import read_term
from vtc.weights.codec.terms.base import Tensors, Term
from vtc.weights.codec.terms.ints import Ints


class CompressedLinear(nn.Module):
    """Stands where an ``nn.Linear`` of D inputs and O outputs stood. The tensors of term n are buffers ``t{n}_{name}``.

    ``terms`` that hold no matrix (low rank, columns) are applied to the inputs one by one; the others are summed first.
    """

    def __init__(self, width: int, out: int, terms: Sequence[Term], bias: bool, dtype: torch.dtype, device: Any = None):
        super().__init__()
        self.in_features, self.out_features, self.terms = width, out, tuple(terms)
        self._packed: dict[int, tuple[tuple, Any]] = {}  # made when first needed, never saved
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
        """The tensors of term n by name: buffers, or parameters where they learn (``vtc.training.factors``)."""
        prefix, held = f"t{n}_", {**self._buffers, **self._parameters}
        return {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix) and v is not None}

    @property
    def weight(self) -> Tensor:
        """``[O, D]``: the weight that the terms add up to, made anew at each call."""
        return sum(term.dense(self.tensors(n), self.out_features, self.in_features) for n, term in self.each())  # type: ignore[return-value]

    def each(self) -> list[tuple[int, Term]]:
        return list(enumerate(self.terms))

    def forward(self, x: Tensor) -> Tensor:
        shape = self.out_features, self.in_features
        y = sum(self._product(n, term, x, *shape) for n, term in self.each())
        return y if self.bias is None else y + self.bias  # type: ignore[return-value]

    def _product(self, n: int, term: Term, x: Tensor, out: int, width: int) -> Tensor:
        tensors = self.tensors(n)
        kernel = fast.kernel_for(term, tensors, x, out, width)
        if kernel is None:
            return term.product(x, tensors, out, width)
        stamp = kernel, *((t.data_ptr(), t._version) for t in tensors.values())  # weights may be loaded anew
        if self._packed.get(n, (None,))[0] != stamp:
            self._packed[n] = stamp, kernel.pack(term, tensors, out, width)
        y = kernel.multiply(x.reshape(-1, width), self._packed[n][1], getattr(term, "group", 0) or width)
        return y.view(*x.shape[:-1], out)

    def written(self) -> dict[str, Any]:
        """The layer as ``config.json`` describes it."""
        return {"terms": [term.written() for term in self.terms], "bias": self.bias is not None}

    @classmethod
    def read(cls, written: dict[str, Any], instead_of: nn.Linear) -> CompressedLinear:
        """An empty layer as ``written`` describes it, on the meta device. Raises ``CheckpointError``."""
        terms, linear = [read_term(term) for term in written["terms"]], instead_of
        for term in terms:
            term.check(linear.out_features, linear.in_features)
        return cls(linear.in_features, linear.out_features, terms, written["bias"], linear.weight.dtype, "meta")

    def extra_repr(self) -> str:
        kinds = " + ".join(str(term) for term in self.terms)
        return f"in_features={self.in_features}, out_features={self.out_features}, {kinds}"


class CompressedEmbedding(nn.Module):
    """Stands where an ``nn.Embedding`` stood. One term, rounded rows: only the rows that are asked for are made."""

    def __init__(self, instead_of: nn.Embedding, term: Term, device: Any = None):
        super().__init__()
        if not isinstance(term, Ints) or term.layout != DENSE or term.scaled:
            raise WeightsError(f"an embedding is stored as plain integers, not as {term}; use rtn for it")
        rows, width = instead_of.weight.shape
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, width, instead_of.padding_idx
        self.term, dtype = term, instead_of.weight.dtype
        for name, (shape, kind) in term.shapes(rows, width, dtype).items():
            self.register_buffer(name, torch.empty(shape, dtype=kind, device=device))

    @classmethod
    def filled(cls, embedding: nn.Embedding, parts: Sequence[tuple[Term, Tensors]]) -> CompressedEmbedding:
        """One with its tensors in place."""
        ((term, tensors),) = parts
        made = cls(embedding, term, embedding.weight.device)
        for name, value in tensors.items():
            made.get_buffer(name).copy_(value)
        return made

    @property
    def weight(self) -> Tensor:
        """``[V, D]``: all rows, made anew at each call."""
        return self.term.dense(dict(self._buffers), self.num_embeddings, self.embedding_dim)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        some = {name: value[ids.flatten()] for name, value in self._buffers.items() if value is not None}
        return self.term.dense(some, ids.numel(), self.embedding_dim).view(*ids.shape, self.embedding_dim)

    def written(self) -> dict[str, Any]:
        """The layer as ``config.json`` describes it."""
        return {"terms": [self.term.written()], "embedding": True}

    @classmethod
    def read(cls, written: dict[str, Any], instead_of: nn.Embedding) -> CompressedEmbedding:
        """An empty one as ``written`` describes it, on the meta device. Raises ``CheckpointError``."""
        if len(written["terms"]) != 1:
            raise CheckpointError(f"an embedding has one term, not {len(written['terms'])}; save the model again")
        term = read_term(written["terms"][0])
        term.check(*instead_of.weight.shape)
        return cls(instead_of, term, "meta")
