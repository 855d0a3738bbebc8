"""What each recipe costs and saves: accuracy, divergence, bytes on disk and resident, time against the plain model.

    OMP_NUM_THREADS=1 python scripts/bench_weights.py --output runs/weights   # the testbed, about half an hour

Accuracy is on test seeds, divergence of the next token on other dev prompts than those calibrated with. Every time is a
ratio of turns taken with the plain model in the same dtype, with its quartiles. Bytes resident are what the model's
tensors hold after a forward, packed copies included; nothing is computed that can be measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import vtc
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks import registry
from vtc.files.atomic import write_json, write_text
from vtc.weights.formats import hf
from vtc.weights.planning.plan import Probe

RECIPES = (
    "rtn:bits=8",
    "rtn:bits=4",
    "gptq:bits=4",
    "awq:bits=4",
    "gptq:bits=4|svdllm:rank=4",
    "rtn:bits=3",
    "gptq:bits=3",
    "awq:bits=3",
    "gptq:bits=3|svdllm:rank=4",
    "gptq:bits=2",
    "kmeans:bits=4",
    "kmeans:bits=3",
    "llm_int8",
    "ternary",
    "magnitude:sparsity=0.5",
    "wanda:sparsity=0.5",
    "sparsegpt:sparsity=0.5",
    "sparsegpt:pattern=2/4",
    "sparsegpt:pattern=2/4|gptq:bits=4",
    "svd:keep=0.6",
    "asvd:keep=0.6",
    "svdllm:keep=0.6",
    "bolaco:keep=0.6",
    "neurons:share=0.4",
    '{"passes": ["gptq:bits=3"], "buckets": "pooled"}',
    '{"passes": ["gptq:bits=3"], "buckets": "gradient"}',
    '{"passes": ["gptq:bits=2"], "buckets": "pooled"}',
    '{"passes": ["gptq:bits=2"], "buckets": "gradient"}',
)
TOKENS = ("divprune", 0.25)  # the token patch that every recipe is also asked under, with share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vtc/eval/scenes/checkpoint")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--questions", type=int, default=450, help="test questions for the accuracy")
    parser.add_argument("--examples", type=int, default=64, help="dev prompts to calibrate with")
    parser.add_argument("--heldout", type=int, default=192, help="other dev prompts for the divergence")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    found = json.loads(p.read_text()) if (p := args.output / "weights.json").exists() else {}
    for name in ["plain", *args.recipes]:
        if name not in found:  # goes on where it was stopped
            found[name] = bench.row(name)
            write_json(args.output / "weights.json", found)
            print(f"{name}: {found[name]}", flush=True)
    write_text(args.output / "table.md", table(found, args))


class Bench:
    """The model, its prompts and questions."""

    def __init__(self, args: argparse.Namespace):
        from transformers import AutoProcessor

        self.args, self.dtype = args, getattr(torch, args.dtype)
        self.processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=False)
        self.plain = self.load()
        drawn = self.inputs("dev", args.examples + args.heldout)
        cut = args.examples // 16
        self.calibration, heldout = drawn[:cut], drawn[cut:]
        self.probe = Probe(self.plain, heldout)
        self.heldout = heldout
        self.test = registry["scenes"](split="test", limit=args.questions)

    def load(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            self.args.model, dtype=self.dtype, trust_remote_code=False
        ).eval()

    def answerer(self, model: Any) -> Answerer:
        return Answerer(model, self.processor, self.test.frame, "{question}", self.test.max_new_tokens)

    def inputs(self, split: str, count: int) -> list[Any]:
        bench = registry["scenes"](split=split, limit=count)
        answerer = Answerer(self.plain, self.processor, bench.frame, "{question}", bench.max_new_tokens)
        asked = [answerer.ready(sample, bench) for sample in bench.samples()]
        return [answerer.inputs(asked[n : n + 16]) for n in range(0, count, 16)]

    def row(self, recipe: str) -> dict[str, Any]:
        model = self.load()
        gc.collect()
        started = time.perf_counter()
        if recipe != "plain":
            given = json.loads(recipe) if recipe.startswith("{") else recipe
            vtc.compress(model, given, self.calibration, progress=False)
        seconds = time.perf_counter() - started
        found = {
            "seconds": seconds,
            "accuracy": self.accuracy(model),
            "divergence": self.probe.divergence(model),
        }
        with vtc.patched(model, vtc.methods.registry[TOKENS[0]](share=True), budget=TOKENS[1]):
            found["patched"] = self.accuracy(model)
        return found | self.sizes(model) | self.times(model)

    def accuracy(self, model: Any) -> float:
        answerer, scores = self.answerer(model), []
        asked = [answerer.ready(sample, self.test) for sample in self.test.samples()]
        for n in range(0, len(asked), 50):
            part = asked[n : n + 50]
            answers = answerer.answers(answerer.inputs(part))
            scores += [self.test.score(text, each.sample) for text, each in zip(answers, part, strict=True)]
        return statistics.mean(scores)

    def sizes(self, model: Any) -> dict[str, float]:
        """Bytes of the layers that are compressed (those of the plain model there), of the file, and resident."""
        layers = linears(model)
        held = sum(t.numel() * t.element_size() for m in layers for t in [*m.buffers(), *m.parameters()])
        copies = sum(
            t.numel() * t.element_size() for m in layers for _, p in getattr(m, "_packed", {}).values() for t in p
        )
        everything = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        weights = sum(
            m.in_features * m.out_features
            for m in self.plain.model.language_model.layers.modules()
            if hasattr(m, "in_features")
        )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            disk = sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))
        told = hf.config_of(model)
        errors = [] if told is None else [each["error"] for each in told.manifest["layers"].values()]
        return {
            "layer_bytes": held,
            "bits": 8 * held / weights,
            "resident": everything + copies,
            "file": disk,
            "error": statistics.mean(e for e in errors if e is not None) if any(errors) else 0.0,
        }

    def times(self, model: Any) -> dict[str, list[float]]:
        """Ratios to the plain model, turn by turn: [lower quartile, median, upper quartile]."""
        batch = self.heldout[0]
        one = {k: v[:1] if torch.is_tensor(v) else v for k, v in batch.items()}
        ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
        for turn in range(self.args.turns + 2):
            taken = {
                name: (clock(each, batch, 0), clock(each, one, 16))
                for name, each in (("plain", self.plain), ("other", model))
            }
            if turn >= 2:
                for n, kind in enumerate(ratios):
                    ratios[kind].append(taken["other"][n] / taken["plain"][n])
        return {kind: statistics.quantiles(values, n=4) for kind, values in ratios.items()}


def linears(model: Any) -> list[Any]:
    """The decoder's linear layers, compressed or not."""
    return [m for m in model.model.language_model.layers.modules() if hasattr(m, "in_features")]


