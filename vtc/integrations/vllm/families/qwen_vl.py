"""Qwen2-VL and Qwen2.5-VL in vLLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import Reducing, Ungraphed
from vtc.integrations.vllm.processor import fewer
from vtc.integrations.vllm.rows import Kept
from vtc.integrations.vllm.tower import SeenPacked
from vtc.models.base import Place
from vtc.models.patches_to_tokens import raster_place, units_to_tokens
from vtc.signals.base import Signal

REDUCED = ("image", "video")


class ReducingQwen(Reducing, Ungraphed):
    """Mixed in before the Qwen-VL line: a token a merge unit, in reading order."""

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        t, h, w = grids(inputs)[index].tolist()
        merge = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        return raster_place(t, h // merge, w // merge)


class Seeing(ReducingQwen):
    """Mixed in before the two whose videos are reduced and whose tower is looked at."""

    def watch(self) -> None:
        model: Any = self
        signals = self.method.signals(0)
        if signals and model.use_data_parallel:
            raise ValueError(
                f"{self.settings.method} looks at {signals[0].words()}, and with --mm-encoder-tp-mode data each rank "
                "sees pictures of its own; leave it out, or use a method that looks at features, such as divprune"
            )
        self.seen = SeenPacked(model.visual.blocks, signals)

    def signals(self, inputs: dict[str, Any]) -> dict[Signal, Tensor]:
        visual: Any = self.visual  # type: ignore[attr-defined]
        thw, unit = grids(inputs), visual.spatial_merge_size**2
        patches, order = thw.prod(dim=1).tolist(), self.order(thw)
        found = {}
        for signal, raw in self.seen.captured.items():
            values = units_to_tokens(raw, patches, unit, order, signal.received)
            padded = pad_sequence(values, batch_first=True)
            found[signal] = padded[..., 0] if raw[0].dim() == 2 else padded
        return found

    def order(self, thw: Tensor) -> Tensor | None:
        """``[tokens]``: the token at each position of the tower's sequence; None: in order."""
        visual: Any = self.visual  # type: ignore[attr-defined]
        if not hasattr(visual, "get_window_index_thw"):
            return None
        found, before = [], 0
        for t, h, w in thw.tolist():
            found.append(visual.get_window_index_thw(t, h, w)[0] + before)
            before += len(found[-1])
        return torch.cat(found)

    def behind_first(self, kept: Kept, inputs: dict[str, Any], index: int) -> Tensor:
        """Of Qwen2.5-VL's videos by the seconds that a step takes."""
        seconds = inputs.get("second_per_grid_ts")
        if "video_grid_thw" not in inputs or seconds is None:
            return kept.grid
        by_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)  # type: ignore[attr-defined]
        step = torch.as_tensor(seconds).flatten().tolist()[index]
        return torch.cat([(kept.grid[:, :1] * (step * by_second)).long(), kept.grid[:, 1:]], dim=1)


def grids(inputs: dict[str, Any]) -> Tensor:
    """``[I, 3]``: patches of each picture, or video, of one call."""
    return inputs["image_grid_thw"] if "image_grid_thw" in inputs else inputs["video_grid_thw"]


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen2_vl.Qwen2VLMultiModalProcessor, REDUCED),
    info=qwen2_vl.Qwen2VLProcessingInfo,
    dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder,
)
class VtcQwen2VLForConditionalGeneration(Seeing, qwen2_vl.Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen2_5_vl.Qwen2_5_VLMultiModalProcessor, REDUCED),
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class VtcQwen2_5_VLForConditionalGeneration(Seeing, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    pass
