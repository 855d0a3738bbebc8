"""Idefics3 and SmolVLM: features come one tensor a prompt, tiles first and the whole picture last."""

from __future__ import annotations

from typing import Any

from vtc.errors import UnsupportedModel
from vtc.models import register
from vtc.models.tiles import TilesThenGlobal


@register("idefics3")
@register("smolvlm")
class Idefics3(TilesThenGlobal):
    """Pixel shuffle makes one token of ``scale_factor**2`` patches; every tile is an entry."""

    def entries(self, output: Any) -> list[int]:
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            raise UnsupportedModel(
                f"{self.name}: features do not say how many tiles they are; pass what get_image_features returned"
            )
        tiles = states.shape[0]
        return [sum(super().entries(output)) // tiles] * tiles
