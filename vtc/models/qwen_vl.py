"""Qwen2-VL and its descendants: any size, patches stored merge unit by merge unit, one token a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.models import register
from vtc.models.base import Place, TowerRun
from vtc.models.generic import Generic, argument
from vtc.models.patches_to_tokens import raster_place, units_to_tokens
from vtc.signals.base import Signal
from vtc.signals.tower_groups import TowerGroups
from vtc.towers.units import Packed, Units


@register("qwen2_vl")
@register("qwen3_vl")
@register("qwen3_vl_moe")
@register("qwen3_5")
@register("qwen3_5_moe")
class QwenVL(Generic):
    """Patches come as (t, rows of units, columns of units, unit); four in a row make a token."""

    packs = True

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
        patches = self.thw(run).prod(dim=1).tolist()
        return units_to_tokens(captured, patches, self.side**2, self.window_order(run), signal.received)

    def window_order(self, run: TowerRun) -> Tensor | None:
        """``[tokens]``: the token that stands at each position of the tower's sequence; None: in order."""
        return None

    def parts(self, run: TowerRun) -> list[int]:
        """Units of each stretch of the tower's sequence that always attends to itself: frames."""
        return [h * w // self.side**2 for t, h, w in self.thw(run).tolist() for _ in range(t)]

    def tower_units(self, run: TowerRun) -> Units:
        return Packed(0, tuple(self.parts(run)), self.side**2)

    def tower_tokens(self, run: TowerRun, sequences: int, length: int) -> list[tuple[int, int]]:
        ends = torch.tensor(self.parts(run)).cumsum(0)
        tokens = self.thw(run).prod(dim=1) // self.side**2
        last = torch.searchsorted(ends, tokens.cumsum(0)) + 1
        return list(zip(last.diff(prepend=last.new_zeros(1)).tolist(), tokens.tolist(), strict=True))

    def groups(self, run: TowerRun, signal: TowerGroups) -> list[Tensor]:
        parts, order = self.parts(run), self.window_order(run)
        (owner,) = run.captured[signal]
        first = owner.shape[1] * torch.arange(len(owner), device=owner.device)[:, None]
        units = torch.cat([one[:n] for one, n in zip(owner + first, parts, strict=True)])
        if order is not None:
            units = units[order.argsort().to(units.device)]
        return list(units.split(run.counts))


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

    def windows(self, run: TowerRun) -> tuple[Tensor, Tensor]:
        """The order of units in the tower's sequence, and the patches at which its windows end, 0 first."""
        thw = self.thw(run)
        if hasattr(self.tower, "get_window_index"):  # transformers before 5.23
            order, ends = self.tower.get_window_index(thw)
            return torch.as_tensor(order), torch.as_tensor(ends)
        from transformers.vision_utils import get_vision_window_index

        config = self.tower.config
        return get_vision_window_index(thw, config.spatial_merge_size, config.window_size, config.patch_size)

    def window_order(self, run: TowerRun) -> Tensor:
        return self.windows(run)[0]

    def parts(self, run: TowerRun) -> list[int]:
        """Windows."""
        return [patches // self.side**2 for patches in self.windows(run)[1].diff().tolist() if patches]
