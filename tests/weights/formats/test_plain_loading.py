"""Compressed weights never become random ones: a process that only imported vtc is told to use ``vtc.load``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vtc
from tests import zoo
from tests.eval.tiny import tiny_llava, tiny_processor
from tests.support import logits
from vtc.weights.formats import hf

ROOT = Path(__file__).parents[3]
RECIPES = {  # family, recipe: gemma3 loads as a language model, too
    "rounded": ("llava", "rtn:bits=4:group=8"),
    "factorised": ("qwen2_5_vl", "svd:keep=0.5"),
    "pruned": ("llava", "neurons:share=0.25:score=magnitude:compensate=false"),
    "text": ("gemma3", "rtn:bits=4:group=8"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of every way into every folder, by ``vtc.save`` and by ``save_pretrained``, compressed and patched alone."""
    work, folders = tmp_path_factory.mktemp("plain"), []
    for name, (family, recipe) in RECIPES.items():
        model = zoo.build(family)
        vtc.compress(model, recipe, progress=False)
        vtc.save(model, work / name)
        vtc.save(vtc.load(work / name), work / f"{name}-twice")
        vtc.load(work / name).save_pretrained(work / f"{name}-pretrained")
        folders += [work / f"{name}{how}" for how in ("", "-twice", "-pretrained")]
    model = tiny_llava()
    vtc.patch(model, "perceiver", budget=4)  # learned, beside dense weights: those stand for themselves
    vtc.save(model, work / "patched")
    for folder in (*folders, work / "patched"):
        tiny_processor().save_pretrained(folder)
    command = [sys.executable, "-m", "tests.weights.formats.plain_loading", *map(str, folders), str(work / "patched")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {Path(folder).name: told for folder, told in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("how", ["", "-twice", "-pretrained"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_way_in_names_vtc_load(outcomes, name, how):
    for way, outcome in outcomes[name + how].items():
        foreign = way == "AutoModelForCausalLM" and name != "text"  # has no such class, compressed or not
        assert ("Unrecognized configuration class" if foreign else "vtc.load(folder)") in outcome, (way, outcome)


def test_a_dense_model_with_a_learned_method_loads_as_it_is(outcomes):
    assert outcomes["patched"]["AutoModelForImageTextToText"] == "loaded"


def test_what_is_undone_or_written_for_other_readers_is_not_locked(tmp_path):
    pytest.importorskip("compressed_tensors", exc_type=ImportError)
    model = zoo.build("llava")
    vtc.compress(model, "rtn:bits=4:group=8", progress=False)
    vtc.save(model, tmp_path / "ct", format="compressed-tensors")
    assert "fusion_config" not in (tmp_path / "ct" / "config.json").read_text()
    assert hf.LOCK in model.config.fusion_config  # and the model itself is as it was
    hf.unmark(model)
    assert not any(hasattr(part, "fusion_config") for part in hf.parts_of(model.config))


def test_a_fusion_of_the_users_own_stays(tmp_path):
    model = zoo.build("llava")
    model.config.fusion_config = {"patch_embeddings": False}
    vtc.compress(model, "rtn:bits=4:group=8", progress=False)
    vtc.save(model, tmp_path / "out")
    loaded = vtc.load(tmp_path / "out")
    hf.unlock(loaded.config)
    prompt = zoo.prompt(model, 1)
    assert loaded.config.fusion_config == {"patch_embeddings": False}
    assert logits(loaded, prompt).equal(logits(model, prompt))
