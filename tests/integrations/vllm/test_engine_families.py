"""Every family that vLLM has and we serve: a tiny random model gives the log probabilities of the patched one."""

from __future__ import annotations

from itertools import pairwise

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


@torch.inference_mode()
def patched(path: str, asked: list, method: str, budgets: list) -> list[tuple[list[int], list[float]]]:
    """Of each prompt alone: tokens, greedy, and their log probabilities."""
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


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_the_log_probabilities_of_transformers(name, tmp_path):
    """One picture and two, three budgets over them in one batch; with all tokens the model is the unreduced one."""
    if name == "smolvlm":
        pytest.importorskip("num2words")  # its processor wants it
    tiny = zoo.save(name, tmp_path)
    some = [(tiny.prompt(1, seed), [zoo.picture(*size, seed)]) for seed, size in enumerate(SIZES)]
    some.append((tiny.prompt(2, 9), [zoo.picture(40, 32, 7), zoo.picture(20, 30, 8)]))
    asked = [one for one in some for _ in BUDGETS]
    budgets = list(BUDGETS) * len(some)
    each = [{"mm_processor_kwargs": {REQUEST: budget}} for budget in budgets]
    with engine(str(tmp_path), tiny.architecture, "divprune+share", 8) as llm:
        outputs = in_vllm(llm, asked, each, logprobs=0, ignore_eos=True)
    want = patched(str(tmp_path), asked, "divprune+share", budgets)
    for one, (tokens, chances) in zip(outputs, want, strict=True):
        got = one.outputs[0]
        assert list(got.token_ids) == tokens
        own = [step[t].logprob for step, t in zip(got.logprobs, tokens, strict=True)]
        assert own == pytest.approx(chances, abs=CLOSE)
    first = [chances[0] for _, chances in want]
    apart = [abs(a - b) for n in range(0, len(first), 3) for a, b in pairwise(first[n : n + 3])]
    assert sum(gap > 5 * CLOSE for gap in apart) >= len(apart) / 2, "the judge must tell budgets apart"
