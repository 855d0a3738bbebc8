"""vLLM in this process, on the CPU, and the same questions in transformers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from vtc.eval import scenes
from vtc.integrations.vllm import ARCHITECTURES
from vtc.methods._spelling import build

TOKENS = 6


@functools.cache
def classes() -> None:
    """Class objects: a name would be looked at in a process that imports vLLM again."""
    from vllm import ModelRegistry

    from vtc.integrations.vllm import llava, qwen_vl

    for name, module in ARCHITECTURES.items():
        ModelRegistry.register_model(f"Vtc{name}", getattr({"llava": llava, "qwen_vl": qwen_vl}[module], f"Vtc{name}"))


@contextlib.contextmanager
def engine(path: str, architecture: str, method: str, budget: Any, **options: Any) -> Iterator[Any]:
    """One engine; the process has room for one at a time."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    classes()
    asked = {"architectures": [f"Vtc{architecture}"], "vtc": {"method": method, "budget": budget}}
    llm = LLM(
        path,
        dtype=options.pop("dtype", "float32"),
        max_model_len=512,
        max_num_batched_tokens=512,
        enforce_eager=True,
        block_size=32,  # or short prompts never hit the prefix cache
        kv_cache_memory_bytes=64 << 20,
        hf_overrides=asked,
        **options,
    )
    try:
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()


def in_vllm(llm: Any, questions: list[Any], **request: Any) -> list[Any]:
    from vllm import SamplingParams

    prompts = [{"prompt": q.prompt, "multi_modal_data": {"image": q.image}, **request} for q in questions]
    return llm.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS), use_tqdm=False)


def texts(outputs: list[Any]) -> list[str]:
    return [one.outputs[0].text.strip() for one in outputs]


@torch.inference_mode()
def in_transformers(path: str, questions: list[Any], method: str, budget: Any, batch: int = 20) -> list[str]:
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(path)
    processor.tokenizer.padding_side = "left"
    vtc.patch(model, build(method), budget)
    out = []
    for some in (questions[i : i + batch] for i in range(0, len(questions), batch)):
        given = dict(images=[q.image for q in some], text=[q.prompt for q in some])
        inputs = processor(**given, padding=True, return_tensors="pt")
        answers = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        out += [processor.decode(row, skip_special_tokens=True).strip() for row in answers]
    return out


def path_of(kind: str) -> str:
    return str(scenes.checkpoint_path(kind))
