"""The whole prefill of the decoder, several methods in one run: milliseconds beside those of the unpatched model.

    python scripts/bench_decoder.py                  # 12 x 1024 decoder, grouped queries, 576 vision tokens, CPU
    python scripts/bench_decoder.py --shape 7b       # LLaVA-1.5-7B's true shape, bf16, on a GPU
    python scripts/bench_decoder.py --methods frozen,adaptive,divprune+share --budgets 100%,144

Features are ready-made; selection, ranking and all bookkeeping are inside. Every round goes once through all methods,
and each is divided by the unpatched run of the same round. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from bench_prefill import SHAPES, build, inputs
from tqdm import tqdm

import vtc
from vtc.errors import BudgetError
from vtc.methods._spelling import build as method_of
from vtc.tokens import Budget

METHODS = "frozen,adaptive,divprune+share"


class Decoder:
    """One model's decoder on one prompt; patched where it is asked to be."""

    def __init__(self, model, batch: int):
        self.model, prompt = model, inputs(model, batch)
        self.features = model.model.get_image_features(prompt["pixel_values"], return_dict=True)
        self.prompt = {name: value for name, value in prompt.items() if name != "pixel_values"}

    def milliseconds(self, cell: tuple[str, Budget] | None) -> float:
        """Of one prefill, after one that warms up."""
        vtc.unpatch(self.model)
        if cell is not None:
            vtc.patch(self.model, method_of(cell[0]), cell[1])
        self._run()
        start = time.perf_counter()
        self._run()
        return 1000 * (time.perf_counter() - start)

    def _run(self) -> None:
        self.model.model(**self.prompt, mm_encoder_outputs={"image": self.features}, use_cache=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def cells_of(methods: str, budgets: str) -> list[tuple[str, Budget]]:
    """Each method at each budget; at all tokens only what freezes saves anything."""
    every = [(spec, Budget.of(budget)) for budget in budgets.split(",") for spec in methods.split(",")]
    return [(spec, budget) for spec, budget in every if budget.value != 1.0 or method_of(spec).freezes]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="grouped")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--budgets", default="100%,144,36")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    decoder, cells = Decoder(build(args.shape, device, dtype), args.batch), cells_of(args.methods, args.budgets)
    times: dict[tuple[str, Budget] | None, list[float]] = {cell: [] for cell in (None, *cells)}
    reports = {}
    for _ in tqdm(range(args.repeats), unit="round"):
        for cell, each in times.items():
            try:
                each.append(decoder.milliseconds(cell))
            except BudgetError as error:
                raise SystemExit(f"{cell}: {error}") from None
            if cell is not None:
                reports[cell] = vtc.report(decoder.model)
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device == "cuda" else threads
    print(f"{args.shape}, {name}, {dtype}, torch {torch.__version__}, batch {args.batch}, {args.repeats} rounds")
    print(
        "| method | budget | keys | rows | GFLOPs | decoder ms | of the unpatched (quartiles) | selection ms | KV MiB |"
    )
    print("|---|---|---:|---:|---:|---:|---|---:|---:|")
    plain = times.pop(None)
    print(f"| unpatched | | | | | {statistics.median(plain):.0f} | 1 | | |")
    for cell, each in times.items():
        ratios, of = [ours / theirs for ours, theirs in zip(each, plain, strict=True)], reports[cell]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {cell[0]} | {cell[1]} | {of.average_tokens:.0f} | {of.average_rows:.0f} | {of.flops / 1e9:.1f} "
            f"| {statistics.median(each):.0f} | {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f}) "
            f"| {of.selection_ms:.1f} | {of.kv_bytes / 2**20:.2f} |"
        )


if __name__ == "__main__":
    main()
