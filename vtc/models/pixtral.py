"""Pixtral's tower packs pictures of any size into one sequence: Mistral 3, and LLaVA models built on that tower."""

from __future__ import annotations

from torch import Tensor

from vtc.models import register
from vtc.models.base import Place, TowerRun
from vtc.models.generic import Generic, argument
from vtc.models.patches_to_tokens import block_mean, join_packed, raster_place
from vtc.signals.base import Signal


@register("mistral3")
@register("llava:pixtral")
class Pixtral(Generic):
    """One token a patch, or a block of ``spatial_merge_size`` patches a side (Mistral 3)."""

    def patch_grids(self, run: TowerRun) -> list[tuple[int, int]]:
        """(rows, columns) of patches of each picture."""
        size = self.base.config.vision_config.patch_size
        return [(int(height) // size, int(width) // size) for height, width in argument(run, "image_sizes")]

    @property
    def side(self) -> int:
        """Patches along the side of a token."""
        return getattr(self.base.config, "spatial_merge_size", 1)

    def places(self, run: TowerRun) -> list[Place]:
        return [raster_place(1, rows // self.side, columns // self.side) for rows, columns in self.patch_grids(run)]

    def spread(self, run: TowerRun, captured: list[Tensor], signal: Signal) -> list[Tensor]:
        grids = self.patch_grids(run)
        lengths = [rows * columns for rows, columns in grids]
        packed = join_packed(captured, lengths, received=False)  # a picture is one window: already its mean
        side = self.side
        return [
            block_mean(values[None], rows // side, columns // side, side)[0]
            for values, (rows, columns) in zip(packed.split(lengths), grids, strict=True)
        ]
