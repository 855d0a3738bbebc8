"""Every answer of the test questions, at every budget of the tables. Run by ``make test-vllm-all``."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.integrations.vllm.engines import KINDS, engine, in_transformers, in_vllm, path_of, rows, texts
from vtc.eval import scenes

pytestmark = pytest.mark.slow
ASKED = [(sample.prompt, [sample.image]) for sample in scenes.samples("test", 300)]


@pytest.mark.parametrize("budget", [49, 24, 12])
@pytest.mark.parametrize("method", ["divprune", "divprune+share"])
@pytest.mark.parametrize("kind", KINDS)
def test_300_questions(kind, method, budget):
    with engine(path_of(kind), KINDS[kind], method, budget) as llm:
        outputs = in_vllm(llm, ASKED)
    assert rows(outputs) == [budget] * len(ASKED)
    assert texts(outputs) == in_transformers(path_of(kind), ASKED, method, budget)


def test_no_tensor_is_kept_of_2000_requests():
    """Every tensor that is alive in the engine's process, by its bytes: exact, where resident memory is not."""
    asked = [(sample.prompt, [sample.image]) for sample in scenes.samples("test", 500)]
    with engine(path_of("llava"), KINDS["llava"], "divprune+share", 24, mm_processor_cache_gb=0) as llm:
        in_vllm(llm, asked)
        before = alive()
        for _ in range(4):
            in_vllm(llm, asked)
        assert alive() - before < 24 * 136 * 4, "not even the rows of one picture"


def alive():
    gc.collect()
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)
    }
    return sum(held.values())
