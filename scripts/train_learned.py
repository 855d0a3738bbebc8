"""Train a learned method on the testbed: its parameters, and the language model that reads what they write.

    OMP_NUM_THREADS=1 python scripts/train_learned.py --minutes 40 --output runs/perceiver
    python scripts/train_learned.py --evaluate runs/perceiver --budgets 12 6 3   # on test seeds

One elastic model: each step draws its budget. Many questions share a picture in one row (block mask), the frozen
tower's features are kept, and everything runs through ``vtc.patch``, as a user's own training does. Stopped, the same
command with --resume goes on. For other models: scripts/finetune.py.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vtc
from vtc.changes import LEARNED
from vtc.eval.files import write_json
from vtc.eval.scenes import SIZE, TYPES, checkpoint_path, samples
from vtc.eval.scenes.train.llava import Llava
from vtc.eval.scenes.train.measure import accuracy
from vtc.eval.scenes.train.model import autocast
from vtc.eval.scenes.train.optimise import Clock, Optimisers, rate_factor, save
from vtc.eval.scenes.train.pack import Batch, pack
from vtc.eval.scenes.train.pictures import prepare
from vtc.eval.scenes.train.stage2 import FeatureStore
from vtc.tokens import Budget

BATCH, QUESTIONS = 16, 16
FIRST = 2_000_000  # training seeds that the model itself was not trained on
EVERY = 300  # seconds between evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="perceiver")
    parser.add_argument("--latents", type=int, default=12)
    parser.add_argument("--budgets", type=int, nargs="+", default=[12, 6, 3], help="tokens; one is drawn each step")
    parser.add_argument("--train", choices=["compressor", "both"], default="both", help="both: the decoder as well")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--rate", type=float, default=1.0, help="of the method, times the one the testbed's models had")
    parser.add_argument("--decoder-rate", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/learned-pictures"), help="pictures, drawn once")
    parser.add_argument("--output", type=Path, default=Path("runs/perceiver"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate", type=Path, help="only measure this folder, on test seeds")
    parser.add_argument("--questions", type=int, default=900, help="of an evaluation on test seeds")
    args = parser.parse_args()
    if args.evaluate:
        evaluate(args.evaluate, args.budgets, args.questions)
        return
    torch.manual_seed(args.seed)
    Trainer(args).run()


class Trainer:
    """The patched model, its pictures and its optimiser."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(checkpoint_path())
        self.pictures = prepare(args.work, FIRST, args.pictures)
        self.kind = Llava()
        self.store = FeatureStore(self.kind, self.model, self.pictures)
        self.seen: torch.Tensor | None = None
        self.tower = self.model.model.get_image_features
        self.model.model.get_image_features = self.remembered  # before the patch, which listens to it
        self.model.requires_grad_(False)
        vtc.patch(self.model, vtc.methods.registry[args.method](latents=args.latents), budget=max(args.budgets))
        learned = self.model.get_submodule(LEARNED)
        learned.requires_grad_(True)
        self.optimisers = [(args.rate, Optimisers([learned], []))]
        if args.train == "both":
            decoder = [self.model.model.language_model, self.model.lm_head]
            for module in decoder:
                module.requires_grad_(True)
            self.optimisers.append((args.decoder_rate, Optimisers(decoder[:1], decoder[1:])))
        count = sum(p.numel() for p in learned.parameters()) / 1e6
        print(f"{args.method}: {count:.3f}M parameters of its own, trains {args.train}", flush=True)

    def run(self) -> None:
        args, path = self.args, self.args.output / "state.pt"
        step, spent = 0, 0.0
        if args.resume and path.exists():
            state = torch.load(path)
            self.model.load_state_dict(state["model"])
            for (_, part), kept in zip(self.optimisers, state["optimisers"], strict=True):
                part.restore(kept)
            step, spent = state["step"], state["spent"]
        clock, tally, kept = Clock(args.minutes, spent), {}, spent
        while clock.fraction < 1:
            rng = np.random.default_rng((args.seed, step))
            budget = int(rng.choice(args.budgets))
            index = np.sort(rng.choice(len(self.pictures), BATCH, replace=False))
            batch = pack([self.pictures.objects[i] for i in index], rng, QUESTIONS, [1.0] * len(TYPES))
            loss, right = self.loss(batch, self.store[index], budget)
            if not torch.isfinite(loss):
                raise SystemExit(f"the loss is {loss.item()} at step {step}, pictures {index.tolist()}; lower --rate")
            loss.backward()
            for rate, part in self.optimisers:
                part.step(rate * rate_factor(step, clock.fraction, 0.5))
            tally.setdefault(budget, []).append((loss.item(), right))
            step += 1
            if step % 50 == 0 or step == 5:
                told = " ".join(f"{k}: {np.mean(v, 0)[0]:.3f} {np.mean(v, 0)[1]:.3f}" for k, v in sorted(tally.items()))
                print(f"step {step} {clock.spent:.0f}s | tokens: loss right | {told}", flush=True)
                tally = {}
            if clock.spent > kept + EVERY:
                kept = clock.spent
                self.keep(path, step, kept)
        self.keep(path, step, clock.spent)
        print(f"done: {step} steps, {clock.spent:.0f}s", flush=True)
        vtc.save(self.model, args.output / "model", self.processor)

    def loss(self, batch: Batch, features: torch.Tensor, budget: int) -> tuple[torch.Tensor, float]:
        """Cross entropy of the answers with ``budget`` vision tokens, and the share that is right."""
        patch = vtc.patch_of(self.model)
        patch.set_budget(Budget(budget))
        with torch.no_grad(), autocast():
            self.seen = self.kind.project(self.model, features)
        with autocast():
            states = self.model.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                pixel_values=torch.zeros(len(features), 3, SIZE, SIZE),
                use_cache=False,
            ).last_hidden_state
            logits = self.model.lm_head(states[batch.answers[:, 0], batch.answers[:, 1]]).float()
        word, gold = batch.answers[:, 3] >= 0, batch.answers[:, 2]
        answer = F.cross_entropy(logits[word], gold[word]) + 0.1 * F.cross_entropy(logits[~word], gold[~word])
        return answer, float((logits[word].argmax(-1) == gold[word]).float().mean())

    def remembered(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """In place of the tower: the projected features of this step's pictures, while there are any."""
        if self.seen is None:
            return self.tower(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(pooler_output=tuple(self.seen))

    def keep(self, path: Path, step: int, spent: float) -> None:
        """What is needed to go on, the folder to load, and the accuracy on dev seeds."""
        state = {"model": self.model.state_dict(), "optimisers": [part.state() for _, part in self.optimisers]}
        save(path, state | {"step": step, "spent": spent})
        self.seen = None
        found = measured(self.model, self.processor, self.args.budgets, "dev", 270)
        print(f"DEV {spent:.0f}s {json.dumps(found)}", flush=True)


def measured(model: Any, processor: Any, budgets: list[int], split: str, count: int) -> dict[str, dict[str, float]]:
    """Accuracy by type at each budget, each question asked alone."""
    items = list(samples(split, count))
    patch = vtc.patch_of(model)
    found = {}
    for budget in budgets:
        patch.set_budget(Budget(budget))
        right = accuracy(model, processor, items)
        mean = float(np.mean([right[t] for t in TYPES]))
        found[str(budget)] = {"all": mean, **{name: round(value, 3) for name, value in right.items()}}
    return found


def evaluate(folder: Path, budgets: list[int], count: int) -> None:
    """The saved model on test seeds; writes ``test.json`` beside it."""
    started = time.perf_counter()
    model, processor = (
        vtc.load(folder / "model", dtype=torch.float32).eval(),
        AutoProcessor.from_pretrained(checkpoint_path()),
    )
    found = measured(model, processor, budgets, "test", count)
    write_json(folder / "test.json", found)
    print(json.dumps(found, indent=1), f"\n{time.perf_counter() - started:.0f}s")


if __name__ == "__main__":
    main()
