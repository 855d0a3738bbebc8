"""vLLM with and without fewer tokens a picture: first token, requests a second and KV cache, in one process, engine by
engine.

    python scripts/bench_vllm.py                   # 12 x 768 decoder, 576 vision tokens, bfloat16, CPU (some minutes)
    python scripts/bench_vllm.py --requests 8 --repeats 3 --output bench.json
    python scripts/bench_vllm.py --plot bench.json # bench.png beside it (needs matplotlib, and no vLLM)

CPU seconds of the process, which other work on the machine changes little, and wall seconds beside them. Cold: each
picture is new. Warm: the same requests again, whose prefixes are cached. Weights are random: speed does not depend on
them.
"""

from __future__ import annotations

import argparse
import json
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
QUESTION = " ".join(["how many digits ?"] * 10)  # longer than a block: pictures in a last, partial one are encoded anew
CACHE = 1 << 30  # bytes of keys and values


def folder(path: Path, layers: int, width: int) -> Path:
    """A LLaVA of random weights, with the testbed's words."""
    from vtc.integrations.vllm.families.llava import nested

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
    text = scenes.PROMPT.format(question=QUESTION)
    return [{"prompt": text, "multi_modal_data": {"image": picture}} for picture in pictures]


def run(llm: Any, count: int, tokens: int, seed: int) -> tuple[float, float]:
    """CPU and wall seconds."""
    from vllm import SamplingParams

    given = prompts(count, seed)
    cpu, wall = time.process_time(), time.perf_counter()
    llm.generate(given, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
    return time.process_time() - cpu, time.perf_counter() - wall


class Watched:
    """The most blocks of the KV cache that were in use at once."""

    def __init__(self, engine: Any):
        scheduler = engine.engine_core.engine_core.scheduler
        self.pool = scheduler.kv_cache_manager.block_pool
        self.most, schedule = 0, scheduler.schedule

        def watched(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            used = self.pool.num_gpu_blocks - 1 - self.pool.get_num_free_blocks()  # one is never given away
            self.most = max(self.most, used)
            return output

        scheduler.schedule = watched

    @property
    def megabytes(self) -> float:
        return self.most * CACHE / self.pool.num_gpu_blocks / 1e6


def measured(path: Path, method: str | None, budget: float, requests: int, repeats: int) -> dict[str, float]:
    """CPU and wall seconds of a first token, and of ``requests`` at once, cold and warm; the KV cache they took."""
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
        kv_cache_memory_bytes=CACHE,
        hf_overrides={} if method is None else own,
    )

    run(llm, 1, 1, 0)
    blocks = Watched(llm.llm_engine)
    first = [run(llm, 1, 1, 1 + n) for n in range(repeats)]
    out = {"kv_blocks": float(blocks.most), "kv_megabytes": blocks.megabytes}
    seeds = [1000 * (n + 1) for n in range(max(1, repeats // 2))]
    many = [(run(llm, requests, 4, seed), run(llm, requests, 4, seed)) for seed in seeds]
    del llm, blocks
    cleanup_dist_env_and_memory()
    cold, warm = zip(*many, strict=True)
    for name, times in (("first", first), ("cold", cold), ("warm", warm)):
        for kind, each in zip(("cpu", "wall"), zip(*times, strict=True), strict=True):
            out[f"{name}_{kind}"] = statistics.median(each)
    return out


def table(rows: dict[str, dict[str, float]], about: str) -> str:
    plain = rows["unpruned"]
    heads = [
        "first token, CPU s",
        "wall s",
        "requests, cold, CPU s",
        "wall s",
        "warm, CPU s",
        "wall s",
        "KV blocks, MB a request",
    ]
    lines = [about, "", f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, row in rows.items():
        times = [key for key in row if not key.startswith("kv")]
        cells = [f"{row[key]:.2f} ({plain[key] / row[key]:.1f}×)" for key in times]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['kv_blocks']:.0f}, {row['kv_megabytes']:.1f} |")
    return "\n".join(lines)


def plot(file: Path) -> Path:
    """Bars of what ``--output`` wrote, against the unpruned model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    said = json.loads(file.read_text(encoding="utf-8"))
    rows = said["rows"]
    shown = {"first_cpu": "first token, CPU s", "cold_cpu": "requests, CPU s", "kv_megabytes": "KV cache, bytes"}
    figure, axes = pyplot.subplots(figsize=(6, 2.4))
    for n, (name, row) in enumerate(rows.items()):
        shares = [row[key] / rows["unpruned"][key] for key in shown]
        bars = axes.bar([x + 0.27 * (n - 1) for x in range(len(shown))], shares, 0.25, label=name)
        axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], fontsize=8)
    axes.set_xticks(range(len(shown)), shown.values())
    axes.set_yticks([])
    axes.set_ylim(0, 1.25)
    axes.set_title(f"vLLM: cost against the unpruned model\n{said['about']}", fontsize=8)
    axes.legend(fontsize=8, frameon=False, ncols=len(rows), loc="upper right")
    axes.spines[["top", "right", "left"]].set_visible(False)
    to = file.with_suffix(".png")
    figure.savefig(to, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write what was measured, as JSON")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="measure nothing: draw what --output wrote")
    args = parser.parse_args()
    if args.plot:
        print(plot(args.plot))
        return
    torch.set_num_threads(1)  # before an engine exists: threads that spin on busy cores are many times slower
    with tempfile.TemporaryDirectory() as where:
        path = folder(Path(where), args.layers, args.width)
        rows = {cell or "unpruned": measured(path, cell, args.budget, args.requests, args.repeats) for cell in CELLS}
    shape = f"{args.layers} x {args.width}, {(SIDE // PATCH) ** 2} vision tokens, budget {args.budget:g}"
    about = f"{shape}, bfloat16, CPU, 1 thread, {args.requests} requests x 4 tokens"
    print(f"\nMedians of {args.repeats} first tokens and {max(1, args.repeats // 2)} times the requests.")
    print(table(rows, about))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
