"""What the contract tests share: the dense matrix of methods and families, and small ways to run a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtc
from tests import zoo
from tests.own import known, walked
from vtc.errors import UnsupportedModel
from vtc.methods import registry
from vtc.patching.api import patch_of
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_keys import TowerKeys

METHODS = tuple(walked(registry))
KNOWN = known(registry)
IN_DECODER = tuple(name for name, kind in KNOWN.items() if all(s.layer != 0 for s in kind().stages()))
IN_TOWER = tuple(  # they look at the vision tower's attention
    name
    for name, kind in KNOWN.items()
    if any(isinstance(s, (TowerAttention, TowerKeys)) for n in range(len(kind().stages())) for s in kind().signals(n))
)
KEYS = tuple(
    name for name, kind in KNOWN.items() if kind.reduces_keys
)  # all rows stay: tests/engine/sites/test_kv_reduction.py
SKIPPING = tuple(
    name for name, kind in KNOWN.items() if kind.skips_layers
)  # rows come back: tests/engine/sites/test_token_routing.py
STOPPING = tuple(
    name for name, kind in KNOWN.items() if kind().freezes
)  # vision rows stop, and stay keys: tests/engine/sites/test_frozen.py
GRID = tuple(name for name, kind in KNOWN.items() if kind.gridded)
# Towers whose tokens cannot merge: a mask parts packed pictures, a resampler follows, or their layers are not known.
STIFF = ("llava_pixtral", "mistral3", "ovis2", "perception_lm", "got_ocr2", "aria")
MERGING = tuple(name for name, kind in KNOWN.items() if (kind.trains or kind().share) and not kind.reduces_keys)
MERGING_TOWER = ("tome",)  # what enters the decoder is not what the unpatched tower makes of the picture
# Pairs a family's signals (or the lack of a grid, or recurrent layers) rule out; each must raise, never substitute.
REFUSED = {
    *(("qwen3_5", name) for name, kind in KNOWN.items() if any(s.layer != 0 for s in kind().stages())),
    *(("qwen3_5", name) for name in (*KEYS, *STOPPING)),
    *((family, name) for family in ("perception_lm", "got_ocr2", "aria") for name in IN_TOWER),
    *(("aria", name) for name in GRID),
    *((family, "tome") for family in STIFF),
}


def pairs(families: tuple[str, ...], every: int) -> list:
    """The dense matrix of families and methods as pytest parameters. All methods on LLaVA and one in ``every`` of the
    other cells, along diagonals, run always; the rest is slow."""
    cells = [(i, f, j, m) for i, f in enumerate(families) for j, m in enumerate(METHODS) if (f, m) not in REFUSED]
    slow = [pytest.mark.slow]
    return [pytest.param(f, m, marks=() if f == "llava" or (i + j) % every == 0 else slow) for i, f, j, m in cells]


PAIRS = pairs(tuple(zoo.NAMES), 5)
# One family of each kind: plain, AnyRes with newlines, M-RoPE with windows, DeepStack, sliding windows, prefix masks.
KINDS = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3")
SOME_PAIRS = pairs(KINDS, 4)


def served(method: str) -> pytest.MarkDecorator:
    """Every family that ``method`` runs on, as the parameter ``family``; one of each kind is quick."""
    families = [f for f in zoo.NAMES if (f, method) not in REFUSED]
    return pytest.mark.parametrize(
        "family", [f if f in KINDS else pytest.param(f, marks=pytest.mark.slow) for f in families]
    )


def exact_dtype(family: str) -> torch.dtype:
    return torch.float32 if family in zoo.FLOAT32_ONLY else torch.float64


@torch.no_grad()
def logits(model, prompt: dict, **kwargs) -> torch.Tensor:
    return model(**prompt, **kwargs).logits


def logits_elsewhere(folder: Path, prompt: dict) -> torch.Tensor:
    """What the checkpoint in ``folder`` answers to ``prompt`` in a process of its own; files beside the folder."""
    script = (
        "import sys, torch, vtc; torch.set_num_threads(1); model = vtc.load(sys.argv[1])\n"
        "with torch.no_grad(): out = model(**torch.load(sys.argv[2])).logits\n"
        "torch.save(out, sys.argv[3])"
    )
    asked, answered = folder.parent / "prompt.pt", folder.parent / "logits.pt"
    torch.save(prompt, asked)
    command = [sys.executable, "-c", script, str(folder), str(asked), str(answered)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return torch.load(answered)


@torch.no_grad()
def generate(model, prompt: dict, tokens: int = 4, **kwargs):
    options = dict(max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True)
    if model.config.model_type == "janus":
        options["generation_mode"] = "text"
    return model.generate(**prompt, **{**options, **kwargs})


def engine(model):
    return patch_of(model).engine


def kept(model) -> list[list[int]]:
    """For each picture of the last forward the tokens that live at the end."""
    return [[n for n, s in enumerate(p.slot) if s == n] for p in vtc.report(model).pictures]


def refused(model, method: str, prompt: dict) -> None:
    """The pair raises when it is patched, or at its first picture."""
    with pytest.raises(UnsupportedModel, match="use|run|left-pad"):
        vtc.patch(model, method, budget=0.5)
        logits(model, prompt)
    vtc.unpatch(model)
