"""What every family shares: the budget's rows of each picture, their sizes and places for the forward that comes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtc.checkpoint.learned import load_learned
from vtc.integrations.vllm import ONLY_OURS, plain
from vtc.integrations.vllm.attention import weigh
from vtc.integrations.vllm.positions import LONGEST, as_if_whole, stretch
from vtc.integrations.vllm.processor import SPAN
from vtc.integrations.vllm.rows import SIDE, Kept, Picture, packed, reduced, unpacked
from vtc.integrations.vllm.settings import Settings
from vtc.integrations.vllm.span import Span
from vtc.methods.base import Method
from vtc.models.base import Place
from vtc.signals.base import Signal


class Reducing:
    """Mixed in before a model of vLLM. A family says ``place``, where the tokens of a picture stand; one whose decoder
    has no M-RoPE is ``InALine``."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        check_config(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model: Any = self
        self.settings = Settings.of(vllm_config.model_config.hf_config)
        self.method = with_learned(self.settings.build(), vllm_config.model_config)
        embeds = vllm_config.model_config.multimodal_config.enable_mm_embeds
        if embeds and (signals := self.method.signals(0)):
            raise ValueError(
                f"{self.settings.method} looks at {signals[0].words()}, and with --enable-mm-embeds pictures come that "
                "the tower never saw; leave it out, or use divprune+share"
            )
        self.watch()
        self.width = vllm_config.model_config.get_inputs_embeds_size()
        self.carried = self.width * (1 + getattr(self, "deepstack_num_level", 0))
        rows = vllm_config.scheduler_config.max_num_batched_tokens
        model.register_buffer("vtc_log_size", torch.zeros(rows, dtype=torch.float32), persistent=False)
        model.register_buffer("vtc_place", torch.zeros(3, rows, dtype=torch.int64), persistent=False)
        decoder = model.get_language_model()
        if self.method.share:
            weigh(decoder, model.vtc_log_size)
        pictures = vllm_config.model_config.multimodal_config.get_limit_per_prompt("image")
        longest = vllm_config.model_config.max_model_len
        stretch(decoder, min(64 * longest, longest + pictures * LONGEST))

    def watch(self) -> None:
        """Get ready for what the method looks at in the tower. Raises ``ValueError`` where that is not captured."""
        if signals := self.method.signals(0):
            name = plain(type(self).__name__)
            instead = "" if name in ONLY_OURS else f"name VtcBacked{name} in the config's architectures, or "
            raise ValueError(
                f"{self.settings.method} looks at {signals[0].words()}, which {type(self).__name__} does not show; "
                f"{instead}use a method that looks at features, such as divprune+share"
            )

    def signals(self, inputs: dict[str, Any]) -> dict[Signal, Tensor]:
        """What was captured of the pictures of ``inputs``, padded to the longest."""
        return {}

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        """Where the tokens ``features [N, D]`` of the picture, or video, ``index`` of ``inputs`` stand."""
        raise NotImplementedError

    def embed_multimodal(self, **inputs: Any) -> Any:
        """For each picture ``[K, D + channels]``; videos of most families stay as they are. A call
        holds either."""
        spans = inputs.pop(SPAN, None)
        found = super().embed_multimodal(**inputs)  # type: ignore[misc]
        if spans is None:
            return found
        pictures = [
            Picture(features, self.place(features, inputs, i), Span.of(span))
            for i, (features, span) in enumerate(zip(found, spans, strict=True))
        ]
        model: Any = self
        words = model.get_language_model().embed_input_ids
        kept = reduced(pictures, self.method, self.width, self.signals(inputs), words)
        places = [self.behind_first(one, inputs, i) for i, one in enumerate(kept)]
        sides = [torch.cat([one.size[:, None], place], dim=1) for one, place in zip(kept, places, strict=True)]
        return [
            torch.cat([one.features, packed(side, one.features.dtype)], dim=1)
            for one, side in zip(kept, sides, strict=True)
        ]

    def behind_first(self, kept: Kept, inputs: dict[str, Any], index: int) -> Tensor:
        """``[R, 3]``: how far behind the first token of the picture ``index`` of ``inputs`` each row stood."""
        return kept.grid

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Any = None
    ) -> Any:
        """Called once a step, on exactly the rows of the forward that follows."""
        model: Any = self
        model.vtc_log_size.zero_()
        model.vtc_place.zero_()
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            side = torch.cat([self._side(one) for one in multimodal_embeddings])
            rows = is_multimodal.nonzero()[:, 0].to(model.vtc_place.device)
            model.vtc_log_size[rows] = side[:, 0].clamp(min=1).float().log()
            model.vtc_place[:, rows] = side[:, 1:].T
            multimodal_embeddings = [one[:, : self.carried] for one in multimodal_embeddings]
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

    def _side(self, rows: Tensor) -> Tensor:
        if rows.shape[1] == self.carried:  # a video's
            return rows.new_zeros(len(rows), SIDE, dtype=torch.int64)
        return unpacked(rows[:, self.carried :])

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        model: Any = self
        if positions.ndim == 2:
            positions = positions + model.vtc_place[:, : positions.shape[1]]
        return super().forward(input_ids, self.own_positions(positions), *args, **kwargs)  # type: ignore[misc]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """But for what the method learned, which vLLM reads with every other file of the folder."""
        learned = set() if self.method.module is None else set(self.method.module.state_dict())
        kept = ((name, weight) for name, weight in weights if name not in learned)
        return super().load_weights(kept)  # type: ignore[misc]

    def own_positions(self, positions: Tensor) -> Tensor:
        return positions

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        return as_if_whole(input_tokens, mm_features, self.whole_positions)

    def whole_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Positions of an unreduced prompt, as the family makes them."""
        return super().get_mrope_input_positions(tokens, features)  # type: ignore[misc]


class InALine(Reducing):
    """Of a decoder without M-RoPE: tokens are counted. The table of positions is vLLM's, the rotation is not."""

    supports_mrope: ClassVar[Literal[True]] = True

    def behind_first(self, kept: Kept, inputs: dict[str, Any], index: int) -> Tensor:
        return kept.index[:, None].expand(-1, 3)

    def own_positions(self, positions: Tensor) -> Tensor:
        return positions[0] if positions.ndim == 2 else positions

    def whole_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        return torch.arange(len(tokens)).expand(3, -1), 0


