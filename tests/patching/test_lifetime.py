"""A model that is or was patched goes with its last reference; it is not copied or pickled, and one thread runs it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from contextlib import contextmanager

import pytest
import torch

import vtc
from tests import zoo
from tests.support import METHODS, REFUSED, generate, logits
from vtc.errors import VTCError

QUICK = ("qwen2_5_vl", "idefics3", "gemma3")


@contextmanager
def no_collector():
    """Inside, only what nobody holds is freed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def used(family: str, method: str | None, **options):
    """A model that answered one prompt, and (patched) was asked what it did."""
    model = zoo.build(family)
    prompt = zoo.prompt(model, 1)
    if method is not None:
        vtc.patch(model, method, budget=0.4, **options)
    generate(model, prompt, tokens=2)
    if method is not None:
        str(vtc.report(model))
    return model


def left_of(model) -> list[weakref.ref]:
    return [weakref.ref(part) for part in (model, *model.parameters())]


CASES = [("llava", method) for method in METHODS]
CASES += [
    pytest.param(family, "divprune", marks=() if family in QUICK else pytest.mark.slow)
    for family in zoo.NAMES
    if (family, "divprune") not in REFUSED and family != "llava"
]


@pytest.mark.parametrize("unpatched", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_weights_go_with_the_last_reference(family, method, unpatched):
    with no_collector():
        plain = used(family, None)
        parts = left_of(plain)
        del plain
        if any(part() is not None for part in parts):
            pytest.skip(f"{family} holds itself without a patch, too")
        model = used(family, method)
        parts = left_of(model)
        if unpatched:
            vtc.unpatch(model)
        del model
        assert not [part for part in parts if part() is not None]


def test_weights_that_are_held_are_noticed():
    """The control: what holds itself is still there."""
    with no_collector():
        model = used("llava", "divprune")
        model.itself = [model]
        parts = left_of(model)
        del model
        assert all(part() is not None for part in parts)


@pytest.mark.parametrize(
    "way", ["patched", "unpatched", "set_budget", "training", "calibrated", "patched twice", "timm", "error"]
)
def test_the_weights_go_however_the_patch_was_used(way):
    with no_collector():
        if way == "timm":
            timm = pytest.importorskip("timm")
            model = timm.create_model("vit_tiny_patch16_224", depth=2)
            vtc.patch(model, r=8)
            with torch.no_grad():
                model(torch.zeros(1, 3, 224, 224))
        else:
            model = zoo.build("llava")
            use(model, way)
        parts = left_of(model)
        del model
        assert not [part for part in parts if part() is not None]


def use(model, way: str) -> None:
    prompt = zoo.prompt(model, 1)
    if way == "patched":
        with vtc.patched(model, "fastv", budget=0.4):
            logits(model, prompt)
    elif way == "unpatched":
        vtc.patch(model, "act", budget=0.4)
        generate(model, prompt)
        vtc.unpatch(model)
    elif way == "set_budget":
        vtc.patch(model, "tome", budget=0.4)
        vtc.patch_of(model).set_budget(0.2)
        logits(model, prompt)
    elif way == "training":
        vtc.patch(model, "perceiver", budget=0.4)
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**prompt, labels=prompt["input_ids"]).loss.backward()
    elif way == "calibrated":
        vtc.calibrate(model, [zoo.prompt(model, 1, seed=n) for n in range(2)], budget=0.4)
    elif way == "patched twice":
        vtc.patch(model, "fastv", budget=0.4)
        vtc.patch(model, "divprune", budget=0.4)
        logits(model, prompt)
    elif way == "error":
        vtc.patch(model, "divprune", budget=0.4)
        try:
            model(**{**prompt, "pixel_values": prompt["pixel_values"][:, :2]})
        except Exception:
            pass
        else:
            pytest.fail("two channels are no picture")


PICKLED = {
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", PICKLED)
@pytest.mark.parametrize("method", ["divprune", "act", "tome", "perceiver"])
def test_a_patched_model_is_not_copied_or_pickled(method, way):
    model = zoo.build("llava")
    vtc.patch(model, method, budget=0.4)
    for part in (model, model.model.language_model.layers):
        with pytest.raises(VTCError, match=r"vtc\.save\(model, folder\), or vtc\.unpatch"):
            PICKLED[way](part)
    vtc.unpatch(model)
    PICKLED[way](model)


@pytest.mark.parametrize("asked", ["generate", "forward", "features"])
@pytest.mark.parametrize("running", ["generate", "forward", "features"])
def test_a_second_thread_is_told(running, asked, model_of):
    """While one thread stands inside a call, another's is refused; the first answers as it would alone."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    calls = {
        "generate": lambda: generate(model, prompt).sequences,
        "forward": lambda: logits(model, prompt),
        "features": lambda: zoo.features(model, "image", {"pixel_values": prompt["pixel_values"]}).pooler_output,
    }
    vtc.patch(model, "visionzip", budget=0.4)
    want, told = calls[running](), []

    def meanwhile(*_) -> None:
        def other() -> None:
            with pytest.raises(VTCError, match="another thread runs this patched model") as refusal:
                calls[asked]()
            told.append(str(refusal.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    hook = model.model.vision_tower.register_forward_hook(meanwhile)
    got = calls[running]()
    hook.remove()
    assert len(told) == 1
    for one, other in zip(want, got, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert torch.equal(torch.as_tensor(calls[running]()[0]), torch.as_tensor(want[0])), "and the next call runs"


@pytest.mark.parametrize(
    "verb", [lambda m: vtc.patch(m, "divprune", budget=0.2), vtc.unpatch], ids=["patch", "unpatch"]
)
def test_no_patch_is_changed_under_a_running_thread(verb, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "visionzip", budget=0.4)
    patch, want, told = vtc.patch_of(model), logits(model, prompt), []

    def meanwhile(*_) -> None:
        def other() -> None:
            with pytest.raises(VTCError, match="another thread runs this patched model"):
                verb(model)
            told.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    hook = model.model.vision_tower.register_forward_hook(meanwhile)
    assert torch.equal(logits(model, prompt), want) and told
    hook.remove()
    assert vtc.patch_of(model) is patch


def test_what_was_taken_from_a_patch_that_is_gone_says_so(model_of):
    model = model_of("llava")
    vtc.patch(model, "divprune", budget=0.4)
    forward = model.forward
    vtc.unpatch(model)
    with pytest.raises(VTCError, match="this forward belongs to a patch that is gone"):
        forward(**zoo.prompt(model, 1))


def test_threads_one_after_the_other_are_served(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "visionzip", budget=0.4)
    want, answers = generate(model, prompt).sequences, []
    with pytest.raises(RuntimeError):  # a forward that failed frees the model, whichever thread comes next
        model(**{**prompt, "pixel_values": prompt["pixel_values"][:, :2]})
    for _ in range(2):
        thread = threading.Thread(target=lambda: answers.append(generate(model, prompt).sequences))
        thread.start()
        thread.join()
    assert len(answers) == 2 and all(torch.equal(answer, want) for answer in answers)
