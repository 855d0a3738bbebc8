"""The ways to attend over keys that weigh what they stand for: the mask, the fused operations, two more columns."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.kernels.interpreter import run_interpreted
from tests.patching.test_refusals import flash  # noqa: F401  # a fixture
from tests.support import KINDS, engine, generate, logits
from tests.tolerances import assert_close
from tests.versions import skip_before
from vtc.engine.attention import attend as attend
from vtc.engine.attention.masks import LazyMask
from vtc.engine.rows import Columns
from vtc.errors import UnsupportedModel


@pytest.fixture
def route(monkeypatch):
    """``route(name)``: from now on keys are weighed by the mask, the fused operations or two more columns; returns the
    list of the calls that went there."""

    def choose(name: str) -> list[str]:
        calls: list[str] = []
        monkeypatch.undo()
        monkeypatch.setattr(attend, "in_kernel", lambda *tensors: name == "fused")
        monkeypatch.setattr(attend, "LONG", 2 if name == "columns" else 10**9)
        for kind in ("merged_attention", "decode_merged", "augment"):
            monkeypatch.setattr(attend, kind, _noted(getattr(attend, kind), kind, calls))
        return calls

    return choose


def _noted(function, kind: str, calls: list[str]):
    def call(*args, **kwargs):
        calls.append(kind)
        return function(*args, **kwargs)

    return call


def prompts(model) -> dict[str, dict]:
    return {
        "alone": zoo.prompt(model, 2),
        "ragged": zoo.batch([zoo.prompt(model, n, seed=n) for n in (0, 2, 1)]),
    }


@torch.no_grad()
def answers(model) -> dict[str, torch.Tensor]:
    """Logits of a prompt, of a padded batch, of four decoded tokens after each, and of a second turn."""
    out = {}
    for name, prompt in prompts(model).items():
        real = prompt["attention_mask"].bool() if "attention_mask" in prompt else torch.ones_like(prompt["input_ids"])
        out[name] = logits(model, prompt)[real.bool()]
        out[f"{name}, decoded"] = torch.stack(generate(model, prompt).logits)
    cache = model(**prompts(model)["alone"], use_cache=True).past_key_values
    out["second turn"] = model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache).logits
    return out


@pytest.mark.parametrize("family", KINDS)
def test_fused_operations_answer_as_the_mask_does(family, model_of, route):
    """In Triton's interpreter these are the kernels; elsewhere their references."""
    model = model_of(family)
    vtc.patch(model, "divprune", budget=0.3, share=True)
    assert route("mask") == []
    want = answers(model)
    calls = route("fused")
    got = answers(model)
    for name, value in want.items():
        assert_close(f"{family}, {name}", got[name], value)
    assert "decode_merged" in calls
    if family == "paligemma":
        skip_before("transformers", 5, 9, why="its masks let these layers fuse, too")
    calls.clear()
    logits(model, prompts(model)["alone"])
    # Sliding windows, and pictures that see the pictures after the text that follows them: no count of keys says that.
    layers = [] if family == "paligemma" else engine(model).family.layers
    expected = sum(getattr(layer.self_attn, "sliding_window", None) is None for layer in layers)
    assert calls == ["merged_attention"] * expected, "every layer that can takes the fused operation"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_two_more_columns_answer_as_the_mask_does(family, model_of, route):
    model = model_of(family, dtype=torch.float64)
    vtc.patch(model, "divprune", budget=0.3, share=True)
    route("mask")
    want = answers(model)
    calls = route("columns")
    got = answers(model)
    assert set(calls) == {"augment"}, "a prompt without padding needs no mask"
    for name, value in want.items():
        assert_close(name, got[name], value)
    with vtc.patched(model, "divprune", budget=0.3):
        control = answers(model)
    assert (control["alone"] - got["alone"]).abs().max() > 1e-3, "sizes change nothing here"


