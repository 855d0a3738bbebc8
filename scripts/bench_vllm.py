"""vLLM with and without fewer tokens a picture: first token and requests a second, in one process, engine by engine.

    python scripts/bench_vllm.py                   # 12 x 768 decoder, 576 vision tokens, bfloat16, CPU (some minutes)
    python scripts/bench_vllm.py --requests 8 --repeats 3

CPU seconds of the process, which other work on the machine changes little, and wall seconds beside them. Each picture
is new, so no cache is warm. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from vtc.eval import scenes

SIDE, PATCH = 336, 14
CELLS = (None, "divprune", "divprune+share")


def folder(path: Path, layers: int, width: int) -> Path:
    """A LLaVA of random weights, with the testbed's words."""
    from vtc.integrations.vllm.llava import nested

    processor = AutoProcessor.from_pretrained(scenes.checkpoint_path(), trust_remote_code=False)
    processor.patch_size = PATCH
    processor.image_processor.size = {"height": SIDE, "width": SIDE}
    processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    vision = dict(model_type="clip_vision_model", hidden_size=256, intermediate_size=512, num_hidden_layers=3)
    vision |= dict(num_attention_heads=4, image_size=SIDE, patch_size=PATCH, projection_dim=256)
    text = dict(model_type="llama", hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers)
    text |= dict(num_attention_heads=width // 64, vocab_size=len(processor.tokenizer), max_position_embeddings=2048)
    tokens = (SIDE // PATCH) ** 2
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=tokens)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    file = path / "model.safetensors"  # vLLM's own LLaVA knows no flat tower, which transformers 5 writes
    save_file({nested(name): weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    processor.save_pretrained(path)
    return path


def prompts(count: int, seed: int) -> list[dict]:
    draw = np.random.default_rng(seed)
    pictures = [Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]
    text = scenes.PROMPT.format(question="how many digits ?")
    return [{"prompt": text, "multi_modal_data": {"image": picture}} for picture in pictures]


def run(llm: Any, count: int, tokens: int, seed: int) -> tuple[float, float]:
    """CPU and wall seconds."""
    from vllm import SamplingParams

    given = prompts(count, seed)
    cpu, wall = time.process_time(), time.perf_counter()
    llm.generate(given, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
    return time.process_time() - cpu, time.perf_counter() - wall


def measured(path: Path, method: str | None, budget: float, requests: int, repeats: int) -> dict[str, float]:
    """CPU and wall seconds of a first token, and of ``requests`` at once."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    own = {"architectures": ["VtcLlavaForConditionalGeneration"], "vtc": {"method": method, "budget": budget}}
    llm = LLM(
        str(path),
        dtype="bfloat16",
        max_model_len=1024,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        block_size=32,
        kv_cache_memory_bytes=1 << 30,
        hf_overrides={} if method is None else own,
    )

    run(llm, 1, 1, 0)
    first = [run(llm, 1, 1, 1 + n) for n in range(repeats)]
    many = [run(llm, requests, 4, 1000 * (n + 1)) for n in range(max(1, repeats // 2))]
    del llm
    cleanup_dist_env_and_memory()
    out = {}
    for name, times in (("first", first), ("many", many)):
        for kind, each in zip(("cpu", "wall"), zip(*times, strict=True), strict=True):
            out[f"{name}_{kind}"] = statistics.median(each)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # before an engine exists: threads that spin on busy cores are many times slower
    with tempfile.TemporaryDirectory() as where:
        path = folder(Path(where), args.layers, args.width)
        rows = {cell: measured(path, cell, args.budget, args.requests, args.repeats) for cell in CELLS}
    plain = rows[None]
    shape = f"{args.layers} x {args.width}, {(SIDE // PATCH) ** 2} vision tokens, budget {args.budget:g}"
    print(f"\n{shape}, bfloat16, CPU, 1 thread, median of {args.repeats} (requests: {max(1, args.repeats // 2)})")
    print("| | first token, CPU s | wall s | " + f"{args.requests} requests x 4 tokens, CPU s | wall s |")
    print("|---|---|---|---|---|")
    for cell, row in rows.items():
        cells = [f"{row[key]:.2f} ({plain[key] / row[key]:.2f}×)" for key in row]
        print(f"| {cell or 'unpruned'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
