"""Train a learned method on the testbed: its parameters, and the language model that reads what they write.

    OMP_NUM_THREADS=1 python scripts/train_learned.py --minutes 20 --output runs/perceiver
    python scripts/train_learned.py --evaluate runs/perceiver --budgets 12 6 3   # on test seeds

One elastic model: each step draws its budget. One question a row, so that methods that choose by the question see the
one that they answer; the frozen tower's features are kept. Everything runs through ``vtc.patch``, as a user's own
training does. Stopped, the same command with --resume goes on. For other models: vtc finetune.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vtc
from vtc.eval.results.statistics import paired_change
from vtc.eval.scenes import SIZE, TYPES, checkpoint_path, samples
from vtc.eval.scenes.ask import Question, ask_about
from vtc.eval.scenes.train.architectures.llava import Llava
from vtc.eval.scenes.train.measure import accuracy, first_words
from vtc.eval.scenes.train.model import autocast
from vtc.eval.scenes.train.optimise import Clock, Optimisers, rate_factor, save
from vtc.eval.scenes.train.pack import PREFIX
from vtc.eval.scenes.train.pictures import prepare
from vtc.eval.scenes.train.stage2 import FeatureStore
from vtc.eval.scenes.vocabulary import EOS, IDS, PAD, encode
from vtc.files.atomic import write_json
from vtc.methods._spelling import build
from vtc.patching.api import prompts_end_at
from vtc.patching.patch import LEARNED
from vtc.tokens import Budget

PICTURES, QUESTIONS = 16, 16  # of a step
AGAINST = ["divprune+share", "adaptive", "adaptive:rest=[1,2,4,5]"]
ENDING = 0.1  # weight of the end of the text, beside that of the answer
FIRST = 2_000_000  # training seeds that the model itself was not trained on
EVERY = 300  # seconds between evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--method", default="perceiver:layer=3:candidates=4:latents=64:rest=[1,2,4,5]", help="as in vtc eval"
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=[12, 6, 3], help="tokens; one is drawn each step")
    parser.add_argument("--train", choices=["compressor", "decoder", "both"], default="both")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--rate", type=float, default=1.0, help="of the method, times the one the testbed's models had")
    parser.add_argument("--decoder-rate", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/learned-pictures"), help="pictures, drawn once")
    parser.add_argument("--output", type=Path, default=Path("runs/perceiver"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate", type=Path, help="only measure this folder, on test seeds")
    parser.add_argument("--dev-questions", type=int, default=270, help="of an evaluation while it trains")
    parser.add_argument("--questions", type=int, default=1800, help="of an evaluation on test seeds")
    parser.add_argument("--against", nargs="+", default=AGAINST, help="training-free methods to compare with there")
    args = parser.parse_args()
    if args.evaluate:
        evaluate(args.evaluate, args.budgets, args.against, args.questions)
        return
    torch.manual_seed(args.seed)
    Trainer(args).run()


class Trainer:
    """The patched model, its pictures and its optimiser."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        # On short rows of a CPU eager attention's backward is the quicker one.
        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint_path(), dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        self.processor = AutoProcessor.from_pretrained(checkpoint_path(), trust_remote_code=False)
        self.pictures = prepare(args.work, FIRST, args.pictures)
        self.kind = Llava()
        self.store = FeatureStore(self.kind, self.model, self.pictures)
        self.seen: torch.Tensor | None = None
        self.tower = self.model.model.get_image_features
        self.model.model.get_image_features = self.remembered  # before the patch, which listens to it
        self.model.requires_grad_(False)
        vtc.patch(self.model, build(args.method), budget=max(args.budgets))
        self.right = np.full(len(TYPES), 0.5)  # running share of right answers by type
        self.optimisers, own = [], 0
        if args.train != "decoder":
            learned = self.model.get_submodule(LEARNED)
            learned.requires_grad_(True)
            own = sum(p.numel() for p in learned.parameters())
            self.optimisers.append((args.rate, Optimisers([learned], [])))
        if args.train != "compressor":
            decoder = [self.model.model.language_model, self.model.lm_head]
            for module in decoder:
                module.requires_grad_(True)
            self.optimisers.append((args.decoder_rate, Optimisers(decoder[:1], decoder[1:])))
        print(f"{args.method}: {own / 1e6:.3f}M parameters of its own, trains {args.train}", flush=True)

    def run(self) -> None:
        args, path = self.args, self.args.output / "state.pt"
        step, spent = self.restore(path) if args.resume and path.exists() else (0, 0.0)
        clock, kept, tally = Clock(args.minutes, spent), spent, {}
        while clock.fraction < 1:
            budget, loss = self.loss(step)
            loss.backward()
            for rate, part in self.optimisers:
                part.step(rate * rate_factor(step, clock.fraction, 0.5))
            tally.setdefault(budget, []).append(loss.item())
            step += 1
            if step % 50 == 0 or step == 5:
                told = " ".join(f"{tokens}: {np.mean(losses):.3f}" for tokens, losses in sorted(tally.items()))
                right = " ".join(f"{name} {share:.2f}" for name, share in zip(TYPES, self.right, strict=True))
                print(f"step {step} {clock.spent:.0f}s | loss by tokens {told} | right {right}", flush=True)
                tally = {}
            if clock.spent > kept + EVERY:
                kept = clock.spent
                self.keep(path, step, kept)
        self.keep(path, step, clock.spent)
        print(f"done: {step} steps, {clock.spent:.0f}s", flush=True)
        vtc.save(self.model, args.output / "model", self.processor)

    def loss(self, step: int) -> tuple[int, torch.Tensor]:
        """The budget that step ``step`` draws, and the cross entropy of its answers."""
        rng = np.random.default_rng((self.args.seed, step))
        budget = int(rng.choice(self.args.budgets))
        index = np.sort(rng.choice(len(self.pictures), PICTURES, replace=False))
        weights = (0.4 + 2.5 * (1 - self.right)).tolist()  # more of what is answered least well
        asked = [ask_about(self.pictures.objects[i], rng, QUESTIONS, weights=weights) for i in index]
        questions = [question for some in asked for question in some]
        vtc.patch_of(self.model).set_budget(Budget(budget))
        with torch.no_grad(), autocast():
            seen = self.kind.project(self.model, self.store[index])
            self.seen = seen.repeat_interleave(torch.tensor([len(some) for some in asked]), dim=0)
        logits, gold = self.answers(*rows(questions))
        word = gold != EOS
        loss = F.cross_entropy(logits[word], gold[word]) + ENDING * F.cross_entropy(logits[~word], gold[~word])
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss is {loss.item()} at step {step}, pictures {index.tolist()}; lower --rate")
        for question, hit in zip(questions, (logits[word].argmax(-1) == gold[word]).tolist(), strict=True):
            self.right[TYPES.index(question.type)] += 0.01 * (hit - self.right[TYPES.index(question.type)])
        return budget, loss

    def answers(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[A, V]`` before each label, and the labels ``[A]``: of each row the answer, then the end."""
        with autocast(), prompts_end_at(self.model, labels):
            states = self.model.model(
                input_ids=ids,
                attention_mask=(ids != PAD).long(),
                pixel_values=torch.zeros(len(ids), 3, SIZE, SIZE),
                use_cache=False,
            ).last_hidden_state
            at = labels[:, 1:] >= 0
            return self.model.lm_head(states[:, :-1][at]).float(), labels[:, 1:][at]

    def remembered(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """In place of the tower: the projected features of this step's pictures, while there are any."""
        if self.seen is None:
            return self.tower(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(pooler_output=tuple(self.seen))

    def restore(self, path: Path) -> tuple[int, float]:
        """Where a stopped run goes on: its steps and seconds."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for (_, part), kept in zip(self.optimisers, state["optimisers"], strict=True):
            part.restore(kept)
        self.right = np.array(state["right"])
        return state["step"], state["spent"]

    def keep(self, path: Path, step: int, spent: float) -> None:
        """What is needed to go on, and the accuracy on dev seeds."""
        state = {"model": self.model.state_dict(), "optimisers": [part.state() for _, part in self.optimisers]}
        save(path, state | {"step": step, "spent": spent, "right": self.right.tolist()})
        self.seen = None
        found = measured(self.model, self.processor, self.args.budgets, "dev", self.args.dev_questions)
        print(f"DEV {spent:.0f}s {json.dumps(found)}", flush=True)


def rows(questions: list[Question]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``[B, L]``, padded on the left, and labels: the answer and the end of the text, -100 elsewhere."""
    prompts = [[*PREFIX, *encode(question.text), IDS["ASSISTANT:"]] for question in questions]
    length = max(map(len, prompts))
    ids = [[PAD] * (length - len(p)) + p + [IDS[q.answer], EOS] for p, q in zip(prompts, questions, strict=True)]
    labels = [[-100] * length + row[length:] for row in ids]
    return torch.tensor(ids), torch.tensor(labels)


def measured(model: Any, processor: Any, budgets: list[int], split: str, count: int) -> dict[str, dict[str, float]]:
    """Accuracy by type at each budget, each question asked alone."""
    items = list(samples(split, count))
    found = {}
    for budget in budgets:
        vtc.patch_of(model).set_budget(Budget(budget))
        right = accuracy(model, processor, items)
        mean = float(np.mean([right[t] for t in TYPES]))
        found[str(budget)] = {"all": mean, **{name: round(value, 3) for name, value in right.items()}}
    return found


def evaluate(folder: Path, budgets: list[int], against: list[str], count: int) -> None:
    """The saved model and, on the model it was trained from, training-free methods, on the same test questions: prints
    a table and writes ``test.json`` beside the model."""
    plain = AutoModelForImageTextToText.from_pretrained(
        checkpoint_path(), dtype=torch.float32, trust_remote_code=False
    ).eval()
    learned = vtc.load(folder / "model", dtype=torch.float32).eval()
    processor, items = (
        AutoProcessor.from_pretrained(checkpoint_path(), trust_remote_code=False),
        list(samples("test", count)),
    )

    def hits(model: Any) -> list[float]:
        return [float(word == s.answer) for word, s in zip(first_words(model, processor, items), items, strict=True)]

    budgets = sorted(set(budgets), reverse=True)
    found: dict[str, Any] = {"questions": count, "unpatched": np.mean(hits(plain)), "rows": []}
    print(f"{count} test questions, unpatched {100 * found['unpatched']:.1f} %\n")
    print("| tokens | learned % | of unpatched % | against | its % | learned less it [95 %] |")
    print("|---:|---:|---:|---|---:|---:|")
    for budget in budgets:
        vtc.patch_of(learned).set_budget(Budget(budget))
        mine = hits(learned)
        spent = vtc.report(learned).average_tokens
        for spec in against:
            with vtc.patched(plain, build(spec), budget):
                theirs = hits(plain)
            row = [spent, np.mean(mine), np.mean(mine) / found["unpatched"], spec, np.mean(theirs)]
            change = paired_change(mine, theirs)
            found["rows"].append([budget, *row, *change])
            shown = [f"{100 * x:.1f}" for x in (row[1], row[2], row[4])]
            change_shown = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in change))
            print(f"| {spent:.1f} | {shown[0]} | {shown[1]} | `{spec}` | {shown[2]} | {change_shown} |", flush=True)
    write_json(folder / "test.json", found)


if __name__ == "__main__":
    main()
