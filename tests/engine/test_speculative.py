"""Speculative decoding, its candidates rejected: the greedy tokens of the same patched model, for every method."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vtc
from tests import zoo
from tests.support import METHODS, REFUSED, generate, kept
from vtc.engine.attention.masks import LazyMask
from vtc.engine.forward import Engine
from vtc.methods._spelling import build

QUICK = ("llava", "qwen2_5_vl", "aya_vision")  # plain, M-RoPE, sliding windows
WRITE = {"tokens": 12, "eos_token_id": 999}  # never written; transformers 5.8 looks nothing up without one
LOOKUP = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}  # one word is enough to copy what followed it


def repeating(model, seed: int = 0) -> dict:
    """A prompt whose last word stood before in it, others behind it: candidates come at once, and are rejected."""
    prompt = zoo.prompt(model, 1, seed=seed, before=6, after=8)
    prompt["input_ids"][0, -8:] = torch.tensor([7, 8, 9, 7, 10, 8, 9, 7])
    return prompt


def same(got, want: torch.Tensor) -> bool:
    """Whether the words that were asked for are the same; transformers 5.8 may write an accepted one more."""
    return got.sequences.shape[1] >= want.shape[1] and torch.equal(got.sequences[:, : want.shape[1]], want)


@pytest.fixture
def taken_back(monkeypatch) -> list[int]:
    """How many tokens each crop of a cache took back."""
    counts: list[int] = []
    crop = DynamicCache.crop
    monkeypatch.setattr(DynamicCache, "crop", lambda cache, n: (counts.append(abs(n)), crop(cache, n))[1])
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_prompt_lookup_gives_the_greedy_tokens(method, model_of, taken_back):
    model = model_of("llava")
    vtc.patch(model, method, budget=0.4)
    for seed in range(3):
        prompt = repeating(model, seed)
        want = generate(model, prompt, **WRITE).sequences
        tokens = kept(model)
        assert same(generate(model, prompt, **WRITE, **LOOKUP), want)
        assert kept(model) == tokens, "a candidate is no part of the prompt that ranks"
    assert any(taken_back), "some candidate must have been rejected, or nothing was tried"


def assistant(model, kind: str):
    """A small language model of the same words that knows nothing of pictures, or a model of the same family."""
    if kind == "family":
        return zoo.build(zoo.kind_of(model), seed=5)
    config = LlamaConfig(
        vocab_size=model.config.get_text_config().vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    small = LlamaForCausalLM(config).eval()
    small.generation_config.eos_token_id, small.generation_config.pad_token_id = None, 0
    return small


@pytest.mark.parametrize("drafts", ["lookup", "family", "text"])
@pytest.mark.parametrize("method", ["fastv", "visionzip+share", "kvmerge", "router", "adaptive:rest=[1,3]"])
@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in zoo.NAMES])
def test_drafted_tokens_change_no_answer(family, method, drafts, model_of, taken_back):
    """Wherever the unpatched model decodes speculatively as it decodes greedily."""
    chosen = build(method)
    if (family, chosen.name) in REFUSED:
        pytest.skip(f"{chosen.name} refuses {family}")
    model = model_of(family)
    prompt = repeating(model, seed=1)
    options = LOOKUP if drafts == "lookup" else {"assistant_model": assistant(model, drafts)}
    try:
        plain = generate(model, prompt, **WRITE, **options)
    except ValueError as error:
        pytest.skip(f"unpatched, too: {error}")
    greedy = generate(model, prompt, **WRITE)
    assert same(plain, greedy.sequences), "the control"
    if not torch.allclose(plain.logits[0], greedy.logits[0], atol=1e-3):
        pytest.skip("unpatched, too, the prompt's words see drafted ones: their attention goes both ways")
    vtc.patch(model, chosen, budget=0.4)
    want = generate(model, prompt, **WRITE).sequences
    tokens = kept(model)
    taken_back.clear()
    assert same(generate(model, prompt, **WRITE, **options), want)
    assert kept(model) == tokens
    if drafts == "lookup":
        assert any(taken_back), "some candidate must have been rejected, or nothing was tried"


@pytest.mark.parametrize("options", [{}, LOOKUP], ids=["greedy", "lookup"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_layers_share_one_mask_at_every_step(family, options, model_of, monkeypatch):
    """What a cache holds is one object for all layers: else each would build a mask of its own, at every step."""
    model = model_of(family)
    vtc.patch(model, "divprune", budget=0.4, share=True)
    made, steps = [], []
    init, begin = LazyMask.__init__, Engine.begin

    def counting(self, *args, **kwargs):
        made.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(LazyMask, "__init__", counting)
    monkeypatch.setattr(Engine, "begin", lambda self, kwargs: (steps.append(1), begin(self, kwargs))[1])
    generate(model, repeating(model), **WRITE, **options)
    assert len(steps) > 2 and len(made) <= 2 * len(steps), (len(made), len(steps))
