"""AnyRes: a small whole picture, then its tiles sewn together, unpadded, each row ended by a newline token.

LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision. Values travel through the model's own packing functions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtc.models import register
from vtc.models.base import Place, TowerRun
from vtc.models.generic import Generic, argument, pixels_of
from vtc.models.patches_to_tokens import join, raster, raster_place
from vtc.signals.base import Signal


@register("llava_next")
class LlavaNext(Generic):
    """Pictures only."""

    @property
    def tile_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of one tile."""
        config = self.base.config.vision_config
        side = config.image_size // config.patch_size
        return side, side

    def tiles(self, run: TowerRun) -> list[int]:
        """How many tiles the tower saw of each picture, the small whole picture included."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.base.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in argument(run, "image_sizes")
        ]

    def tower_tokens(self, run: TowerRun, sequences: int, length: int) -> list[tuple[int, int]]:
        return [(tiles, len(place.grid)) for tiles, place in zip(self.tiles(run), self.places(run), strict=True)]

    def pack(self, run: TowerRun, values: Tensor, newline: float) -> list[Tensor]:
        """``values [tiles, patches, d]`` as ``[n, d]`` on each picture's tokens, ``newline`` on its newline tokens."""
        packed = self.base.pack_image_features(
            values.split(self.tiles(run)),
            argument(run, "image_sizes"),
            image_newline=values.new_full(values.shape[-1:], newline),
            **self.packing(run),
        )
        return list(packed[0] if isinstance(packed, tuple) else packed)

    def packing(self, run: TowerRun) -> dict:
        """Further arguments of the model's packing function."""
        return {"vision_feature_select_strategy": "default"}

    def places(self, run: TowerRun) -> list[Place]:
        rows, columns = self.tile_grid
        blank = torch.zeros(sum(self.tiles(run)), rows * columns, 1)
        marked = self.pack(run, blank, newline=1.0)
        return [anyres_place(newline[:, 0] > 0.5, rows, columns) for newline in marked]

    def spread(self, run: TowerRun, captured: list[Tensor], signal: Signal) -> list[Tensor]:
        return self.pack(run, join(captured)[:, self.tower_cls :], newline=0.0)


class WithVideo(LlavaNext):
    """Videos too: every frame pooled, no tiles; ``tail`` newline tokens end a video."""

    tail = 0

    def pool(self, frames: Tensor) -> Tensor:
        """``frames [F, d, rows, columns]`` as ``[F, d, rows, columns]`` of tokens."""
        raise NotImplementedError

    def pooled(self, values: Tensor) -> Tensor:
        """``values [F, patches, d]`` as ``[F, d, rows, columns]`` of tokens."""
        return self.pool(values.transpose(1, 2).unflatten(2, self.tile_grid))

    def tower_tokens(self, run: TowerRun, sequences: int, length: int) -> list[tuple[int, int]]:
        if run.modality == "video":
            raise self.no_groups("pools the frames of a video, so no token has a group's value")
        return super().tower_tokens(run, sequences, length)

    def places(self, run: TowerRun) -> list[Place]:
        if run.modality == "image":
            return super().places(run)
        frames = pixels_of(run).shape[1]
        rows, columns = self.tile_grid
        rows, columns = self.pooled(torch.zeros(1, rows * columns, 1)).shape[2:]
        place = raster_place(frames, rows, columns)
        if self.tail:
            place = with_newline(place, (frames - 1, rows - 1, columns))
        return [place] * len(run.counts)

    def spread(self, run: TowerRun, captured: list[Tensor], signal: Signal) -> list[Tensor]:
        if run.modality == "image":
            return super().spread(run, captured, signal)
        tokens = self.pooled(join(captured)[:, self.tower_cls :]).flatten(2).transpose(1, 2)
        videos = tokens.unflatten(0, (len(run.counts), -1)).flatten(1, 2)
        return list(torch.nn.functional.pad(videos, (0, 0, 0, self.tail)))


@register("llava_next_video")
class LlavaNextVideo(WithVideo):
    """The model's pooler works on features of the tower's width; this is its average, whatever its mode."""

    def pool(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(frames, self.base.config.spatial_pool_stride)


@register("llava_onevision")
class LlavaOnevision(WithVideo):
    """Large pictures are interpolated after unpadding; several pictures in one prompt are not tiled."""

    tail = 1

    def tiles(self, run: TowerRun) -> list[int]:
        together = run.arguments.get("batch_num_images")
        if together is None:
            return super().tiles(run)
        alone = [int(n) == 1 for n in together for _ in range(int(n))]
        return [tiles if single else 1 for tiles, single in zip(super().tiles(run), alone, strict=True)]

    def packing(self, run: TowerRun) -> dict:
        ratio = run.arguments.get("vision_aspect_ratio")
        return {"vision_aspect_ratio": ratio or self.base.config.vision_aspect_ratio}

    def pool(self, frames: Tensor) -> Tensor:
        pooled = self.base.apply_pooling(frames.flatten(2).transpose(1, 2))
        height, width = (math.ceil(side / 2) for side in frames.shape[2:])
        return pooled.transpose(1, 2).unflatten(2, (height, width))


def anyres_place(newline: Tensor, rows: int, columns: int) -> Place:
    """The small whole picture (``rows`` by ``columns``, t = 0), then rows of tokens that end in a newline (t = 1)."""
    whole = raster_place(1, rows, columns)
    ends = newline[rows * columns :]
    if len(ends) == 1:  # not tiled: one newline ends the picture
        return with_newline(whole, (0, rows - 1, columns))
    height = int(ends.sum())
    grid = raster(1, height, len(ends) // height)
    grid[:, 0] = 1
    return Place(torch.cat([whole.grid, grid]), newline)


def with_newline(place: Place, at: tuple[int, int, int]) -> Place:
    """``place`` with one newline token more, at (t, y, x)."""
    grid = torch.cat([place.grid, place.grid.new_tensor([at])])
    return Place(grid, torch.cat([place.newline, place.newline.new_ones(1)]))
