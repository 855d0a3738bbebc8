"""A family found by inspection: tiles of one size whose patches become tokens in reading order, one or a block each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import UnsupportedModel
from vtc.models import register, registry
from vtc.models.base import Family, Place, TowerRun
from vtc.models.inspection import (
    TOWERS,
    attention_layers,
    attention_of,
    base_of,
    decoder_of,
    has_resampler,
    layers_of,
    special_tokens,
    token_ids_of,
    tower_of,
    unwrapped,
)
from vtc.models.patches_to_tokens import block_mean, join, patch_codes, patches_of, raster_place, unknown_place
from vtc.signals.base import Signal
from vtc.signals.tower_groups import TowerGroups
from vtc.towers.blocks import KNOWN, Block
from vtc.towers.units import Blocks, Units


@register("llava")
@register("vipllava")
@register("paligemma")
@register("deepseek_vl")
@register("janus")
class Generic(Family):
    """One token a patch. ``merging`` families make one token of a square block of patches."""

    merging = False
    packs = False  # all pictures into one sequence of the tower
    towers: dict[str, tuple[str, ...]] = {"image": TOWERS, "video": TOWERS}  # where each modality's tower may be
    tower: Any  # the images' tower

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.base = base_of(unwrapped(model))
        self.name = self.base.config.model_type
        self.token_ids = token_ids_of(self.base.config)
        self.decoder = decoder_of(self.base)
        self.layers = self.decoder.layers
        self._decoder_attention = [attention_of(layer) for layer in self.layers]
        self.hybrid = any(module is None for module in self._decoder_attention)
        towers = {modality: tower_of(self.base, names) for modality, names in self.towers.items()}
        self._tower_attention = {modality: attention_layers(tower) for modality, tower in towers.items()}
        self.tower = towers["image"]
        self.tower_cls = special_tokens(self.tower)
        self.resampled = has_resampler(self.base, [*towers.values(), self.decoder])
        self.tower_layers = 0 if self.resampled else len(self._tower_attention["image"])

    def decoder_attention(self, layer: int) -> nn.Module:
        module = self._decoder_attention[layer]
        if module is None:
            raise UnsupportedModel(
                f"{self.name}: decoder layer {layer} has no attention of its own (recurrent); reduce at the decoder's "
                "input (layer 0) instead"
            )
        return module

    def attends(self, layer: int) -> bool:
        return self._decoder_attention[layer] is not None

    def tower_attention(self, layer: int | float, modality: str = "image") -> nn.Module:
        found = self._tower_attention[modality]
        if self.resampled:
            raise self.no_signal("no patch of its tower belongs to one token (a Q-former or resampler mixes them)")
        if not found:
            raise self.no_signal(f"{type(self.tower).__name__} does not run transformers' attention interface")
        if isinstance(layer, float):
            layer = min(int(layer * len(found) + 0.5), len(found) - 1)
        if not -len(found) <= layer < len(found):
            raise UnsupportedModel(
                f"{self.name}: its tower has {len(found)} layers, so there is no layer {layer}; choose one in "
                f"[{-len(found)}, {len(found) - 1}]"
            )
        return found[layer]

    def tower_blocks(self, modality: str = "image") -> list[Block]:
        if self.resampled:
            raise self.no_groups("makes one token of several patches, so no token has a group's value")
        tower = tower_of(self.base, self.towers[modality])
        layers = layers_of(tower, tuple(KNOWN))
        if not layers:
            raise self.no_groups(f"has a {type(tower).__name__}, whose layers are not known here")
        blocks = [KNOWN[type(layer).__name__](layer) for layer in layers]
        if blocks[0].weigh is not None and not self.packs:
            raise self.no_groups("packs pictures into one sequence, of which only the Qwen-VL line's is known here")
        return blocks

    def tower_units(self, run: TowerRun) -> Units:
        return Units(self.tower_cls)

    def read_blocks(self, run: TowerRun, blocks: int) -> int:
        for name in ("vision_feature_layer", "vision_feature_layers"):
            given = run.arguments.get(name)
            layers = getattr(self.base.config, name, None) if given is None else given
            if layers is not None:  # of hidden states: 0 and -1 - blocks are the embeddings
                return max(
                    layer % (blocks + 1) for layer in (layers if isinstance(layers, (list, tuple)) else [layers])
                )
        return blocks

    def tower_tokens(self, run: TowerRun, sequences: int, length: int) -> list[tuple[int, int]]:
        given = run.arguments.get("vision_feature_select_strategy")
        whole = (given or getattr(self.base.config, "vision_feature_select_strategy", "default")) == "full"
        return [(1, length if whole else length - self.tower_cls)] * sequences

    def entries(self, output: Any) -> list[int]:
        features = getattr(output, "pooler_output", output)
        if isinstance(features, (list, tuple)):
            return [entry.shape[:-1].numel() for entry in features]
        if features.dim() >= 3:  # [I, n, D], or [I, rows, columns, D] in older versions
            return [features.shape[1:-1].numel()] * features.shape[0]
        raise UnsupportedModel(
            f"{self.name}: picture features of shape {tuple(features.shape)} do not say where one picture ends; "
            "update transformers (5.8 or later splits them)"
        )

    def pictures(self, run: TowerRun, ids: Tensor | None) -> list[int]:
        prompts = 1 if ids is None else int((ids == self.token_ids[run.modality]).any(dim=1).sum())
        if self.name not in registry and len(run.counts) > prompts:
            raise UnsupportedModel(
                f"{self.name} is found by inspection, which cannot tell {len(run.counts)} pictures from tiles of one; "
                f'if each is a picture, say so: vtc.models.register("{self.name}")(vtc.models.generic.Generic)'
            )
        return [1] * len(run.counts)

    def places(self, run: TowerRun) -> list[Place]:
        return [self.place(run, count) for count in run.counts]

    def place(self, run: TowerRun, count: int) -> Place:
        """One entry of ``count`` tokens."""
        shape = self.token_grid(run, count)
        if shape is None:
            return unknown_place(count)
        rows, columns, _ = shape
        return raster_place(1, rows, columns, specials=count - rows * columns)

    def align(self, run: TowerRun, signal: Signal) -> list[Tensor]:
        if isinstance(signal, TowerGroups):
            return self.groups(run, signal)
        values = self.spread(run, run.captured[signal], signal)
        if [len(entry) for entry in values] != run.counts:
            raise self.no_signal(f"{[len(entry) for entry in values]} tower values do not fit {run.counts} tokens")
        flat = run.captured[signal][0].dim() == 2
        return [entry.squeeze(-1) if flat else entry for entry in values]

    def groups(self, run: TowerRun, signal: TowerGroups) -> list[Tensor]:
        """The group of each entry's tokens, different numbers for different sequences; newlines: -1."""
        owner = torch.cat(run.captured[signal])
        codes = patch_codes(owner.shape)
        patches = [patches_of(values, codes) for values in self.spread(run, [codes[..., None]], signal)]
        if any(bool(((p < 0) & ~place.newline).any()) for p, place in zip(patches, self.places(run), strict=True)):
            raise self.no_groups(f"makes one token of several patches of this {run.modality}")
        first = owner.shape[1] * torch.arange(len(owner), device=owner.device)[:, None]
        groups = (owner + first).flatten()
        return [groups[p.clamp(min=0).to(groups.device)].where(p.to(groups.device) >= 0, -1) for p in patches]

    def spread(self, run: TowerRun, captured: list[Tensor], signal: Signal) -> list[Tensor]:
        """Raw tower values as ``[n, d]`` on the tokens of each entry."""
        values = join(captured)
        patches = values[:, self.tower_cls :]
        shape = self.token_grid(run, run.counts[0])
        if shape is None:
            raise self.no_signal("which patches of its tower belong to which token is not known")
        rows, columns, side = shape
        if patches.shape[1] != rows * columns * side**2:
            raise self.no_signal(f"its tower has {patches.shape[1]} patches, not {rows * side}x{columns * side}")
        if run.counts[0] != rows * columns:  # the special tokens became tokens too
            return list(values)
        return list(block_mean(patches, rows, columns, side))

    def token_grid(self, run: TowerRun, count: int) -> tuple[int, int, int] | None:
        """(rows, columns, side of a block of patches) of an entry of ``count`` tokens, or None where unknown."""
        patches = self.patch_grid(run)
        if patches is None or self.resampled:
            return None
        height, width = patches
        if count == height * width + self.tower_cls:
            return height, width, 1
        for side in range(1, (min(height, width) if self.merging else 1) + 1):
            fits = height % side == 0 and width % side == 0
            if fits and count == (height // side) * (width // side):
                return height // side, width // side, side
        return None

    def patch_grid(self, run: TowerRun) -> tuple[int, int] | None:
        """(rows, columns) of the tower's patches in one tile, or None where the tower has no patches."""
        size = getattr(self.base.config.vision_config, "patch_size", None)
        if size is None or not run.arguments:  # features computed elsewhere: only their lengths are known
            return None
        pixels = pixels_of(run)
        if pixels.dim() < 4:
            return None
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return pixels.shape[-2] // height, pixels.shape[-1] // width

    def no_groups(self, reason: str) -> UnsupportedModel:
        """The error where tokens cannot merge inside the tower."""
        return UnsupportedModel(
            f"{self.name} {reason}; use bipartite, which merges the same way at the decoder's input"
        )

    def no_signal(self, reason: str) -> UnsupportedModel:
        """The error of a method that wants to see the tower where it cannot."""
        return UnsupportedModel(
            f"{self.name} gives no vision-tower signal: {reason}; use a method that reads features or the decoder's "
            "attention instead, such as divprune, bipartite, random or fastv"
        )


@register("gemma3")
@register("aria")
class Merging(Generic):
    """One token a square block of patches, in reading order (pooling, pixel shuffle)."""

    merging = True

    def side(self, patches: int) -> int | None:
        """Of ``patches`` along a tile's side, how many form the side of a token; None where the config says nothing."""
        config = self.base.config
        if hasattr(config, "downsample_ratio"):
            return round(1 / config.downsample_ratio)
        if hasattr(config, "mm_tokens_per_image"):
            return patches // math.isqrt(config.mm_tokens_per_image)
        return getattr(config, "scale_factor", getattr(config, "downsample_factor", None))

    def tower_units(self, run: TowerRun) -> Units:
        grid = self.patch_grid(run)
        side = None if grid is None else self.side(grid[0])
        if grid is None or side is None or grid[0] % side or grid[1] % side:
            raise self.no_groups("does not say which patches of its tower become one token")
        return Blocks(self.tower_cls, grid[0] // side, grid[1] // side, side)

    def groups(self, run: TowerRun, signal: TowerGroups) -> list[Tensor]:
        owner = torch.cat(run.captured[signal])
        first = owner.shape[1] * torch.arange(len(owner), device=owner.device)[:, None]
        units = (owner + first)[:, self.tower_cls :]
        if [len(one) for one in units] != run.counts:
            raise self.no_groups(f"makes {run.counts} tokens of {units.shape[1]} units a tile")
        return list(units)


def argument(run: TowerRun, *names: str) -> Any:
    """The first of the run's arguments ``names`` that was given."""
    for name in names:
        if run.arguments.get(name) is not None:
            return run.arguments[name]
    raise UnsupportedModel(
        f"the {run.modality} features came without {names[0]}, so where their tokens stand is not known; pass pictures "
        "as pixels to the patched model, not as features computed before"
    )


def pixels_of(run: TowerRun) -> Tensor:
    """The pictures or videos that the tower saw."""
    return argument(run, "pixel_values", "pixel_values_images", "pixel_values_videos")
