"""The probability of an answer: the product over its tokens, as the model itself gives it when asked again."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.eval.tiny import picture
from vtc.eval.asking.confidence import Chosen
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Benchmark, Sample


@pytest.fixture
def answerer(vlm):
    return Answerer(*vlm, Benchmark.frame, max_new_tokens=3)


def batch(answerer, count):
    questions = ["what is the color of the shape ?", "what ?", "is the shape left ?", "one or two ?"][:count]
    return answerer.inputs(
        [Asked(Sample("x", q), [picture(n)], answerer.prompt(q, 1)) for n, q in enumerate(questions)]
    )


def test_it_is_the_product_of_the_models_own_probabilities(answerer):
    inputs = batch(answerer, 4)
    scored = answerer.model.generate(
        **inputs, do_sample=False, max_new_tokens=3, output_scores=True, return_dict_in_generate=True
    )
    new = scored.sequences[:, inputs["input_ids"].shape[1] :]
    chosen = torch.stack([s.softmax(-1).gather(1, t[:, None])[:, 0] for s, t in zip(scored.scores, new.T, strict=True)])
    assert [p for _, p in answerer.replies(inputs)] == pytest.approx(chosen.prod(0).tolist(), abs=1e-4)
    assert 0 < min(chosen.prod(0)) < 0.999, "a control: not all certain"


@pytest.mark.parametrize("budget", [None, 4])
def test_listening_changes_no_answer(answerer, budget):
    inputs = batch(answerer, 4)
    if budget is None:
        assert answerer.generate(inputs).equal(answerer.generate(inputs, logits_processor=[Chosen()]))
    else:
        with vtc.patched(answerer.model, "random", budget=budget):
            assert answerer.generate(inputs).equal(answerer.generate(inputs, logits_processor=[Chosen()]))


def test_padding_after_the_end_does_not_count():
    chosen = Chosen()
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    for _ in range(3):
        assert chosen(None, logits.expand(3, -1)).equal(logits.expand(3, -1))
    new = torch.tensor([[2, 0, 0], [5, 9, 0], [5, 6, 7]])
    assert chosen.probability(new, 2) == [0.7, 0.343, 0.343]
    assert chosen.probability(new, [2, 9]) == [0.7, 0.49, 0.343]
    assert chosen.probability(new, None) == [0.343] * 3
