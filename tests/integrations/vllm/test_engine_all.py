"""Every answer of the test questions, at every budget of the tables. Run by ``make test-vllm-all``."""

from __future__ import annotations

import pytest

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
