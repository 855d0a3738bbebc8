"""Every family that vLLM runs by transformers' own code (its Transformers modeling backend) and that vtc knows: where
tokens stand is what the family's file in ``vtc/models`` says."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import transformers as backend
from vllm.model_executor.models.transformers.multimodal import MultiModalMixin
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import InALine, Reducing
from vtc.integrations.vllm.processor import fewer
from vtc.models import family_of
from vtc.models.base import Place, TowerRun


class Backed:
    """Mixed in first: the model is transformers' own, with vLLM's attention in it."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model: Any = self
        self.family = family_of(model.model)
        self.places: list[Place] = []
        self.features = model.model.get_image_features
        model.model.get_image_features = self.seen

    def seen(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call, and where its tokens stand."""
        output = self.features(*args, **kwargs)
        given = inspect.signature(self.features).bind(*args, **kwargs).arguments
        run = TowerRun("image", given, self.family.entries(output), output=output)
        self.places += self.family.places(run)
        return output

    def embed_multimodal(self, **inputs: Any) -> Any:
        self.places = []
        return super().embed_multimodal(**inputs)  # type: ignore[misc]

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        """Of the next entries that the tower gave, as many as make up the picture."""
        entries = []
        while sum(len(one.grid) for one in entries) < len(features):
            entries.append(self.places.pop(0))
        grids = [one.grid + torch.tensor([t, 0, 0]) * (one.grid >= 0) for t, one in enumerate(entries)]
        return Place(torch.cat(grids), torch.cat([one.newline for one in entries]))


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
