"""Video-LLaVA: images and videos have a tower each, the CLS token stays, and every frame is an entry."""

from __future__ import annotations

from torch import Tensor

from vtc.models import register
from vtc.models.base import TowerRun
from vtc.models.generic import Generic, pixels_of


@register("video_llava")
class VideoLlava(Generic):
    """A video's frames are consecutive entries of one picture."""

    towers = {"image": ("image_tower",), "video": ("video_tower",)}

    def tower_tokens(self, run: TowerRun, sequences: int, length: int) -> list[tuple[int, int]]:
        return super().tower_tokens(run, sequences, length) if run.modality == "image" else [(1, length)] * sequences

    def pictures(self, run: TowerRun, ids: Tensor | None) -> list[int]:
        if run.modality == "image":
            return super().pictures(run, ids)
        videos, frames = pixels_of(run).shape[:2]
        return [frames] * videos