@torch.no_grad()
def clock(model: Any, inputs: dict[str, Any], new: int) -> float:
    """Seconds of a prefill (new = 0), or of ``new`` tokens after one."""
    if not new:
        started = time.perf_counter()
        model(**inputs, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
    started = time.perf_counter()
    for _ in range(new):
        model(input_ids=token, past_key_values=cache, use_cache=True)
    return time.perf_counter() - started


def table(found: dict[str, Any], args: argparse.Namespace) -> str:
    """Markdown, a row a recipe; of equal size the one that says the most like the plain model is in bold."""
    plain = found["plain"]
    lines = [
        f"{args.questions} test questions; divergence on {args.heldout} dev prompts, calibrated with {args.examples} "
        f"others; {args.dtype}, {torch.get_num_threads()} thread(s), torch {torch.__version__}. Layers: those of the "
        f"decoder, {plain['layer_bytes']:,} bytes plain. Times: median ratio to the plain model (quartiles).",
        "",
        "| recipe | accuracy | with 25 % of the tokens | divergence (nats) | bits a weight | of the layers' bytes "
        "| file | output error | prefill | decode | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        prefill, decode = (f"{m:.2f} ({a:.2f}–{b:.2f})" for a, m, b in (row["prefill"], row["decode"]))
        lines.append(
            f"| {name.replace('|', ' then ')} | {100 * row['accuracy']:.1f} | {100 * row['patched']:.1f} | "
            f"{row['divergence']:.4f} | "
            f"{row['bits']:.2f} | {100 * row['layer_bytes'] / plain['layer_bytes']:.1f} % | {row['file']:,} | "
            f"{row['error']:.2g} | {prefill} | {decode} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
