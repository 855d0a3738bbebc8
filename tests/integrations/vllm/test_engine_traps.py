"""What vLLM would do wrongly without a word, each refused or mended; none of these starts an engine."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from vtc.integrations.vllm.attention import check
from vtc.integrations.vllm.families.llava import nested
from vtc.integrations.vllm.model import Ungraphed, check_config
from vtc.integrations.vllm.positions import as_if_whole, stretch
from vtc.integrations.vllm.processor import SPAN
from vtc.integrations.vllm.span import HERE, Span

PLAIN = dict(logits_soft_cap=None, alibi_slopes=None, sinks=None)
WRONG = {  # of a decoder layer's attention, with share
    "a cap": ({"impl": SimpleNamespace(**{**PLAIN, "logits_soft_cap": 30.0})}, "cap on its logits"),
    "slopes": ({"impl": SimpleNamespace(**{**PLAIN, "alibi_slopes": [0.5]})}, "without alibi_slopes"),
    "sinks": ({"impl": SimpleNamespace(**{**PLAIN, "sinks": torch.zeros(2)})}, "without sinks"),
    "a quantized cache": ({"kv_cache_dtype": "fp8"}, "plain KV cache and this one is fp8"),
    "another backend": ({"attn_backend": SimpleNamespace(get_name=lambda: "TRITON_ATTN")}, "vLLM chose TRITON_ATTN"),
}


@pytest.mark.parametrize(("wrong", "said"), WRONG.values(), ids=WRONG)
def test_attention_that_would_weigh_wrongly_is_refused(wrong, said):
    right = dict(impl=SimpleNamespace(**PLAIN), kv_cache_dtype="auto")
    right["attn_backend"] = SimpleNamespace(get_name=lambda: "CPU_ATTN")
    check(SimpleNamespace(**right))
    with pytest.raises(ValueError, match=said):
        check(SimpleNamespace(**{**right, **wrong}))


def config(pipeline=1, dbo=False, drafts=None, lora=None, pruning=False, mrope=True):
    return SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=pipeline, enable_dbo=dbo),
        speculative_config=drafts,
        lora_config=None if lora is None else SimpleNamespace(enable_tower_connector_lora=lora),
        model_config=SimpleNamespace(
            multimodal_config=SimpleNamespace(is_multimodal_pruning_enabled=lambda: pruning), uses_mrope=mrope
        ),
    )


# Of the engine. Drafts are asked for here alone: vLLM imports numba for them, and cannot start in that process again.
OPTIONS = {
    "stages": (dict(pipeline=2), "pipeline parallelism"),
    "two batches at once": (dict(dbo=True), "enable-dbo"),
    "drafts": (dict(drafts=object()), "speculative decoding"),
    "an adapter of the tower": (dict(lora=True), "LoRA on tower or projector"),
    "its own pruning of videos": (dict(pruning=True), "video-pruning-rate"),
    "a process without the plug-in": (dict(mrope=False), "did not load the plug-in"),
}


@pytest.mark.parametrize(("given", "said"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_would_serve_wrong_answers_are_refused(given, said):
    check_config(config(lora=False))
    with pytest.raises(ValueError, match=said):
        check_config(config(**given))


def rotary(kind=RotaryEmbedding):
    with set_current_vllm_config(VllmConfig()):
        return kind(16, 16, 32, 10000.0, True, torch.float32)


def test_rotary_tables_are_long_enough_for_whole_pictures():
    """vLLM reads past the end of a short one without an error."""
    table = rotary()
    first = table.cos_sin_cache.clone()
    stretch(torch.nn.ModuleList([table]), 100)
    assert len(table.cos_sin_cache) == 100 and torch.equal(table.cos_sin_cache[:32], first)


def test_a_rotary_table_of_a_rule_of_its_own_is_not_stretched():
    class Own(RotaryEmbedding):
        def _compute_cos_sin_cache(self):
            return super()._compute_cos_sin_cache() * 2

    with pytest.raises(ValueError, match="a rule of its own"):
        stretch(torch.nn.ModuleList([rotary(Own)]), 100)


def test_text_stands_where_it_would_behind_whole_pictures():
    @dataclasses.dataclass
    class Place:
        offset: int
        length: int
        is_embed: torch.Tensor | None = None

    @dataclasses.dataclass
    class One:
        mm_position: Place
        data: dict

    def of_ten(offset, rows):
        span = Span(rows, (HERE,) * 10)
        return One(Place(offset, rows), {SPAN: SimpleNamespace(data=span.data)})

    def in_a_line(tokens, features):
        return torch.arange(len(tokens)).expand(3, -1), 0

    tokens = [7, *[4] * 3, 8, *[4] * 2, 9]
    found, delta = as_if_whole(tokens, [of_ten(5, 2), of_ten(1, 3)], in_a_line)
    assert found[0].tolist() == [0, 1, 1, 1, 11, 12, 12, 22] and delta == 15
    found, _ = as_if_whole(tokens, [One(Place(1, 3), {})], in_a_line)
    assert found[0].tolist() == list(range(8)), "what is not reduced stays"


def test_names_of_a_flat_tower():
    assert nested("vision_tower.embeddings.weight") == "vision_tower.vision_model.embeddings.weight"
    same = ("vision_tower.vision_model.embeddings.weight", "model.vision_tower.vision_model.x", "language_model.x")
    assert [nested(name) for name in same] == list(same)


def test_graphs_of_the_encoder_are_off():
    """They would go past the reduction."""

    @dataclasses.dataclass
    class Said:
        modalities: list

    class Plain:
        def get_encoder_cudagraph_config(self):
            return Said(["image", "video"])

    class Ours(Ungraphed, Plain):
        pass

    assert Ours().get_encoder_cudagraph_config().modalities == []
