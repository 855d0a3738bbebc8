"""The model ``vtc`` in lmms-eval's own command: the answers of ``vtc eval``, one process and two; errors stay errors.

Skipped where lmms-eval is not installed (docs/lmms_eval.md has the commands).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from vtc.errors import BudgetError, UnknownName, VTCError
from vtc.eval import scenes
from vtc.eval.asking.load import load
from vtc.eval.benchmarks.scenes import Scenes
from vtc.eval.cells import Cell
from vtc.eval.running.run import evaluate

ROOT = Path(__file__).parents[2]
QUESTIONS = 9  # odd: two ranks get different numbers
METHOD, BUDGET = "divprune+share/fastv:layer=2", 24
TASK = """\
task: vtc_scenes
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, until: [], image_aspect_ratio: original}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
UTILS = """\
from PIL import Image

def pictures(doc):
    return [Image.open(doc["image"])]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks that lmms-eval reads: questions of the testbed, PNGs beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "vtc_scenes.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    (folder / "utils.py").write_text(UTILS)
    rows = []
    for sample in Scenes(limit=QUESTIONS).samples():
        path = folder / f"{sample.id}.png"
        sample.images[0].save(path)
        rows.append({"id": sample.id, "image": str(path), "question": sample.question, "answer": sample.answers[0]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Cell -> (answers in order, layer-averaged vision tokens in order), by ``vtc eval``."""
    folder = tmp_path_factory.mktemp("ours")
    vlm, processor = load(str(scenes.checkpoint_path()), device="cpu")
    evaluate(
        vlm, processor, Scenes(limit=QUESTIONS), [METHOD], [BUDGET], folder, batch_size=4, repeats=0, overlays=0
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    order = {sample.id: n for n, sample in enumerate(Scenes(limit=QUESTIONS).samples())}
    lines.sort(key=lambda line: order[line["id"]])
    return {
        name: ([x["answer"] for x in lines if x["cell"] == name], [x["tokens"] for x in lines if x["cell"] == name])
        for name in ("unpatched", Cell(METHOD, BUDGET).name)
    }


def lmms_eval(tasks, output, *model_args, launcher=("-m", "lmms_eval")):
    """lmms-eval's command, offline; returns the finished process."""
    arguments = ["eval", "--model", "vtc", "--tasks", "vtc_scenes", "--include_path", tasks, "--device", "cpu"]
    arguments += ["--batch_size", 4, "--log_samples", "--output_path", output, "--verbosity", "DEBUG"]
    arguments += ["--model_args", ",".join([f"pretrained={scenes.checkpoint_path()}", *model_args])]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(output / "hf"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, [*launcher, *arguments])],
        env=os.environ | quiet | {"PYTHONPATH": str(ROOT)},
        cwd=output,
        capture_output=True,
        text=True,
    )


def read(output):
    """(samples in the order of the documents, results)."""
    (samples,) = output.rglob("*_samples_vtc_scenes.jsonl")
    (results,) = output.rglob("*_results.json")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["doc_id"]), json.loads(results.read_text())


def check(done, output, cell):
    """Every document once, and the answers and tokens of ``vtc eval``."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    samples, results = read(output)
    answers, tokens = cell
    assert [s["doc_id"] for s in samples] == list(range(QUESTIONS))
    assert [s["filtered_resps"] for s in samples] == answers
    counts = [s["token_counts"][0] for s in samples]
    assert [c["visual_tokens"] for c in counts] == tokens
    assert {c["visual_tokens_unpatched"] for c in counts} == {196}
    assert all(c["input_tokens"] < 40 + c["visual_tokens"] for c in counts)
    assert results["throughput"]["avg_visual_tokens"] == pytest.approx(sum(tokens) / QUESTIONS)
    assert results["throughput"]["avg_visual_tokens_unpatched"] == 196
    assert "image_aspect_ratio" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("patched", [False, True])
def test_answers_are_those_of_vtc_eval(tasks, ours, tmp_path, patched):
    given = [f"method={METHOD}", f"budget={BUDGET}"] if patched else []
    name = Cell(METHOD, BUDGET).name if patched else "unpatched"
    check(lmms_eval(tasks, tmp_path, *given), tmp_path, ours[name])


@pytest.mark.slow
def test_two_ranks_answer_every_question_once(tasks, ours, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "lmms_eval"]
    done = lmms_eval(tasks, tmp_path, f"method={METHOD}", f"budget={BUDGET}", launcher=launcher)
    check(done, tmp_path, ours[Cell(METHOD, BUDGET).name])


def test_the_cells_differ(ours):
    """Else equal answers would prove nothing about the patch."""
    assert ours["unpatched"][0] != ours[Cell(METHOD, BUDGET).name][0]


@pytest.mark.slow
def test_errors_are_not_swallowed(tasks, tmp_path):
    done = lmms_eval(tasks, tmp_path, "method=fastv", "budget=2")
    assert done.returncode != 0 and "least" in done.stderr and "vtc_scenes:test:0" in done.stderr
    assert not list(tmp_path.rglob("*_results.json"))


def test_the_entry_point_names_the_class():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from vtc.integrations.lmms_eval import VTC

    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    assert registry.get_model_class("vtc") is VTC


@pytest.mark.parametrize(
    ("method", "budget", "error"),
    [
        ("divprune", "none", BudgetError),
        ("divprune", 0, BudgetError),
        ("divprune", "many", BudgetError),
        ("none", 24, VTCError),
        ("divprun", 24, UnknownName),
    ],
)
def test_model_arguments_that_make_no_sense(method, budget, error):
    from vtc.integrations.lmms_eval import VTC

    with pytest.raises(error):
        VTC(str(scenes.checkpoint_path()), method, budget, device="cpu")


def test_a_batch_size_that_is_no_number():
    from vtc.integrations.lmms_eval import VTC

    with pytest.raises(VTCError, match="auto"):
        VTC(str(scenes.checkpoint_path()), device="cpu", batch_size="auto")


def test_generation_settings():
    """Texts that end an answer are cut off here; what only other models read is left out."""
    from transformers import GenerationConfig

    from vtc.integrations.lmms_eval import cut, settings

    known = GenerationConfig()
    options, until = settings({"max_new_tokens": 4, "until": "\n", "image_aspect_ratio": "pad"}, known)
    assert options["max_new_tokens"] == 4 and not options["do_sample"] and "image_aspect_ratio" not in options
    assert cut("yes\nand more", until) == "yes"
    assert settings({"temperature": 0.7, "do_sample": True}, known)[0]["temperature"] == 0.7
    assert not settings({"temperature": 0}, known)[0]["do_sample"]
