"""vLLM's processors with fewer placeholders a picture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig

from vtc.integrations.vllm.settings import KEY, REQUEST, Settings
from vtc.version import __version__

PIXELS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


def field(modality: str) -> str:
    """What carries the budget of each picture, or video, to the model."""
    return REQUEST if modality == "image" else f"{REQUEST}_{modality}"


def fewer(processor: type, modalities: Collection[str] = ("image",)) -> type:
    """A processor whose pictures, and what else is named, take the rows of their budget."""

    class Fewer(processor):  # type: ignore[misc, valid-type]
        def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> list[Any]:
            settings, budget = Settings.of(self.info.get_hf_config()), hf_processor_mm_kwargs.get(REQUEST)
            return [
                replace(one, replacement=shorter(one.replacement, settings, budget))
                if one.modality in modalities
                else one
                for one in super()._get_prompt_updates(mm_items, known(hf_processor_mm_kwargs), out_mm_kwargs)
            ]

        def _get_mm_hashes(self, inputs: Any) -> Any:
            """Also by method and budget: a store that engines share must not give one the rows that another kept."""
            settings = Settings.of(self.info.get_hf_config())
            own = {KEY: f"{settings.method} at {settings.budget}, vtc {__version__}"}
            own_inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, **own})
            return super()._get_mm_hashes(own_inputs)

        def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
            return super()._call_hf_processor(hf_data, known(hf_kwargs))

        def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
            data = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)
            settings = Settings.of(self.info.get_hf_config())
            budget = as_number(hf_processor_mm_kwargs.get(REQUEST, settings.budget))
            for modality in modalities:
                pixels, grid = PIXELS[modality]
                if pixels in data:
                    count = len(data[grid] if grid in data else data[pixels])
                    data[field(modality)] = torch.full((count,), budget, dtype=torch.float64)
            return data

        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> dict[str, Any]:
            own = {field(m): MultiModalFieldConfig.batched(m, keep_on_cpu=True) for m in modalities}
            return {**super()._get_mm_fields_config(hf_inputs, known(hf_processor_mm_kwargs)), **own}

    Fewer.__name__ = Fewer.__qualname__ = f"Fewer{processor.__name__}"
    return Fewer


def known(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only we know."""
    return {name: value for name, value in kwargs.items() if name != REQUEST}


def shorter(replacement: Callable[[int], Any], settings: Settings, budget: Any) -> Callable[[int], Any]:
    """The placeholders of one picture, as many as it keeps."""

    def ids(item: int) -> Any:
        found = replacement(item)
        return found[: settings.slots(len(found), budget)]

    return ids


def as_number(budget: Any) -> float:
    """A budget as one number that a batch carries: tokens above 0, a share below."""
    from vtc.tokens import Budget

    value = Budget.of(budget).value
    return float(value) if isinstance(value, int) else -value


def as_budget(number: float) -> int | float:
    return int(number) if number > 0 else -number
