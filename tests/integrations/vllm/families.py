"""Tiny models asked in vLLM and in transformers: tokens and their log probabilities.

Where vLLM runs transformers' own code it changes its classes for good, so such engines run in another process:
``python -m tests.integrations.vllm.families``, a line of JSON for each engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from tests.integrations.vllm import zoo
from tests.integrations.vllm.engines import engine, in_vllm
from vtc.integrations.vllm.settings import REQUEST
from vtc.methods._spelling import build

STEPS = 6
SIZES = [(40, 32), (48, 20), (26, 44)]
BUDGETS = (7, 4, 1.0)
CLOSE = 1e-4  # of a log probability
MARK = "answers: "
Answers = list[tuple[list[int], list[float]]]  # of each prompt: tokens, greedy, and their log probabilities


@dataclass(frozen=True)
class Cell:
    """A model in a folder, and what it is asked: three prompts with a picture and one with two, at each budget."""

    path: str
    placeholder: str
    architecture: str
    method: str
    backed: bool = False  # by transformers' code even where vLLM has its own

    def asked(self) -> tuple[list[Any], list[Any]]:
        some = [(zoo.prompt(self.placeholder, 1, n), [zoo.picture(*size, n)]) for n, size in enumerate(SIZES)]
        some.append((zoo.prompt(self.placeholder, 2, 9), [zoo.picture(40, 32, 7), zoo.picture(20, 30, 8)]))
        return [one for one in some for _ in BUDGETS], list(BUDGETS) * len(some)

    def served(self) -> Answers:
        """All in one batch."""
        asked, budgets = self.asked()
        options = {}
        if self.backed:
            names, said = [f"VtcBacked{self.architecture}", self.architecture], {"method": self.method, "budget": 8}
            options = {"hf_overrides": {"architectures": names, "vtc": said}}
        with engine(self.path, self.architecture, self.method, 8, **options) as llm:
            each = [{"mm_processor_kwargs": {REQUEST: budget}} for budget in budgets]
            outputs = in_vllm(llm, asked, each, logprobs=0, ignore_eos=True)
        return list(map(answer, outputs))

    def patched(self) -> Answers:
        """In transformers, each prompt alone."""
        return in_turn(self.path, *self.asked(), self.method)


class Elsewhere:
    """The other process: one engine after the other. It ends with the first that fails, and the next gets a new one."""

    def __init__(self, log: Path):
        self.log = log
        self.process: subprocess.Popen | None = None

    def served(self, cell: Cell) -> Answers:
        if self.process is None:
            command = [sys.executable, "-m", "tests.integrations.vllm.families"]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True)
            self.process = subprocess.Popen(command, **pipes)
        self.process.stdin.write(json.dumps(vars(cell)) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self.end()
        raise AssertionError(self.log.read_text()[-3000:])

    def end(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
        self.process = None


def answer(output: Any) -> tuple[list[int], list[float]]:
    """Of one of vLLM's outputs."""
    one = output.outputs[0]
    tokens = list(one.token_ids)
    return tokens, [step[t].logprob for step, t in zip(one.logprobs, tokens, strict=True)]


@torch.inference_mode()
def in_turn(path: str, asked: list, budgets: list, method: str) -> Answers:
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    out = []
    for (prompt, pictures), budget in zip(asked, budgets, strict=True):
        inputs = processor(images=pictures, text=prompt, return_tensors="pt")
        inputs.pop("token_type_ids", None)  # Gemma 3: vLLM on the CPU has no mask that looks ahead in a picture
        with vtc.patched(model, build(method), budget):
            found = model.generate(
                **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        tokens = found.sequences[0, inputs["input_ids"].shape[1] :]
        chances = torch.stack(found.logits)[:, 0].log_softmax(dim=-1)
        out.append((tokens.tolist(), chances.gather(1, tokens[:, None])[:, 0].tolist()))
    return out


def check(got: Answers, want: Answers) -> None:
    """The same, by a judge that tells budgets apart."""
    for (tokens, chances), (right, known) in zip(got, want, strict=True):
        assert tokens == right
        assert chances == pytest.approx(known, abs=CLOSE)
    first = [chances[0] for _, chances in want]
    apart = [abs(a - b) for n in range(0, len(first), len(BUDGETS)) for a, b in pairwise(first[n : n + len(BUDGETS)])]
    assert sum(gap > 5 * CLOSE for gap in apart) >= len(apart) / 2


if __name__ == "__main__":
    for asked in sys.stdin:
        print(MARK + json.dumps(Cell(**json.loads(asked)).served()), flush=True)
