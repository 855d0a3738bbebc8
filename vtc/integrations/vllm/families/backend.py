"""Every family that vLLM runs by transformers' own code (its Transformers modeling backend) and that vtc knows: where
tokens stand is what the family's file in ``vtc/models`` says."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.models import transformers as backend
from vllm.model_executor.models.transformers.multimodal import MultiModalMixin
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.engine.capture.attention_hook import hook_attention
from vtc.engine.capture.tower import TowerCapture
from vtc.integrations.vllm.model import InALine, Reducing
from vtc.integrations.vllm.processor import fewer
from vtc.models import family_of
from vtc.models.base import Place
from vtc.signals.base import Signal, TowerHook


class Backed:
    """Mixed in first: the model is transformers' own, with vLLM's attention in its decoder; the tower is as it was."""

    def watch(self) -> None:
        model: Any = self
        self.family = family_of(model.model)
        self.tower = TowerCapture(self.family)
        self.asked = model.method.signals(0)
        for signal in self.asked:
            layer = cast(TowerHook, signal.hook(0)).layer  # nothing else is served
            hook_attention(self.family.tower_attention(layer), partial(self.tower.capture, signal.source))
        self.features = model.model.get_image_features
        model.model.get_image_features = self.seen

    def seen(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call, what was captured meanwhile, and where its tokens stand."""
        given = inspect.signature(self.features).bind(*args, **kwargs).arguments
        output = self.tower.around("image", given, lambda: self.features(*args, **kwargs))
        run = self.tower.runs["image"]
        values = [self.family.align(run, signal.source) for signal in self.asked]
        self.entries += zip(self.family.places(run), *values, strict=True)
        return output

    def embed_multimodal(self, **inputs: Any) -> Any:
        self.entries: list[Any] = []
        self.values: dict[Signal, list[Tensor]] = {signal: [] for signal in self.asked}
        return super().embed_multimodal(**inputs)  # type: ignore[misc]

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        """Of the next entries that the tower gave, as many as make up the picture."""
        taken: list[Any] = []
        while sum(len(place.grid) for place, *_ in taken) < len(features):
            taken.append(self.entries.pop(0))
        places, *values = zip(*taken, strict=True)
        newline = torch.cat([one.newline for one in places])
        for signal, value in zip(self.asked, values, strict=True):
            joined = torch.cat(value)
            self.values[signal].append(joined[~newline.to(joined.device)])
        grids = [one.grid + torch.tensor([t, 0, 0]) * (one.grid >= 0) for t, one in enumerate(places)]
        return Place(torch.cat(grids), newline)

    def signals(self, inputs: dict[str, Any]) -> dict[Signal, Tensor]:
        return {signal: pad_sequence(values, batch_first=True) for signal, values in self.values.items()}


class Counted:
    """Mixed in between: vLLM's class takes M-RoPE's positions where there is a table of them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super(MultiModalMixin, self).forward(*args, **kwargs)  # type: ignore[misc]


processor = MULTIMODAL_REGISTRY.register_processor(
    fewer(backend.MultiModalProcessor),
    info=backend.MultiModalProcessingInfo,
    dummy_inputs=backend.MultiModalDummyInputsBuilder,
)


@processor
class VtcBackend(Backed, Reducing, backend.TransformersMultiModalForCausalLM):
    """Of a decoder with M-RoPE."""


@processor
class VtcBackendInALine(Backed, InALine, Counted, backend.TransformersMultiModalForCausalLM):
    """Of one without."""
