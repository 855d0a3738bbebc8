"""vLLM with the plug-in answers as the patched model does in transformers. Run by ``make test-vllm``."""

from __future__ import annotations

import pytest

from tests.integrations.vllm.engines import engine, in_transformers, in_vllm, path_of, texts
from vtc.eval import scenes

KINDS = {"llava": "LlavaForConditionalGeneration", "qwen": "Qwen2_5_VLForConditionalGeneration"}
QUESTIONS = list(scenes.samples("test", 60))


@pytest.mark.parametrize("method", ["divprune", "divprune+share"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answers_as_in_transformers(kind, method):
    with engine(path_of(kind), KINDS[kind], method, 24) as llm:
        outputs = in_vllm(llm, QUESTIONS)
    assert texts(outputs) == in_transformers(path_of(kind), QUESTIONS, method, 24)
