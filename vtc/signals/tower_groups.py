"""Which tokens merged inside the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.signals import register
from vtc.signals.base import Signal, View


@register("tower_groups")
@dataclass(frozen=True)
class TowerGroups(Signal):
    """``[I, N]`` int: the group each token is in after tokens merged inside the tower; those of one group came out of
    it alike. A method that asks for it has the tower merge (``vtc/engine/sites/tower_merging.py``), which also keeps
    the groups, so no attention is hooked."""

    def words(self) -> str:
        return "merges in the tower"

    def read(self, view: View) -> Tensor:
        return view.tower(self)
