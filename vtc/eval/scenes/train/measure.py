"""Accuracy of the model: while it trains, of the exported folder, and with vision tokens cut inside the decoder."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from vtc.eval.scenes.ask import ONE_HOP, TWO_HOP, TYPES
from vtc.eval.scenes.sample import Sample, samples
from vtc.eval.scenes.train.model import TOKENS
from vtc.eval.scenes.vocabulary import IMAGE, VOCABULARY

BATCH = 50


def _parts(items: list[Sample]) -> Iterator[list[Sample]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _inputs(processor: ProcessorMixin, items: list[Sample]) -> BatchFeature:
    """Left-padded prompts and pictures."""
    images, texts = [s.image for s in items], [s.prompt for s in items]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def by_type(items: Iterable[Sample], answers: Iterable[str]) -> dict[str, float]:
    """Share of right answers: by type, over all one-hop types, over all two-hop types."""
    hits = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        for name in (item.type, "one_hop" if item.hops == 1 else "two_hop"):
            hits[name].append(item.answer == answer)
    return {name: float(np.mean(hits[name])) for name in (*TYPES, "one_hop", "two_hop") if name in hits}


def accuracy(model: PreTrainedModel, processor: ProcessorMixin, items: list[Sample]) -> dict[str, float]:
    """Of the first answer word, one question a row."""
    return by_type(items, first_words(model, processor, items))


@torch.no_grad()
def first_words(model: PreTrainedModel, processor: ProcessorMixin, items: list[Sample]) -> list[str]:
    """The first word of each answer, one question a row."""
    answers: list[str] = []
    for part in _parts(items):
        logits = model(**_inputs(processor, part), use_cache=False, logits_to_keep=1).logits[:, -1]
        answers += [VOCABULARY[i] for i in logits.argmax(-1).tolist()]
    return answers


def _generated(folder: Path) -> Callable[[list[Sample]], list[str]]:
    """Answers as a user gets them: processor, generate, decode."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()

    @torch.no_grad()
    def answer(items: list[Sample]) -> list[str]:
        texts: list[str] = []
        for part in _parts(items):
            inputs = _inputs(processor, part)
            ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            texts += [t.strip() for t in processor.batch_decode(ids, skip_special_tokens=True)]
        return texts

    return answer


def _print(title: str, items: list[Sample], right: dict[str, float]) -> None:
    counts = {t: sum(s.type == t for s in items) for t in TYPES}
    print(f"{title} (n {len(items)}, {min(counts.values())} a type or more)")
    for name, value in right.items():
        print(f"  {name:13} {100 * value:5.1f}")


def measure(folder: Path, count: int) -> None:
    """Prints the accuracy of a folder on the test seeds, plain and crowded pictures, and its size."""
    answer = _generated(folder)
    for crowded in (False, True):
        items = list(samples("test", count, crowded=crowded))
        _print(f"TEST {'crowded' if crowded else 'plain'}", items, by_type(items, answer(items)))
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"folder {size / 2**20:.2f} MiB, {len(ONE_HOP)} one-hop types, {len(TWO_HOP)} two-hop types")


class RandomCut:
    """From decoder layer K on, all but a few vision tokens of each prompt are hidden, at random."""

    def __init__(self, model: PreTrainedModel, layer: int, keep: int) -> None:
        self.keep, self.hidden = keep, torch.empty(0, dtype=torch.bool)
        self.generator = torch.Generator().manual_seed(0)
        layers = model.model.language_model.layers[layer:]
        self.hooks = [m.register_forward_pre_hook(self._hide, with_kwargs=True) for m in layers]

    def choose(self, ids: Tensor) -> None:
        """Draws, for each prompt, which of its vision tokens stay."""
        hidden = ids == IMAGE
        score = torch.rand(ids.shape, generator=self.generator).masked_fill(~hidden, -1)
        self.hidden = hidden.scatter(1, score.topk(self.keep, dim=1).indices, False)

    def _hide(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        lowest = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask.masked_fill(self.hidden[:, None, None, :], lowest)}

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def measure_cuts(folder: Path, layer: int, count: int, shares: tuple[float, ...] = (0.06, 0.25)) -> None:
    """Prints what random cuts after a decoder layer cost: later layers matter where they cost much."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    processor, items = AutoProcessor.from_pretrained(folder, trust_remote_code=False), list(samples("test", count))
    _print("NO CUT", items, accuracy(model, processor, items))
    for share in shares:
        keep, answers = round(share * TOKENS), []
        cut = RandomCut(model, layer, keep)
        for part in _parts(items):
            inputs = _inputs(processor, part)
            cut.choose(inputs["input_ids"])
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            answers += [VOCABULARY[i] for i in logits.argmax(-1).tolist()]
        cut.remove()
        _print(f"RANDOM {keep} OF {TOKENS} TOKENS AFTER LAYER {layer}", items, by_type(items, answers))