def test_flash_attention_serves_sizes(flash):  # noqa: F811
    model = zoo.build("llava")
    got = []
    for attn in ("sdpa", "made_up_flash"):
        model.set_attn_implementation({"text_config": attn, "vision_config": "sdpa"})
        vtc.patch(model, "divprune", budget=0.25, share=True)
        got.append(answers(model))
    for name, want in got[0].items():
        assert_close(name, got[1][name], want)
    assert flash and all(mask is None or mask.dim() == 2 for mask in flash)


@pytest.mark.parametrize("what", ["softcap", "s_aux", "wide"])
def test_flash_attention_says_what_it_cannot_weigh(what):
    heads = torch.zeros(1, 1, 3, 256 if what == "wide" else 8)
    index = torch.arange(3)[None]
    subset = LazyMask(None, index, Columns(index, None, torch.ones(1, 3)), 3, 3, torch.float32, "flash_attention_2")
    with pytest.raises(UnsupportedModel, match="share=False"):
        attend.attend(heads, heads, heads, subset, 1.0, run=print, **({} if what == "wide" else {what: 1.0}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_mask(checkpointing, route):
    grads = []
    for name in ("mask", "fused", "columns"):
        model = zoo.build("llava", dtype=torch.float64).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        vtc.patch(model, "divprune", budget=0.3, share=True)
        calls = route(name)
        prompt = zoo.prompt(model, 1)
        model(**prompt, labels=prompt["input_ids"]).loss.backward()
        assert len(calls) == (0 if name == "mask" else 4 * (1 + checkpointing))
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    for other in grads[1:]:
        for name, grad in grads[0].items():
            assert_close(name, other[name], grad)


def test_dropout_and_caps_take_the_mask(route):
    calls = route("fused")
    index = torch.arange(3)[None]
    subset = LazyMask(None, index, Columns(index, None, torch.ones(1, 3)), 3, 3, torch.float32, "sdpa")
    heads, taken = torch.zeros(1, 1, 3, 8), []
    for option in ({"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(1)}):
        attend.attend(heads, heads, heads, subset, 1.0, run=lambda q, k, v, mask, **kw: taken.append(mask), **option)
    assert calls == [] and [mask.shape for mask in taken] == [(1, 1, 3, 3)] * 3


def causal(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return columns[None, :] <= rows[:, None]


@pytest.mark.parametrize(
    ("name", "mask", "told"),
    [
        ("causal", causal(torch.arange(6), torch.arange(6)), True),
        ("padded", causal(torch.arange(6), torch.arange(6)) & (torch.arange(6) >= 2), True),
        ("prefix", causal(torch.arange(6), torch.arange(6)) | (torch.arange(6) < 3), True),
        ("window", causal(torch.arange(6), torch.arange(6)) & ~causal(torch.arange(6) - 3, torch.arange(6)), False),
        ("block", torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool(), False),
        ("nothing", torch.zeros(6, 6, dtype=torch.bool), True),
    ],
)
def test_masks_as_counts_of_keys(name, mask, told):
    """What ``seen`` says is the mask, or it says that it cannot."""
    index = torch.tensor([[0, 1, 2, 3, 5]])
    subset = LazyMask(mask[None, None], index, Columns(index, None, torch.ones(1, 5)), 6, 6, torch.float32, "sdpa")
    assert (subset.seen is not None) is told
    if told:
        seen = (torch.arange(5) < subset.seen.end[0][:, None]) & (subset.seen.log_size[0] > -torch.inf)
        assert torch.equal(seen, mask[index[0]][:, index[0]])


def test_a_small_model_on_the_kernels(route):
    model = zoo.build("llava", layers=2)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, "divprune", budget=0.1, share=True)
    out = []
    for name in ("mask", "fused"):
        calls = route(name)
        out.append(torch.stack(generate(model, prompt, tokens=2).logits))
    assert calls == ["merged_attention", "merged_attention", "decode_merged", "decode_merged"]
    assert_close("kernels", out[1], out[0])


def test_the_same_in_the_interpreter():
    run_interpreted("../engine/attention/test_attend", "test_a_small_model")


@pytest.mark.slow
def test_every_family_in_the_interpreter():
    run_interpreted("../engine/attention/test_attend", "test_fused")
