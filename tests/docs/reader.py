"""What a reader has before a page begins: a model of theirs, questions, pictures, a checkout, names in Python."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch

import vtc
from tests.docs.pages import ROOT
from tests.eval import public
from tests.eval.tiny import picture, tiny_llava, tiny_processor
from vtc.commands.common import batches
from vtc.eval import scenes
from vtc.eval.asking.load import load
from vtc.eval.benchmarks import registry

CHECKOUT = ("vtc", "scripts", "docs", "tests")  # what commands name by a path in the repository
TINY = ("docs/weights.md",)  # pages that copy, compress and save models
LONG_TEXT = "A long text that nobody wants to read as tokens. " * 20


def folder(page: Path) -> Path:
    """The folder that a page's reader stands in, under ``page``, which is their home."""
    here = page / "checkout"
    here.mkdir()
    for name in CHECKOUT:
        (here / name).symlink_to(ROOT / name)
    tiny_llava().save_pretrained(here / "my-vlm")
    tiny_processor().save_pretrained(here / "my-vlm")
    shutil.copytree(here / "my-vlm", here / "runs" / "easy_vqa_model")
    scenes.scene(7).image.save(here / "cat.png")
    own_questions(here)
    public.write_tsv(here)
    public.write(here / "rows" / "pope", public.POPE)
    public.write(page / "data" / "MME", public.MME)
    easy_vqa(page / "shared" / "data" / "easy_vqa")
    return here


def own_questions(here: Path) -> None:
    rows = [{"id": f"q{n}", "image": f"{n}.png", "question": "how many digits ?", "answer": "two"} for n in range(3)]
    for n in range(3):
        picture(n).save(here / f"{n}.png")
    (here / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))


def easy_vqa(data: Path) -> None:
    """Both splits, as the data set lays them out."""
    for split in ("train", "test"):
        (data / split / "images").mkdir(parents=True)
        for n in range(4):
            picture(n, (64, 64)).save(data / split / "images" / f"{n}.png")
        asked = [["what color is the circle?", "red", n] for n in range(4)]
        (data / split / "questions.json").write_text(json.dumps(asked))


@cache
def testbed() -> tuple[Any, Any, list[Any]]:
    model, processor = load(str(scenes.checkpoint_path()), "float32", "cpu", "sdpa")
    return model, processor, asked(model, processor)


def asked(model: Any, processor: Any) -> list[Any]:
    """Prompts with pictures, as the processor makes them, two at once."""
    source = registry["scenes"](split="dev", limit=3)
    return batches(model, processor, source, list(source.samples()), 2)


def names(page: str) -> dict[str, Any]:
    """What a page's Python takes for granted."""
    torch.manual_seed(0)
    if page in TINY:
        model, processor = tiny_llava(), tiny_processor()
        prompts = asked(model, processor)
    else:
        model, processor, prompts = testbed()
        vtc.unpatch(model)
    shared = {"model": model, "processor": processor, "prompts": prompts, "batches": prompts, "inputs": prompts[0]}
    return shared | {"vtc": vtc, "text": LONG_TEXT, "original": tiny_llava(), "teacher": tiny_llava()}
