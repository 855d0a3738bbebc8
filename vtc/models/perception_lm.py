"""PerceptionLM: a timm tower, whose attention is not transformers'; one row of ``pixel_values`` is one picture."""

from __future__ import annotations

from torch import Tensor

from vtc.models import register
from vtc.models.base import TowerRun
from vtc.models.generic import Merging, pixels_of


@register("perception_lm")
class PerceptionLM(Merging):
    """``pixel_values [I, tiles, C, H, W]``; average pooling makes one token of a block of patches."""

    def pictures(self, run: TowerRun, ids: Tensor | None) -> list[int]:
        pictures, tiles = pixels_of(run).shape[:2]
        return [tiles] * pictures

    def patch_grid(self, run: TowerRun) -> tuple[int, int]:
        height, width = self.tower.timm_model.patch_embed.patch_size
        pixels = pixels_of(run)
        return pixels.shape[-2] // height, pixels.shape[-1] // width
