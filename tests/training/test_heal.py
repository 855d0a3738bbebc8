"""Healing: a model that lost weights comes closer to its original, and stays what compression made of it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

import vtc
from tests.eval.tiny import tiny_llava, tiny_processor
from vtc.checkpoint.save_load import compression_of
from vtc.models import family_of
from vtc.training.collate import Collator
from vtc.training.conversations import JSONLines
from vtc.training.losses import at_labels, distillation_loss
from vtc.weights.structure.sharing import BorrowedLinear

pytest.importorskip("accelerate")


@pytest.fixture
def apart(folder):
    """``apart(model)``: its mean divergence from the original on the data, nats."""
    data = JSONLines(folder / "data.jsonl")
    batch = Collator(tiny_processor())([data[n] for n in range(len(data))])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "sample_ids")}

    @torch.no_grad()
    def logits(model):
        return at_labels(model.eval()(**inputs).logits, batch["labels"])[0]

    want = logits(tiny_llava())
    return lambda model: float(distillation_loss(logits(model), want)) / len(want)


HEALING = {"train": "all", "distill": 1.0, "weight": 1.0, "method": None, "steps": 12, "batch": 6, "save_every": 12}


def test_low_rank_factors_heal_and_stay_low_rank(train, folder, tmp_path, apart):
    small = vtc.compress(tiny_llava(), "svd:rank=6", progress=False)
    before = apart(small)
    vtc.save(small, tmp_path / "small", tiny_processor())
    run = train(model=str(tmp_path / "small"), teacher=str(folder / "model"), **HEALING)
    healed = vtc.load(run / "model")
    assert apart(healed) < 0.8 * before
    assert {n: p.shape for n, p in healed.state_dict().items()} == {n: p.shape for n, p in small.state_dict().items()}
    assert compression_of(healed).manifest["recipe"] == compression_of(small).manifest["recipe"]


@pytest.mark.slow
def test_a_model_without_some_layers_heals(train, folder, tmp_path, apart):
    small = vtc.compress(tiny_llava(), "layers:share=0.25", calibration=prompts(folder), progress=False)
    before = apart(small)
    small.save_pretrained(tmp_path / "small")
    tiny_processor().save_pretrained(tmp_path / "small")
    run = train(model=str(tmp_path / "small"), teacher=str(folder / "model"), **HEALING)
    healed = AutoModelForImageTextToText.from_pretrained(run / "model")
    assert len(family_of(healed).layers) == 3 and apart(healed) < 0.8 * before


def prompts(folder):
    data = JSONLines(folder / "data.jsonl")
    batches = [Collator(tiny_processor())([data[n]]) for n in range(4)]
    return [{k: v for k, v in b.items() if k not in ("labels", "sample_ids")} for b in batches]


@pytest.mark.slow
def test_blocks_rebuilt_from_others_heal_and_stay_shared(train, folder, tmp_path, apart):
    small = vtc.compress(tiny_llava(), "borrow:share=0.25:rank=2", calibration=prompts(folder), progress=False)
    before = apart(small)
    vtc.save(small, tmp_path / "small", tiny_processor())
    run = train(model=str(tmp_path / "small"), teacher=str(folder / "model"), **HEALING)
    healed = vtc.load(run / "model")
    borrowers = {n: m for n, m in healed.named_modules() if isinstance(m, BorrowedLinear)}
    assert len(borrowers) == 7 and all(m.lender in list(healed.modules()) for m in borrowers.values())
    assert all(not torch.equal(m.u, small.get_submodule(n).u) for n, m in borrowers.items()), "adapters learn"
    assert apart(healed) < 0.8 * before


def test_a_teacher_that_reads_other_tokens_is_refused(train, folder, tmp_path):
    from vtc.errors import UnsupportedModel

    other = tiny_processor()
    other.tokenizer.add_tokens(["color"])
    other.image_processor.image_mean = [0.1, 0.1, 0.1]
    tiny_llava().save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedModel, match="different tokens or pixels"):
        train(steps=1, distill=1.0, teacher=str(tmp_path / "other"))
