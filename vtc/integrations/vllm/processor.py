"""vLLM's processors with fewer placeholders a picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem

from vtc.integrations.vllm.settings import KEY, REQUEST, Settings
from vtc.integrations.vllm.span import cut
from vtc.version import __version__

SPAN = "vtc_span"  # a field of each picture, or video: what stood in its place


def fewer(processor: type, modalities: Collection[str] = ("image",)) -> type:
    """A processor whose pictures, and what else is named, take the rows of their budget."""

    class Fewer(processor):  # type: ignore[misc, valid-type]
        def _get_mm_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
            found = super()._get_mm_prompt_updates(mm_items, known(hf_processor_mm_kwargs), out_mm_kwargs)
            settings, budget = Settings.of(self.info.get_hf_config()), hf_processor_mm_kwargs.get(REQUEST)
            for modality in modalities:
                for item, updates in zip(out_mm_kwargs.get(modality, ()), found.get(modality, ()), strict=True):
                    content, span = cut(updates[0].content, lambda count: settings.slots(count, budget))
                    updates[:] = [updates[0].with_content(content)]
                    item[SPAN] = MultiModalFieldElem(span.data, MultiModalBatchedField(keep_on_cpu=True))
            return found

        def _get_mm_hashes(self, inputs: Any) -> Any:
            """Also by method and budget: a store that engines share must not give one the rows that another kept."""
            settings = Settings.of(self.info.get_hf_config())
            own = {KEY: f"{settings.method} at {settings.budget}, vtc {__version__}"}
            own_inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, **own})
            return super()._get_mm_hashes(own_inputs)

        def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
            return super()._apply_hf_processor_main(mm_items, known(hf_kwargs))

        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
            return super()._get_mm_fields_config(hf_inputs, known(hf_processor_mm_kwargs))

    Fewer.__name__ = Fewer.__qualname__ = f"Fewer{processor.__name__}"
    return Fewer


def known(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only we know."""
    return {name: value for name, value in kwargs.items() if name != REQUEST}
