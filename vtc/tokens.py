"""The vocabulary: Budget, VisionTokens, Reduction. Torch only; nothing here knows a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import BudgetError


@dataclass(frozen=True, eq=False)
class Budget:
    """How many vision tokens one picture may cost, averaged over the decoder layers.

    ``value`` is an ``int >= 1`` (tokens a picture) or a ``float`` in (0, 1] (share of the picture's own tokens), so
    ``1`` is one token and ``1.0`` is all of them. A picture is all its tiles, a video is one picture.
    """

    value: int | float

    def __post_init__(self) -> None:
        v = self.value
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            raise BudgetError(
                f"budget {v!r} is a {type(v).__name__}; give an int >= 1 (tokens) or a float in (0, 1] (a share)"
            )
        if isinstance(v, int) and v < 1:
            raise BudgetError(f"budget {v} is below 1 token; the least is 1 (or a share in (0, 1], like 0.25)")
        if isinstance(v, float) and not 0.0 < v <= 1.0:  # NaN fails this comparison too
            whole = f", or {int(v)} for that many tokens" if math.isfinite(v) and v > 1 else ""
            raise BudgetError(f"budget {v} is not a share in (0, 1]; give a share like 0.25{whole}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and (type(self.value), self.value) == (type(other.value), other.value)

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))  # 1 token is not 1.0, all of them

    @classmethod
    def of(cls, value: int | float | str | Budget) -> Budget:
        """``value`` as a Budget, a text as it is typed: ``"64"``, ``"0.25"``, ``"25%"``. Raises ``BudgetError`` when it
        is neither tokens nor a share."""
        if isinstance(value, Budget):
            return value
        return cls(_number(value) if isinstance(value, str) else value)

    def tokens(self, count: int) -> float:
        """Layer-averaged tokens allowed to a picture of ``count`` tokens: at least 1, at most ``count``."""
        allowed = self.value if isinstance(self.value, int) else math.floor(self.value * count + 1e-9)
        return float(min(max(allowed, 1), count))

    def __str__(self) -> str:
        return str(self.value) if isinstance(self.value, int) else f"{100 * self.value:g}%"


def _number(text: str) -> int | float:
    text = text.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise BudgetError(
            f"budget {text!r} is not a number; give tokens like 64, or a share like 0.25 or 25%"
        ) from None


@dataclass
class VisionTokens:
    """The vision tokens of I pictures in decoder-input space, padded to N (newline tokens are not among them).

    features ``[I, N, D]``; valid ``[I, N]`` bool; size ``[I, N]`` float, how many original tokens each stands for;
    grid ``[I, N, 3]`` int (t, y, x), -1 where the family knows no place (Q-formers); row ``[I, N]`` int, the row of the
    language model's input; prompt ``[I]`` int, the row of the batch; ``count``, the valid tokens of each picture as
    Python ints (known without asking the device).
    """

    features: Tensor
    valid: Tensor
    size: Tensor
    grid: Tensor
    row: Tensor
    prompt: Tensor
    count: list[int]

    @property
    def has_grid(self) -> bool:
        """Whether every valid token has a place in its picture."""
        return bool((self.grid[self.valid] >= 0).all())


@dataclass
class Reduction:
    """Where every token goes: the whole contract between a method and the engine.

    slot ``[I, N]`` int: the slot each token goes to, -1 = dropped;
    anchor ``[I, K]`` int, ascending, -1 padded at the end: the token whose row and position a slot takes;
    weight ``[I, N]`` or None: a slot's value is the weighted SUM of its tokens (None = size-weighted mean; a slot of
    one token then keeps that token's value bit for bit);
    also: further ``(token, slot, weight)``, ``[I, M]`` each: tokens whose weighted sums are added to the values of
    slots they are not in (slot -1 = nothing); sizes stay as they are, and ``weight`` must be given;
    refine: what a learned method makes of the slots: a function of the tokens' features ``[I, N, D]`` and the slots'
    values ``[I, K, D]`` that gives the values that go on; differentiable, and called anew where a layer is replayed
    for its gradient;
    merges: False promises that every slot is one token with its own value (set by ``keep``), so nothing is summed.
    """

    slot: Tensor
    anchor: Tensor
    weight: Tensor | None = None
    refine: Callable[[Tensor, Tensor], Tensor] | None = None
    merges: bool = True
    also: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()

    @classmethod
    def keep(cls, kept: Tensor, tokens: VisionTokens) -> Reduction:
        """Keep the tokens ``kept [I, K]`` (any order, -1 = none) and drop the others."""
        anchor = sort_padded(kept)
        slot = torch.full_like(tokens.row, -1)
        ranks = torch.arange(anchor.shape[1], device=anchor.device).expand_as(anchor)
        return cls(scatter_valid(slot, anchor, ranks), anchor, merges=False)

    @classmethod
    def top(cls, score: Tensor, keep: list[int], tokens: VisionTokens) -> Reduction:
        """Keep the ``keep[i]`` tokens of the highest ``score [I, N]``; ties go to the lower index, NaN ranks last."""
        return cls.keep(top(score, keep, tokens.valid), tokens)

    @classmethod
    def join(cls, leader: Tensor, slots: int, weight: Tensor | None = None) -> Reduction:
        """Each token joins the token ``leader [I, N]``: itself = an anchor, -1 = dropped; at most ``slots`` anchors.

        What is dropped weighs nothing.
        """
        index = torch.arange(leader.shape[1], device=leader.device)
        heads = leader == index
        anchor = sort_padded(index.where(heads, -1))[:, :slots]
        slot = (heads.cumsum(1) - 1).gather(1, leader.clamp(min=0)).where(leader >= 0, -1)
        return cls(slot, anchor, None if weight is None else weight.masked_fill(leader < 0, 0))

    def sizes(self, tokens: VisionTokens) -> Tensor:
        """``[I, K]``: how many original tokens each slot stands for (0 in padding)."""
        out = torch.zeros(self.anchor.shape, dtype=tokens.size.dtype, device=tokens.size.device)
        used = (self.slot >= 0) & tokens.valid
        return out.scatter_add_(1, self.slot.clamp(min=0), tokens.size * used)


def top(score: Tensor, keep: list[int] | Tensor, valid: Tensor, wide: int | None = None) -> Tensor:
    """Indices ``[I, K]`` of the ``keep[i]`` highest scores, best first, -1 padded to ``K = wide`` (``max(keep)``).

    Ties go to the lower index; NaN and padding rank last.
    """
    score = score.float().nan_to_num(nan=-torch.inf, posinf=torch.finfo(torch.float32).max)
    # Valid tokens before padding even where their score is -inf: sort by score, then stably by validity.
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, (~valid.gather(1, order)).to(torch.uint8).argsort(dim=1, stable=True))
    return cut(order, keep, wide)


def cut(order: Tensor, keep: list[int] | Tensor, wide: int | None = None) -> Tensor:
    """The first ``keep[i]`` entries of each row of ``order [I, N]``, -1 padded: ``[I, wide]`` (None: ``max(keep)``)."""
    wide = max(keep, default=0) if wide is None else wide
    inside = torch.arange(wide, device=order.device) < torch.as_tensor(keep, device=order.device)[:, None]
    return order[:, :wide].masked_fill(~inside, -1)


def sort_padded(index: Tensor) -> Tensor:
    """``index [I, K]`` ascending with its -1 moved to the end."""
    last = torch.iinfo(index.dtype).max
    out = index.masked_fill(index < 0, last).sort(dim=1).values
    return out.masked_fill(out == last, -1)


def scatter_valid(into: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """``into [I, N]`` with ``values [I, K]`` written at ``index [I, K]``; entries of -1 are skipped."""
    spare = torch.cat([into, into.new_zeros(into.shape[0], 1)], dim=1)  # -1 lands in a column that is cut off
    return spare.scatter(1, index.where(index >= 0, into.shape[1]), values.to(into.dtype))[:, :-1]
