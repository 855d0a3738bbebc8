"""``vtc sensitivity`` on a tiny model: what it measures, what it suggests, what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

import vtc
from vtc.errors import DataError, RunRefused, VTCError
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.studies import sensitivity as module
from vtc.eval.studies.sensitivity import Cut, attention_to_vision, plan, schedule, sensitivity


@pytest.fixture
def go(vlm, tmp_path):
    def run(file, **options):
        settings = {"keeps": (0.5, 0.125), "layers": (0, 2), "batch_size": 5, "progress": False} | options
        return sensitivity(*vlm, JSONL(data=file), tmp_path / "out", **settings)

    return run


@pytest.fixture
def asked(vlm, rows, write_rows):
    """An answerer, and the inputs of five questions."""
    answerer = Answerer(*vlm, JSONL.frame)
    bench = JSONL(data=write_rows(rows))
    ready = [answerer.ready(sample, bench) for sample in list(bench.samples())[:5]]
    return answerer, answerer.inputs(ready)


def test_a_whole_run(go, vlm, rows, write_rows, tmp_path):
    found = go(write_rows(rows))
    names = {"random:layer=0@0.5", "random:layer=0@0.125"}
    names |= {f"{rule}:layer=2@{keep}" for rule in ("random", "fastv") for keep in (0.5, 0.125)}
    assert set(found["cuts"]) == names
    assert all(cut["divergence"] > 0 and 0 <= cut["accuracy"] <= 1 for cut in found["cuts"].values())
    assert found["unpatched"]["tokens"] == 16 and found["unpatched"]["questions"] == 12
    assert len(found["attention"]) == 4 and all(0 < share < 1 for share in found["attention"])
    assert vtc.patch_of(vlm[0]) is None
    text = (tmp_path / "out" / "sensitivity.md").read_text()
    assert "| 2 |" in text and "random 12.5 %" in text
    assert (tmp_path / "out" / "sensitivity.png").exists()


def test_it_goes_on_where_it_stopped(go, rows, write_rows, tmp_path, monkeypatch):
    file = write_rows(rows)
    want = go(file)
    path = tmp_path / "out" / "sensitivity.json"
    whole = path.read_bytes()
    half = json.loads(whole)
    del half["cuts"]["fastv:layer=2@0.5"], half["schedule"]
    path.write_text(json.dumps(half))
    asked = []
    cost = module.Probe.cost
    monkeypatch.setattr(module.Probe, "cost", lambda *given: asked.append(1) or cost(*given))
    assert go(file) == want and len(asked) == 1
    assert path.read_bytes() == whole
    with pytest.raises(RunRefused, match="other settings"):
        go(file, layers=(1,))


def test_attention_is_that_of_an_eager_model(vlm, asked):
    answerer, inputs = asked
    vision = answerer.vision(inputs)
    ours = attention_to_vision(vlm[0], inputs, vision)
    vlm[0].set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = vlm[0](**inputs, output_attentions=True).attentions
    finally:
        vlm[0].set_attn_implementation("sdpa")
    theirs = [(w[:, :, -1].mean(1) * vision).sum().item() for w in weights]
    assert [ours[n] for n in range(4)] == pytest.approx(theirs, rel=1e-5)
    assert vlm[0].config._attn_implementation == "sdpa"
    other = attention_to_vision(vlm[0], inputs, ~vision)
    assert [ours[n] + other[n] for n in range(4)] == pytest.approx([5.0] * 4)


def test_a_cut_leaves_its_share(go, rows, write_rows):
    """Of 16 tokens; a budget is whole tokens, so a late cut can leave fewer than asked for, or cannot be had at all."""
    cuts = go(write_rows(rows), layers=(0, 1, 3), keeps=(0.5, 0.125))["cuts"]
    left = {(cut["layer"], cut["keep"]): cut.get("left") for cut in cuts.values() if cut["rule"] == "random"}
    assert left == {(0, 0.5): 8 / 16, (0, 0.125): 2 / 16, (1, 0.5): 8 / 16, (1, 0.125): 1 / 16, (3, 0.5): 8 / 16} | {
        (3, 0.125): None
    }


def test_layers_are_spread():
    assert sorted({cut.layer for cut in plan(40, None, (0.5,))})[::11] == [0, 39]
    assert [cut.layer for cut in plan(1, None, (0.5,))] == [0]
    assert {cut.rule for cut in plan(3, (0,), (0.5,))} == {"random"}, "no attention has run before layer 0"


def row(layer, keep, divergence, rule="fastv"):
    return vars(Cut(rule, layer, keep)) | {"divergence": divergence}


def test_the_schedule_takes_the_earliest_layer_that_stays_cheap():
    cuts = [row(2, 0.5, 0.01), row(4, 0.5, 0.01), row(1, 0.25, 0.2), row(4, 0.25, 0.04), row(5, 0.25, 0.9)]
    cuts += [row(0, 0.25, 0.0, "random"), row(4, 0.1, 0.9)]
    assert schedule(cuts, 0.05) == [{"layer": 2, "keep": 0.5}, {"layer": 4, "keep": 0.25}]
    assert schedule(cuts, 0.3) == [{"layer": 1, "keep": 0.25}], "a cut that keeps more and comes later is needless"
    assert schedule(cuts, 1e-6) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (4,)}, "layer 4 is not in this decoder; give layers from 0 to 3"),
        ({"layers": (-1,)}, "layer -1"),
        ({"keeps": (1.0,)}, "share 1.0"),
        ({"keeps": (0.0,)}, "share 0.0"),
    ],
)
def test_bad_settings_are_told(go, rows, write_rows, options, message):
    with pytest.raises(VTCError, match=message):
        go(write_rows(rows), **options)


def test_a_bad_question_is_told(go, write_rows):
    with pytest.raises(DataError, match="image is None"):
        go(write_rows([{"id": "1", "question": "what ?", "answer": "red"}]))


def test_a_patched_model_is_refused(go, vlm, rows, write_rows):
    with vtc.patched(vlm[0], "random", budget=0.5), pytest.raises(VTCError, match="unpatch"):
        go(write_rows(rows))
