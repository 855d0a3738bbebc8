"""Qwen2-VL and its descendants: any size, patches stored merge unit by merge unit, one token a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.models import register
from vtc.models.base import Place, TowerRun
from vtc.models.generic import Generic, argument
from vtc.models.maps import join_packed, raster_place
from vtc.signals import Signal, TowerAttention


@register("qwen2_vl")
@register("qwen3_vl")
@register("qwen3_vl_moe")
@register("qwen3_5")
@register("qwen3_5_moe")
class QwenVL(Generic):
    """Patches come as (t, rows of units, columns of units, unit); four in a row make a token."""

    def thw(self, run: TowerRun) -> Tensor:
        """``[I, 3]`` patches along time, height and width, on the CPU."""
        return argument(run, f"{run.modality}_grid_thw", "image_grid_thw").cpu()  # Qwen3-VL's videos pass as images

    @property
    def side(self) -> int:
        """Patches along the side of a token."""
        return self.tower.spatial_merge_size

    def places(self, run: TowerRun) -> list[Place]:
        return [raster_place(t, h // self.side, w // self.side) for t, h, w in self.thw(run).tolist()]

    def spread(self, run: TowerRun, captured: list[Tensor], signal: Signal) -> list[Tensor]:
        order = self.window_order(run)
        lengths = self.thw(run).prod(dim=1)
        unit = self.side**2
        packed = join_packed(captured, lengths.tolist(), received=isinstance(signal, TowerAttention))
        tokens = packed.unflatten(0, (-1, unit)).mean(dim=1)
        if order is not None:
            tokens = tokens[order.argsort().to(tokens.device)]
        return list(tokens.split((lengths // unit).tolist()))

    def window_order(self, run: TowerRun) -> Tensor | None:
        """``[tokens]``: the token that stands at each position of the tower's sequence; None: in order."""
        return None


@register("glm4v")
@register("glm4v_moe")
@register("glm46v")
class Glm4v(QwenVL):
    """Videos use the image placeholder."""

    def __init__(self, model):
        super().__init__(model)
        self.token_ids = dict.fromkeys(("image", "video"), self.token_ids["image"])


@register("qwen2_5_vl")
class Qwen25VL(QwenVL):
    """The tower reorders units into windows, picture by picture, and undoes it after its merger."""

    def window_order(self, run: TowerRun) -> Tensor:
        thw = self.thw(run)
        if hasattr(self.tower, "get_window_index"):  # transformers before 5.23
            return torch.as_tensor(self.tower.get_window_index(thw)[0])
        from transformers.vision_utils import get_vision_window_index

        config = self.tower.config
        order, _ = get_vision_window_index(thw, config.spatial_merge_size, config.window_size, config.patch_size)
        return order
