"""ToMe: tokens that are alike merge inside the vision tower, some in every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.methods.base import Method


@dataclass(frozen=True)
class ToMe(Method):
    """In every block, between attention and MLP, the ``r`` tokens most alike to another merge into it: tokens are dealt
    alternately to two sides, each of the first side is linked to the one of largest cosine on the second (keys, mean
    over heads), and the best r links merge, by size-weighted mean. Tokens of size s weigh s in attention (log s is
    added to their logits). Class, distillation and register tokens take no part.

    ``r`` (plain ViTs): one number for all blocks; a list, one for each (blocks past its end merge none); or a pair
    ``(r, inflect)``: r on average, from ``r (1 - inflect)`` in the first block to ``r (1 + inflect)`` in the last.
    None: merge evenly until ``budget`` patches are left.

    Token Merging: Your ViT But Faster, arXiv 2210.09461. Departs from the paper: after each block every token gets its
    group's value back, so what follows the tower sees the length and order it knows, and an average over tokens
    weighs groups by size.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    trains: ClassVar[bool] = True

    r: int | tuple[int | float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.r, list):  # frozen, so a tuple; a pair would be a schedule, and a third 0 changes nothing
            object.__setattr__(self, "r", (*self.r, 0) if len(self.r) == 2 else tuple(self.r))
        *rates, inflect = self.r if is_pair(self.r) else (*listed(self.r), 0)  # type: ignore[misc]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in rates):
            raise ValueError(f"tome: r={self.r!r}; give an int >= 0, a list of them, or a pair (r, inflect)")
        if isinstance(inflect, bool) or not isinstance(inflect, (int, float)) or not -1 <= inflect <= 1:
            raise ValueError(f"tome: inflect {inflect!r} is not in [-1, 1]; 1 merges ever more, -1 ever less, 0 evenly")
        super().__post_init__()

    def rates(self, blocks: int) -> list[int] | None:
        """How many tokens merge in each block; None: the budget says."""
        if self.r is None:
            return None
        if isinstance(self.r, tuple) and not is_pair(self.r):
            return [*map(int, self.r[:blocks]), *[0] * (blocks - len(self.r))]
        r, inflect = self.r if isinstance(self.r, tuple) else (self.r, 0)
        first = int(r * (1.0 - inflect))
        step = (2 * r - 2 * first) / max(1, blocks - 1)
        return [int(first + step * i) for i in range(blocks)]


def listed(r: object) -> tuple:
    return r if isinstance(r, tuple) else () if r is None else (r,)


def is_pair(r: object) -> bool:
    return isinstance(r, tuple) and len(r) == 2
