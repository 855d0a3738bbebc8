"""Everything a result depends on, as plain data: model, weights, prompt, benchmark, cells, versions."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vtc.eval.asking.batches import WINDOW
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks import Benchmark
from vtc.eval.cells import Cell

SCHEMA = 4  # 4: answers are the same as vtc.eval.metrics.answers says; 3: they have a confidence


def describe(
    answerer: Answerer, benchmark: Benchmark, cells: list[Cell], model: str, batch_size: int
) -> dict[str, Any]:
    """The settings of a run. Two runs may share a folder only when these are equal (``model``, a mere name, aside)."""
    config = answerer.model.config
    return {
        "schema": SCHEMA,
        "model": model or getattr(config, "name_or_path", ""),
        "model_class": type(answerer.model).__name__,
        "weights": weights_hash(answerer.model),
        "dtype": str(answerer.model.dtype).removeprefix("torch."),
        "device": answerer.model.device.type,
        "attention": attention(config),
        "processor": processor_classes(answerer.processor),
        "prompt": answerer.prompt("{question}", 1),
        "max_new_tokens": answerer.max_new_tokens,
        "batch_size": batch_size,
        "window": WINDOW,
        "benchmark": benchmark.fingerprint(),
        "cells": [cell.name for cell in cells],
        "versions": versions(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What a time depends on beside the settings: the computer, its accelerator, the threads of its CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"node": platform.node(), "device": name, "threads": torch.get_num_threads()}


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every parameter and buffer that is saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def attention(config: Any) -> str:
    """The attention implementation of the language model and of the tower."""
    parts = {"": config, "text": getattr(config, "text_config", None), "vision": getattr(config, "vision_config", None)}
    found = {name: getattr(part, "_attn_implementation", None) for name, part in parts.items() if part is not None}
    return (
        str(found[""]) if len(set(found.values())) == 1 else ", ".join(f"{k or 'model'}: {v}" for k, v in found.items())
    )


def processor_classes(processor: Any) -> str:
    """The processor and its picture half: Pillow and torchvision backends give different pixels."""
    image = getattr(processor, "image_processor", None)
    return type(processor).__name__ + (f" ({type(image).__name__})" if image is not None else "")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("vtc-vlm", "torch", "transformers", "tokenizers", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
