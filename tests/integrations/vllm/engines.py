"""vLLM in this process, on the CPU, and the same questions in transformers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
import vtc.integrations.vllm
from vtc.eval import scenes
from vtc.integrations.vllm.launch import overrides
from vtc.integrations.vllm.settings import Settings
from vtc.methods._spelling import build

KINDS = {"llava": "LlavaForConditionalGeneration", "qwen": "Qwen2_5_VLForConditionalGeneration"}
IMAGE = 4  # the placeholder's id in both testbed models
TOKENS = 6
Asked = tuple[str, list[Any]]  # a prompt and its pictures


@functools.cache
def classes() -> None:
    """Class objects: a name would be looked at in a process that imports vLLM again."""
    from importlib import import_module

    from vllm import ModelRegistry

    for name, where in vtc.integrations.vllm.classes().items():
        module, own = where.split(":")
        ModelRegistry.register_model(name, getattr(import_module(module), own))


@contextlib.contextmanager
def engine(path: str, architecture: str, method: str, budget: Any, **options: Any) -> Iterator[Any]:
    """One engine; the process has room for one at a time, and one that is still known ends the next when it goes. No
    method: as the folder's config says."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    classes()
    asked = overrides([architecture], Settings(method, budget)) if method else {}
    small = dict(dtype="float32", max_model_len=512, max_num_batched_tokens=512, kv_cache_memory_bytes=64 << 20)
    # Of longer blocks short prompts never hit the prefix cache.
    llm = LLM(path, **{**small, "enforce_eager": True, "block_size": 32, "hf_overrides": asked, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()  # a test that failed holds on to it
        del llm
        cleanup_dist_env_and_memory()


def in_vllm(
    llm: Any, asked: list[Asked], each: list[dict] | None = None, lora_request: Any = None, **sampling: Any
) -> list[Any]:
    """``each``: what each request says besides."""
    from vllm import SamplingParams

    prompts = [
        {"prompt": prompt, **({"multi_modal_data": {"image": pictures}} if pictures else {}), **more}
        for (prompt, pictures), more in zip(asked, each or [{}] * len(asked), strict=True)
    ]
    greedy = SamplingParams(**{"temperature": 0, "max_tokens": TOKENS, **sampling})
    return llm.generate(prompts, greedy, use_tqdm=False, lora_request=lora_request)


def texts(outputs: list[Any]) -> list[str]:
    return [one.outputs[0].text.strip() for one in outputs]


def rows(outputs: list[Any]) -> list[int]:
    """Of each prompt, those of its pictures."""
    return [one.prompt_token_ids.count(IMAGE) for one in outputs]


def chances(outputs: list[Any]) -> list[list[float]]:
    """Log probabilities of what was answered, token by token."""
    return [[next(iter(step.values())).logprob for step in one.outputs[0].logprobs] for one in outputs]


def in_transformers(path: str, asked: list[Asked], method: str, budget: Any) -> list[str]:
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    vtc.patch(model, build(method), budget)
    return answers(model, AutoProcessor.from_pretrained(path, trust_remote_code=False), asked)


@torch.inference_mode()
def answers(model: Any, processor: Any, asked: list[Asked], batch: int = 20) -> list[str]:
    """Of a model in transformers, patched or not."""
    out = []
    for some in (asked[i : i + batch] for i in range(0, len(asked), batch)):
        given = dict(images=[pictures for _, pictures in some], text=[prompt for prompt, _ in some])
        inputs = processor(**given, padding=True, padding_side="left", return_tensors="pt")
        found = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        out += [processor.decode(row, skip_special_tokens=True).strip() for row in found]
    return out


def slow(method: str) -> Any:
    """A case of ``make test-vllm-all`` alone."""
    return pytest.param(method, marks=pytest.mark.slow)


def path_of(kind: str) -> str:
    return str(scenes.checkpoint_path(kind))
