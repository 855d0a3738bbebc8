"""Delta-CoMe: singular vectors in mixed precision, the first ones in the most bits (arXiv 2406.08903)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.codec.terms.vectors import Vectors
from vtc.weights.fitting.gram import DAMP, Gram
from vtc.weights.fitting.sweep import Rule, Swept, sweep, sweep_ordered
from vtc.weights.passes import register
from vtc.weights.passes._lowrank import check_layer
from vtc.weights.passes.base import Candidate, Pass, check_bits, check_flag, check_group

Bands = tuple[tuple[int, int | None], ...]


@register("deltacome")
@dataclass(frozen=True)
class DeltaCoMe(Pass):
    """``U diag(s) VT`` of the weights, both factors rounded by GPTQ band by band: VT under the layer's inputs, then U
    under what those make of it.

    bands: (bits, components) from the largest singular value on, None: all that are left. payload: bits a weight that
    the codes of the vectors may take, at which the bands are cut off (None: no limit). act_order: inputs with the
    largest moment first. Meant for ``vtc.weights.delta``, where the weight is a difference.

    Departs from the authors' code: ``orientation`` chooses the components' signs; with theirs the errors are theirs.
    """

    bands: Bands = ((8, 2), (3, 32), (2, None))
    payload: float | None = 1.0
    group: int = 128
    act_order: bool = True
    damp: float = DAMP
    name = "deltacome"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "bands", tuple((bits, count) for bits, count in self.bands))
        except (TypeError, ValueError):
            raise WeightsError(f"bands are pairs like ((8, 2), (2, None)), not {self.bands!r}") from None
        check_group(self.group)
        check_flag("act_order", self.act_order)
        for bits, count in self.bands:
            check_bits(bits)
            if count is not None and count < 1:
                raise WeightsError(f"a band of {bits} bits must have at least 1 component or None for all, not {count}")
        if not self.bands or (self.payload is not None and not 0 < self.payload <= 16):
            raise WeightsError(f"give bands like ((8, 2), (2, None)) and a payload in (0, 16], not {self.payload!r}")

    def fit(self, layer: Candidate) -> Candidate:
        rest = layer.rest
        check_layer(rest, layer)
        out, width = rest.shape
        u, s, v = torch.linalg.svd(rest.double(), full_matrices=False)
        noise = s[0] * max(out, width) * torch.finfo(torch.float32).eps
        bands = self.cut(out, width, most=max(1, int((s > noise).sum())))
        tensors: dict[str, Tensor] = {}
        stop = 0
        for n, (bits, count) in enumerate(bands):
            start, stop = stop, stop + count
            signs = orientation(u[:, start:stop])
            rule = Rule(bits, self.group, symmetric=False, dtype=layer.dtype)
            right, order = self.rounded(signs[:, None] * v[start:stop], layer.gram, rule)
            outputs = s[start:stop, None] * right.values[:, order.argsort()].double()
            seen = outputs @ layer.gram.moment.double() @ outputs.T
            left, first = self.rounded(u[:, start:stop] * signs, replace(Gram.empty(count), moment=seen), rule)
            # u's components are stored in the order they were rounded in; v's rows and s follow.
            tensors |= Vectors.pack(f"u{n}", left.codes, left.scale.to(layer.dtype), left.zero, bits)
            tensors |= Vectors.pack(
                f"v{n}", right.codes[first], right.scale[first].to(layer.dtype), right.zero[first], bits
            )
            s[start:stop] = s[start:stop][first]
        tensors["s"] = s[:stop].float()
        if self.act_order:
            tensors["order"] = order.to(Vectors.order_dtype(width))
        return layer.with_part(Vectors(bands, self.group, self.act_order), tensors)

    def rounded(self, factor: Tensor, gram: Gram, rule: Rule) -> tuple[Swept, Tensor]:
        """``factor [M, N]`` rounded for inputs of ``gram``, and the order ``[N]`` its columns then stand in."""
        moment = gram.damped(self.damp)
        if self.act_order:
            return sweep_ordered(factor.float(), moment, gram.dead, rule)
        return sweep(factor.float(), moment, gram.dead, rule), torch.arange(gram.width, device=factor.device)

    def cut(self, out: int, width: int, most: int) -> tuple[tuple[int, int], ...]:
        """The bands of a layer: together at most ``most`` components, and no more bits than ``payload`` allows."""
        left = 8 * (out + width) * most if self.payload is None else self.payload * out * width
        found = []
        for bits, count in self.bands:
            price = bits * (out + width)
            fits = min(most, count or most, int(left // price))
            if fits:
                found.append((bits, fits))
            left, most = left - fits * price, most - fits
        if not found:
            least = min(bits for bits, _ in self.bands) * (out + width) / (out * width)
            raise WeightsError(
                f"payload={self.payload} bits a weight hold no component of a layer of {out} x {width}; the least is "
                f"{least:.4g}, or leave the layer out"
            )
        return tuple(found)


def orientation(u: Tensor) -> Tensor:
    """``[C]`` of 1 and -1: the way each component of ``u [O, C]`` points, chosen one by one so that the rows of u span
    little. An SVD leaves it open, and by chance the error varies by 2 %."""
    low, high = u.new_zeros(len(u)), u.new_zeros(len(u))
    chosen = []
    for column in u.T:
        # Powers from 2 to 6 all stay within 1 % of the authors' errors, and differ by chance.
        spans = [((torch.maximum(high, way) - torch.minimum(low, way)) ** 3).sum() for way in (column, -column)]
        chosen.append(1.0 if spans[0] <= spans[1] else -1.0)
        low, high = torch.minimum(low, chosen[-1] * column), torch.maximum(high, chosen[-1] * column)
    return u.new_tensor(chosen)
