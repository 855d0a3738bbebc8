"""What a second question about the same picture loses: asked on the cache that the first question left reduced.

    python scripts/measure_second_turn.py                                  # the testbed's model, its dev pictures
    python scripts/measure_second_turn.py scenes-qwen --methods adaptive,adaptive:memory=true --budgets 0.0625

First turn: the picture and question 1, answered. Second turn: question 2, on the same cache. Beside it: question 2
asked first, of the same pictures, and the second turn of the unpatched model (which the testbed's model was not trained
for either).
"""

from __future__ import annotations

import argparse
import itertools

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

import vtc
from vtc.eval import scenes
from vtc.eval.cells import parse_specs
from vtc.methods._spelling import build

TOKENS = 4
SECOND = " USER: {question} ASSISTANT:"


@torch.inference_mode()
def answer(model, processor, cache: DynamicCache, **inputs) -> str:
    """Greedy, at most ``TOKENS`` tokens; the cache then holds prompt and answer."""
    words: list[int] = []
    for _ in range(TOKENS):
        token = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax()
        if int(token) == processor.tokenizer.eos_token_id:
            break
        words.append(int(token))
        inputs = {"input_ids": token.view(1, 1)}
    return processor.tokenizer.decode(words, skip_special_tokens=True).strip()


def turns(model, processor, first, second=None) -> list[bool]:
    """Whether question 1, and question 2 on the same cache, are answered rightly."""
    cache = DynamicCache(config=model.config.get_text_config())
    inputs = processor(images=first.image, text=first.prompt, return_tensors="pt")
    right = [answer(model, processor, cache, **inputs) == first.answer]
    if second is None:
        return right
    text = SECOND.format(question=second.question)
    more = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return [*right, answer(model, processor, cache, input_ids=more) == second.answer]


def pairs(count: int) -> list[tuple]:
    """Two questions about one picture each, from the dev seeds."""
    found = scenes.samples("dev", 6 * count)
    grouped = itertools.groupby(found, key=lambda s: s.id.rsplit("-", 1)[0])
    lists = (list(group) for _, group in grouped)
    return [(group[0], group[1]) for group in lists if len(group) > 1][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=("scenes", "scenes-qwen"), default="scenes")
    parser.add_argument("--methods", default="adaptive,adaptive:memory=true,divprune+share")
    parser.add_argument("--budgets", default="0.25,0.0625")
    parser.add_argument("--pairs", type=int, default=200)
    args = parser.parse_args()
    path = scenes.checkpoint_path("qwen" if args.model == "scenes-qwen" else "llava")
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=False).eval(),
        AutoProcessor.from_pretrained(path, trust_remote_code=False),
    )
    questions = pairs(args.pairs)
    cells = [("unpatched", 1.0)]
    cells += [(spec, float(b)) for spec in parse_specs(args.methods) for b in args.budgets.split(",")]
    print(
        f"{len(questions)} pairs of questions\n\n| method | budget | asked first | asked second |\n|---|---:|---:|---:|"
    )
    for spec, budget in cells:
        if spec != "unpatched":
            vtc.patch(model, build(spec), budget=budget)
        bar = tqdm(questions, desc=f"{spec} {budget:g}", leave=False)
        asked_second = [turns(model, processor, a, b)[1] for a, b in bar]
        asked_first = [turns(model, processor, b)[0] for _, b in tqdm(questions, desc="asked first", leave=False)]
        vtc.unpatch(model)
        first, second = (100 * sum(right) / len(right) for right in (asked_first, asked_second))
        print(f"| {spec} | {100 * budget:g} % | {first:.1f} | {second:.1f} |", flush=True)


if __name__ == "__main__":
    main()
