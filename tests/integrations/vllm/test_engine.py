"""vLLM with the plug-in answers as the patched model does in transformers. Run by ``make test-vllm``."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from tests.integrations.vllm.engines import (
    KINDS,
    answers,
    chances,
    engine,
    in_transformers,
    in_vllm,
    path_of,
    rows,
    slow,
    texts,
)
from vtc.eval import scenes
from vtc.integrations.vllm.settings import REQUEST

SAMPLES = list(scenes.samples("test", 60))
ASKED = [(sample.prompt, [sample.image]) for sample in SAMPLES]
# By what Qwen's tower packs.
PACKED = ["visionzip", "fastervlm+share", *map(slow, ("vispruner", "hiprune", "holov", "scope", "prumerge"))]
TAKEN = "visionzip fastervlm+share vispruner hiprune holov+share scope grid pool bipartite random adaptive".split()


@pytest.mark.parametrize("method", ["divprune", "divprune+share"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answers_as_in_transformers(kind, method):
    with engine(path_of(kind), KINDS[kind], method, 24) as llm:
        outputs = in_vllm(llm, ASKED)
    assert rows(outputs) == [24] * len(ASKED)
    assert texts(outputs) == in_transformers(path_of(kind), ASKED, method, 24)


def test_in_half_precision_sizes_and_places_are_whole():
    """What rows stand for crosses bfloat16 in two digits; the answers are those of float32 but where it rounds."""
    with engine(path_of("llava"), KINDS["llava"], "divprune+share", 24, dtype="bfloat16") as llm:
        outputs = in_vllm(llm, ASKED)
    want = in_transformers(path_of("llava"), ASKED, "divprune+share", 24)
    assert sum(got == right for got, right in zip(texts(outputs), want, strict=True)) >= 57


@pytest.mark.parametrize("method", TAKEN)
def test_methods_that_look_at_the_tower_or_the_grid(method):
    check_answers("llava", method)


@pytest.mark.parametrize("method", PACKED)
def test_methods_that_look_at_a_tower_that_packs(method):
    check_answers("qwen", method)


def check_answers(kind, method):
    with engine(path_of(kind), KINDS[kind], method, 24) as llm:
        outputs = in_vllm(llm, ASKED)
    first = "adaptive:layer=null" if method == "adaptive" else method  # what of it is served
    assert texts(outputs) == in_transformers(path_of(kind), ASKED, first, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_load_changes_nothing(kind):
    """Requests of three budgets over the same pictures in one batch and in chunks, on cold caches and warm ones, have
    the log probabilities of each request alone."""
    cells = [(asked, budget) for asked in ASKED[:12] for budget in (24, 12, 0.25)]
    asked, each = [a for a, _ in cells], [{"mm_processor_kwargs": {REQUEST: b}} for _, b in cells]
    with engine(path_of(kind), KINDS[kind], "divprune+share", 49, max_num_batched_tokens=96) as llm:
        alone = [in_vllm(llm, [one], [said], logprobs=0)[0] for one, said in zip(asked, each, strict=True)]
        llm.reset_prefix_cache()
        together = in_vllm(llm, asked, each, logprobs=0)
        warm = in_vllm(llm, asked, each, logprobs=0)
    assert rows(together) == [49 if b == 0.25 else b for _, b in cells]
    for got in (together, warm):
        assert texts(got) == texts(alone)
        for one, other in zip(chances(got), chances(alone), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    for budget in (24, 12, 0.25):
        own = [text for text, (_, b) in zip(texts(together), cells, strict=True) if b == budget]
        assert own == in_transformers(path_of(kind), ASKED[:12], "divprune+share", budget)


@pytest.mark.parametrize("method", ["visionzip", "divprune+share"])
def test_pictures_of_several_sizes_in_one_batch(method):
    """Qwen's tower packs them into one sequence."""
    path, some, found = path_of("qwen"), ASKED[:12], []
    sizes = [dict.fromkeys(("shortest_edge", "longest_edge"), side**2) for side in (64, 112, 160)] * 4
    with engine(path, KINDS["qwen"], method, 24) as llm:
        outputs = in_vllm(llm, some, [{"mm_processor_kwargs": {"size": size}} for size in sizes])
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    vtc.patch(model, method, budget=24)
    for (prompt, pictures), size in zip(some, sizes, strict=True):
        inputs = processor(images=pictures, text=[prompt], return_tensors="pt", size=size)
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.decode(answer, skip_special_tokens=True).strip())
    assert texts(outputs) == found


def test_a_folder_that_was_saved_for_it(tmp_path):
    path, some = path_of("llava"), ASKED[:20]
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    vtc.patch(model, "divprune+share", 24)
    vtc.save(model, tmp_path, AutoProcessor.from_pretrained(path, trust_remote_code=False), serve="vllm")
    with engine(str(tmp_path), "", "", None) as llm:
        outputs = in_vllm(llm, some)
    assert texts(outputs) == in_transformers(path, some, "divprune+share", 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_method(kind, tmp_path):
    """What it learned lies in the folder; here it is noise, so that it shows."""
    path, some = path_of(kind), ASKED[:20]
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    vtc.patch(model, "perceiver:latents=32", 24)
    plain = answers(model, processor, some)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.vtc_learned.write.weight, std=0.05)
    vtc.save(model, tmp_path, processor, serve="vllm")
    with engine(str(tmp_path), "", "", None) as llm:
        outputs = in_vllm(llm, some)
        with pytest.raises(ValueError, match="learned 32"):
            in_vllm(llm, some[:1], [{"mm_processor_kwargs": {REQUEST: 33}}])
        again = in_vllm(llm, some)
    assert texts(outputs) == texts(again) == answers(model, processor, some) != plain


def test_several_pictures_and_none():
    """Positions of a prompt with three pictures run past the rotary table that the model brings."""
    three = [
        (sample.prompt.replace("<image>", "<image> <image> <image>"), [s.image for s in SAMPLES[n : n + 3]])
        for n, sample in enumerate(SAMPLES[:18])
    ]
    words = [("USER: how many digits ? ASSISTANT:", [])]
    with engine(path_of("llava"), KINDS["llava"], "divprune+share", 24, limit_mm_per_prompt={"image": 3}) as llm:
        outputs = in_vllm(llm, three + words)
    assert rows(outputs) == [72] * 18 + [0]
    assert texts(outputs[:-1]) == in_transformers(path_of("llava"), three, "divprune+share", 24)


def test_an_absurd_budget_is_that_requests_error():
    path = path_of("llava")
    with engine(path, KINDS["llava"], "divprune+share", 24) as llm:
        for budget in (0, -3, 1.5, "many"):
            with pytest.raises(ValueError, match="budget"):
                in_vllm(llm, ASKED[:1], [{"mm_processor_kwargs": {REQUEST: budget}}])
        outputs = in_vllm(llm, ASKED[:2])
    assert texts(outputs) == in_transformers(path, ASKED[:2], "divprune+share", 24)


def test_a_layer_that_the_tower_does_not_have_is_refused():
    """The last one: features are read from the layer before it."""
    with pytest.raises(Exception, match="only up to the layer whose features are read, 4 of 5"):
        with engine(path_of("llava"), KINDS["llava"], "prumerge", 24):
            pass
