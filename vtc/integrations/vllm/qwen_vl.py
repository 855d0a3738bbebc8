"""Qwen2-VL and Qwen2.5-VL in vLLM."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import Reducing
from vtc.integrations.vllm.processor import fewer
from vtc.integrations.vllm.tower import SeenPacked
from vtc.models.patches_to_tokens import units_to_tokens
from vtc.signals.base import Signal


class ReducingQwen(Reducing):
    """Mixed in before both."""

    modalities = ("image", "video")

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model, signals = cast(Any, self), self.method.signals(0)
        if signals and model.use_data_parallel:
            raise ValueError(
                f"{self.settings.method} looks at {signals[0].words()}, and with --mm-encoder-tp-mode data each rank "
                "sees pictures of its own; leave it out, or use a method that looks at features, such as divprune"
            )
        self.seen = SeenPacked(model.visual.blocks, signals)

    def grid(self, thw: Any) -> tuple[int, int, int]:
        t, h, w = (int(n) for n in thw)
        merge = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        return t, h // merge, w // merge

    def _process_image_input(self, image_input: Any) -> list[Tensor]:
        pictures = list(super()._process_image_input(image_input))  # type: ignore[misc]
        thw = image_input["image_grid_thw"]
        places = [torch.cartesian_prod(*map(torch.arange, self.grid(one))).view(-1, 3) for one in thw.tolist()]
        return self.reduce(pictures, places, places, self.signals(thw))

    def _process_video_input(self, video_input: Any) -> list[Tensor]:
        videos = list(super()._process_video_input(video_input))  # type: ignore[misc]
        thw, seconds = video_input["video_grid_thw"], video_input.get("second_per_grid_ts")
        grids = [torch.cartesian_prod(*map(torch.arange, self.grid(one))).view(-1, 3) for one in thw.tolist()]
        steps = [1.0] * len(grids) if seconds is None else torch.as_tensor(seconds).flatten().tolist()
        by_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)  # type: ignore[attr-defined]
        places = [
            torch.cat([(grid[:, :1] * (step * by_second)).long(), grid[:, 1:]], dim=1)
            for grid, step in zip(grids, steps, strict=True)
        ]
        return self.reduce(videos, places, grids, self.signals(thw), "video")

    def signals(self, thw: Tensor) -> dict[Signal, Tensor]:
        """``[I, N]`` or ``[I, N, d]`` on the tokens of the pictures that the tower just ran on."""
        visual: Any = self.visual  # type: ignore[attr-defined]
        patches, unit, order = thw.prod(dim=1).tolist(), visual.spatial_merge_size**2, self.order(thw)
        found = {}
        for signal, raw in self.seen.captured.items():
            values = units_to_tokens(raw, patches, unit, order, signal.received)
            padded = pad_sequence(values, batch_first=True)
            found[signal] = padded[..., 0] if raw[0].dim() == 2 else padded
        return found

    def order(self, thw: Tensor) -> Tensor | None:
        """``[tokens]``: the token at each position of the tower's sequence."""
        visual: Any = self.visual  # type: ignore[attr-defined]
        if not hasattr(visual, "get_window_index_thw"):
            return None
        found, before = [], 0
        for t, h, w in thw.tolist():
            found.append(visual.get_window_index_thw(t, h, w)[0] + before)
            before += len(found[-1])
        return torch.cat(found)

    def count(self, feature: Any) -> int:
        return math.prod(self.grid(feature.data[f"{feature.modality}_grid_thw"].data.tolist()))

    def whole_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        return super(Reducing, self).get_mrope_input_positions(tokens, features)  # type: ignore[misc]

    def get_encoder_cudagraph_config(self) -> Any:
        """Graphs of the encoder would go past the reduction."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen2_vl.Qwen2VLMultiModalProcessor, ReducingQwen.modalities),
    info=qwen2_vl.Qwen2VLProcessingInfo,
    dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder,
)
class VtcQwen2VLForConditionalGeneration(ReducingQwen, qwen2_vl.Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen2_5_vl.Qwen2_5_VLMultiModalProcessor, ReducingQwen.modalities),
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class VtcQwen2_5_VLForConditionalGeneration(ReducingQwen, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    pass
