"""A generation that is stopped anywhere leaves nothing behind; without a cache it writes what it does with one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache
from transformers.generation import StoppingCriteria, StoppingCriteriaList

import vtc
from tests import zoo
from tests.support import METHODS, generate, kept, logits

VTC = str(Path(vtc.__file__).parent)
# Of each kind one: by attention as it ran; at the input, ahead, by raters, in the tower, of keys, of layers, learned.
SLOW = ("divprune+share", "pyramiddrop", "sparsevlm", "tome", "act", "router", "perceiver", "random:rest=[1,2]")
SPECS = ["fastv", *(pytest.param(spec, marks=pytest.mark.slow) for spec in SLOW)]
TOGETHER = 8  # stops between two looks at what the model answers


class Stopped(BaseException):
    """As Ctrl-C is."""


def calls(run: Callable[[], object]) -> list[tuple[str, int]]:
    """Each call into the library while ``run`` runs: the function, and how many of its calls came before."""
    seen: dict[str, int] = {}
    order = []

    def profile(frame, event, _):
        if name := called(frame, event):
            order.append((name, seen.setdefault(name, 0)))
            seen[name] += 1

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return order


def called(frame, event: str) -> str | None:
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(VTC):
        return None
    resumed = code.co_flags & 0x20 and frame.f_lasti > 10  # a generator goes on: no new call
    return None if resumed else f"{code.co_filename}:{code.co_firstlineno}"


def stop_at(point: tuple[str, int], run: Callable[[], object]) -> None:
    left = point[1]

    def profile(frame, event, _):
        nonlocal left
        if called(frame, event) == point[0]:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Stopped(point)

    sys.setprofile(profile)
    try:
        run()
    except Stopped:
        return
    finally:
        sys.setprofile(None)
    pytest.fail(f"{point} was not reached")


@pytest.mark.parametrize("spec", SPECS)
def test_stopped_at_every_call_in_turn(spec, model_of):
    """At the first and at the last call of every function of the library that a generation runs."""
    from vtc.methods._spelling import build

    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    plain = logits(model, prompt)
    vtc.patch(model, build(spec), budget=0.4)

    def run() -> torch.Tensor:
        return torch.stack(generate(model, prompt, tokens=3).logits)

    want = run()
    points = calls(run)
    ends = dict.fromkeys([*{name: (name, n) for name, n in reversed(points)}.values(), *dict(points).items()])
    assert len(ends) > 50, "the whole engine was seen"
    for first in range(0, len(ends), TOGETHER):
        points = list(ends)[first : first + TOGETHER]
        for point in points:
            stop_at(point, run)
        assert torch.equal(run(), want), points
    vtc.unpatch(model)
    assert torch.equal(logits(model, prompt), plain)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_cache_the_same_words(method, model_of):
    """Each step brings the picture and all that was written: the prompt ends where it was given."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4)
    words = {"tokens": 6, "suppress_tokens": [model.config.image_token_id]}  # which would ask for a picture of its own
    want = generate(model, prompt, **words)
    tokens = kept(model)
    got = generate(model, prompt, **words, use_cache=False)
    assert torch.equal(got.sequences, want.sequences)
    assert kept(model) == tokens


class After(StoppingCriteria):
    def __init__(self, words: int):
        self.words = words

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.words)


@pytest.mark.parametrize("spec", ["fastv", "act", "router", "divprune+share"])
def test_stopped_and_continued_on_its_cache(spec, model_of):
    """A generation that a criterion ended goes on where it was."""
    from vtc.methods._spelling import build

    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, build(spec), budget=0.4)
    want = generate(model, prompt, tokens=8).sequences
    cache = DynamicCache(config=model.config.get_text_config())
    length = prompt["input_ids"].shape[1]
    stop = StoppingCriteriaList([After(length + 3)])
    first = generate(model, prompt, tokens=8, past_key_values=cache, stopping_criteria=stop).sequences
    assert torch.equal(first, want[:, : length + 3])
    rest = {"input_ids": first, "attention_mask": torch.ones_like(first)}
    assert torch.equal(generate(model, rest, tokens=5, past_key_values=cache).sequences, want)