class Ungraphed:
    """Mixed in between where vLLM captures the encoder in CUDA graphs, which would go past the reduction."""

    def get_encoder_cudagraph_config(self) -> Any:
        return replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]


def with_learned(method: Method, config: Any) -> Method:
    """With what it learned, from the folder that ``vtc.save`` wrote; no part of the model, whose weights vLLM counts.
    Raises ``CheckpointError`` where the folder has none."""
    module = method.build(SimpleNamespace(config=config.hf_config))  # type: ignore[arg-type]
    if module is None:
        return method
    load_learned(module, Path(config.model))
    return method.bound(module.to(config.dtype).eval())


def check_config(config: Any) -> None:
    """Raises ``ValueError`` for what would serve wrong answers."""
    if config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("pipeline parallelism: only the first rank sees what rows stand for; use tensor parallelism")
    if config.parallel_config.enable_dbo:
        raise ValueError("--enable-dbo: two batches at once would share what is known of one's rows; leave it out")
    if config.speculative_config is not None:
        raise ValueError("speculative decoding: the drafter does not know the rows' channels; leave it out")
    if config.lora_config is not None and config.lora_config.enable_tower_connector_lora:
        raise ValueError(
            "LoRA on tower or projector: vLLM counts their rows by the reduced ones; adapt the language model"
        )
    if config.model_config.multimodal_config.is_multimodal_pruning_enabled():
        raise ValueError("--video-pruning-rate cuts channels of its own off the rows; use it or vtc, not both")
    if not config.model_config.uses_mrope:
        raise ValueError(
            "rows would lose the positions they had in the whole picture: vLLM did not load the plug-in vtc; install "
            "vtc-vlm where vLLM runs, and leave VLLM_PLUGINS unset or name vtc in it"
        )
