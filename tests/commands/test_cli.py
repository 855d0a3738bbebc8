"""The command line: quick help, clear errors, exit codes; ``vtc eval`` and ``vtc show`` on a model on disk."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tests.eval.tiny import picture, tiny_llava, tiny_processor
from vtc import doctor
from vtc.cli import app

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "matplotlib", "PIL", "pandas")


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model and its processor on disk."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llava().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    rows = [{"id": n, "image": f"{n}.png", "question": "what is the color ?", "answer": "red"} for n in range(4)]
    for n in range(4):
        picture(n).save(tmp_path / f"{n}.png")
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "q.jsonl"


@pytest.fixture
def ask(saved, data):
    """``vtc eval`` on the tiny model, quick."""

    def run(*more, methods="random", budgets="0.5"):
        arguments = ["--model", saved, "--data", data, "--output", data.parent / "out", "--timing-repeats", 0]
        quick = ["--overlays", 0, "--max-new-tokens", 3, "--device", "cpu"]
        return call("eval", *arguments, *quick, "--methods", methods, "--budgets", budgets, *more)

    return run


def test_help_imports_nothing_heavy():
    code = (
        "import sys, vtc.cli\nsys.argv = ['vtc', '--help']\ntry: vtc.cli.main()\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "vtc demo" in done.stdout


def test_module_and_command_are_one():
    done = subprocess.run([sys.executable, "-m", "vtc", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: vtc " in done.stdout


@pytest.mark.parametrize(
    "command",
    ["eval", "demo", "methods", "benchmarks", "show", "sensitivity", "calibrate", "finetune", "heal", "doctor"],
)
def test_every_command_explains_itself(command):
    result = call(command, "--help")
    assert result.exit_code == 0 and len(result.output) > 200


@pytest.mark.parametrize(
    "command", ["eval", "show", "sensitivity", "calibrate", "compress", "finetune", "heal", "export"]
)
def test_examples_fit_a_terminal_of_80_columns(command):
    """A command that is wrapped by the help cannot be copied."""
    from vtc.cli import app

    (found,) = [c for c in app.registered_commands if (c.name or c.callback.__name__) == command]
    lines = [
        line for line in inspect.getdoc(found.callback).splitlines() if re.match(r" {8}|    (vtc|torchrun) ", line)
    ]
    assert lines and max(map(len, lines)) <= 76, lines
    for before, line in zip(lines, lines[1:], strict=False):
        if line.startswith("        "):
            assert before.endswith("\\"), f"{before!r} goes on without a backslash"


def test_version():
    from vtc.version import __version__

    assert call("--version").output == f"vtc {__version__}\n"


def test_a_model_is_positional_or_an_option(ask, saved, data):
    """Both say the same, singular and plural too: the second run goes on with the first's answers."""
    assert ask().exit_code == 0
    lines = (data.parent / "out" / "results.jsonl").read_bytes()
    quick = ["--timing-repeats", 0, "--overlays", 0, "--max-new-tokens", 3, "--device", "cpu"]
    rest = ["--data", data, "--output", data.parent / "out", *quick]
    result = call("eval", saved, *rest, "--method", "random", "--budget", "0.5")
    assert result.exit_code == 0, result.output
    result = call("eval", f"--model={saved}", *rest, "--methods", "random", "--budgets", "0.5")
    assert result.exit_code == 0, result.output
    assert (data.parent / "out" / "results.jsonl").read_bytes() == lines
    assert "one budget" not in call("calibrate", saved, "--calibration", "scenes", "--budget", "4").output
    several = call("calibrate", saved, "--calibration", "scenes", "--budgets", "4,8")
    assert several.exit_code == 1 and "'4,8' names 2 budgets" in several.output


def test_the_testbed_has_a_name(tmp_path):
    """Its model, and its questions where no others are named."""
    quick = ["--timing-repeats", 0, "--overlays", 0, "--limit", 9, "--device", "cpu"]
    result = call("eval", "scenes", "--methods", "random", "--budgets", "24", "--output", tmp_path / "out", *quick)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["benchmark"]["name"] == "scenes"
    other = call("eval", "scenes-mine", "--output", tmp_path / "other")
    assert other.exit_code == 1 and "--data questions.jsonl or --benchmarks" in other.output


def test_a_method_of_ones_own_module(ask, tmp_path, monkeypatch):
    (tmp_path / "mypackage.py").write_text(
        "from dataclasses import dataclass\nfrom vtc.methods import Method\nfrom vtc import Reduction\n"
        "import torch\n\n\n@dataclass(frozen=True)\nclass First(Method):\n    skip: int = 0\n\n"
        "    def reduce(self, stage, tokens, signals, keep):\n"
        "        order = -torch.arange(tokens.valid.shape[1]).expand(tokens.valid.shape)\n"
        "        return Reduction.top(order, keep, tokens)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = ask(methods="mypackage.none:First", budgets="0.5")
    assert result.exit_code == 1 and "cannot be imported" in result.output
    result = ask(methods="mypackage.:First", budgets="0.5")
    assert result.exit_code == 1
    monkeypatch.delitem(sys.modules, "mypackage", raising=False)
    result = ask(methods="mypackage:First", budgets="0.5")
    assert result.exit_code == 0, result.output
    result = ask("--overwrite", methods="mypackage:First:skip=1+share", budgets="0.5")
    assert result.exit_code == 0, result.output


def test_methods_lists_all():
    from vtc.methods import registry

    result = call("methods")
    assert result.exit_code == 0 and all(name in result.output for name in registry)


def test_eval_on_ones_own_pictures(ask, data):
    result = ask(methods="random,fastv", budgets="0.5,25%")
    assert result.exit_code == 0, result.output
    assert "unpatched" in result.output and "least 5" in result.output
    summary = json.loads((data.parent / "out" / "summary.json").read_text())
    assert summary["cells"]["random@0.25"]["questions"] == 4
    assert ask(methods="random,fastv", budgets="0.5,25%").exit_code == 0


def test_robustness_asks_again_under_each_corruption(ask, data):
    result = ask("--robustness", "--limit", 1)
    assert result.exit_code == 0 and "more than the unpatched model loses" in " ".join(result.output.split())
    found = json.loads((data.parent / "out" / "robustness.json").read_text())
    assert set(found["cells"]["random@0.5"]) == {"noise", "blur", "jpeg", "contrast", "typo"}


def test_another_budget_is_refused_with_2(ask):
    assert ask().exit_code == 0
    result = ask(budgets="0.25")
    assert result.exit_code == 2 and "--overwrite" in result.output and result.output.count("\n") == 1
    assert ask("--overwrite", budgets="0.25").exit_code == 0


def test_a_second_writer_is_refused_with_2(ask, data):
    from vtc.eval.results.journal import lock

    (data.parent / "out").mkdir()
    handle = lock(data.parent / "out")
    try:
        result = ask()
    finally:
        handle.release()
    assert result.exit_code == 2 and "another process" in result.output


def test_a_bad_sample_ends_with_1_or_is_counted(ask, data):
    with open(data, "a") as stream:
        stream.write('\n{"image": "none.png", "question": "what ?", "answer": "x"}\n')
    result = ask()
    error = result.output.splitlines()[-1]
    assert result.exit_code == 1 and "2 answers are missing" in error and "q.jsonl:5: picture 'none.png'" in error
    assert (data.parent / "out" / "table.md").exists()  # the run went on to its end
    result = ask("--allow-errors")
    assert result.exit_code == 0 and "2 answers are missing" in " ".join(result.output.split())


def test_a_bad_row_is_told_before_anything_is_written(ask, data):
    with open(data, "a") as stream:
        stream.write('\n{"id": "x"}\n')
    result = ask()
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert "1 of 5 rows of q.jsonl cannot be used, first: q.jsonl:5: question is None" in result.output
    assert not (data.parent / "out").exists()
    result = ask("--allow-errors")
    assert result.exit_code == 0 and "2 answers are missing" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "q.jsonl holds no questions"),
        ('{"id": "x"}\n{\n', "no row of q.jsonl can be used, first: q.jsonl:1: question is None"),
        ('{"image": "none.png", "question": "what ?", "answer": "x"}\n' * 3, "first: q.jsonl:1: picture 'none.png'"),
    ],
    ids=["empty", "rows", "pictures"],
)
def test_a_run_without_any_answer_leaves_nothing_behind(ask, data, text, told):
    data.write_text(text)
    result = ask("--allow-errors")
    assert result.exit_code == 1 and told in " ".join(result.output.split())
    assert not list((data.parent / "out").glob("*table*")) and not list((data.parent / "out").glob("summary*"))
    data.write_text('{"image": "0.png", "question": "what ?", "answer": "x"}\n')
    result = ask()
    assert result.exit_code == 0, result.output  # without --overwrite


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--methods", "visonzip"], "did you mean"),
        (["--budgets", "1.5"], "share in (0, 1]"),
        (["--budgets", "64x"], "not a number"),
        (["--dtype", "int8"], "float32"),
        (["--device", "gpu7"], "give cpu or auto"),
        (["--model", "./none"], "does not exist"),
        (["--benchmarks", "easy_vqa"], "either --data"),
        (["--prompt", "what ?"], "{question}"),
    ],
)
def test_mistakes_are_one_line(ask, arguments, word):
    result = ask(*arguments)
    assert result.exit_code == 1 and result.output.startswith("error: ") and result.output.count("\n") == 1
    assert word in result.output and "Traceback" not in result.output


def test_errors_and_reports_show_what_hides_in_names(ask, data):
    """A file's name may hold what a terminal would obey."""
    name = "q\x1b[31m\u202e\n<b>.jsonl"
    file = data.rename(data.with_name(name))
    with open(file, "a") as stream:
        stream.write('\n{"id": "\x1b[1m"}\n')
    result = ask("--data", file)
    assert result.exit_code == 1 and "q\\x1b[31m\\u202e <b>.jsonl:5: " in result.output
    assert not {"\x1b", "\u202e"} & set(result.output) and result.output.count("\n") == 1
    folder = data.parent / "out\x1b[2J"
    result = ask("--data", file, "--output", folder, "--allow-errors")
    assert result.exit_code == 0 and "\\x1b[2J: " in result.output and "\x1b" not in result.output


def test_debug_shows_the_traceback(ask):
    result = ask("--budgets", "1.5", "--debug")
    assert isinstance(result.exception, ValueError)


def test_a_folder_that_is_no_model(ask, tmp_path):
    (tmp_path / "empty").mkdir()
    result = ask("--model", tmp_path / "empty")
    assert result.exit_code == 1 and "cannot be loaded" in result.output


def test_ctrl_c_tells_how_to_go_on(ask, monkeypatch):
    from vtc.eval.asking import load

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "load", stop)
    monkeypatch.setattr(sys, "argv", ["vtc", "eval", "--model", "my model", "--overwrite"])
    result = ask()
    assert result.exit_code == 130 and "vtc eval --model 'my model'\n" in result.output


def test_show_writes_an_overlay(saved, data):
    output = data.parent / "overlay.png"
    result = call(
        "show", "--model", saved, "--image", data.parent / "0.png", "--question", "what is the color ?",
        "--method", "random,bipartite", "--budget", "25%", "--output", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert output.read_bytes()[:4] == b"\x89PNG" and "random@0.25: " in result.output and "overlay: " in result.output


def test_doctor_is_well_here():
    lines, healthy = doctor.report()
    text = "\n".join(lines)
    assert healthy, text
    assert all(word in text for word in ("python", "torch", "transformers", "disk", "triton", "cpu"))


def broken(monkeypatch, check):
    (finding,) = [f for f in doctor.guarded(check) if f[0] == "BROKEN"]
    return finding[2]


def test_doctor_finds_what_is_too_old_or_missing(monkeypatch):
    needs = ["torch>=99.5", "no-such-package>=1", "peft>=99; extra == 'train'"]
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    found = {what: details for state, what, details in doctor.guarded(doctor.bounds) if state == "BROKEN"}
    assert found.keys() == {"torch", "no-such-package"} and "pip install 'torch>=99.5'" in found["torch"]
    assert "missing; pip install 'no-such-package>=1'" in found["no-such-package"]


def test_doctor_finds_a_torchvision_for_another_torch(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    assert "pip uninstall torchvision" in broken(monkeypatch, doctor.torchvision)


def test_doctor_finds_the_other_vtc(monkeypatch):
    class Other:
        version = "0.1.0"

    monkeypatch.setattr(doctor, "distribution", lambda name: Other)
    assert "pip uninstall vtc" in broken(monkeypatch, doctor.name_clash)

    def none(name):
        raise PackageNotFoundError

    monkeypatch.setattr(doctor, "distribution", none)
    assert all(state == "ok" for state, *_ in doctor.guarded(doctor.name_clash))


def test_a_failing_check_is_a_finding():
    def disk():
        raise OSError("gone")
        yield

    assert doctor.guarded(disk) == [("BROKEN", "disk", "OSError: gone")]


def test_demo_needs_no_options(monkeypatch, tmp_path):
    """The whole demo, small: the testbed's questions, an untrained model of its shape."""
    pytest.importorskip("matplotlib")
    from vtc.eval import scenes
    from vtc.eval.scenes.train import export
    from vtc.eval.scenes.train.architectures import llava

    export.export(llava.Llava(), llava.Llava().build(), tmp_path / "checkpoint")
    monkeypatch.setattr(scenes, "checkpoint_path", lambda kind="llava": tmp_path / "checkpoint")
    monkeypatch.setattr(sys, "argv", ["vtc", "demo"])
    result = call("demo", "--output", tmp_path / "out", "--questions", 9, "--methods", "random", "--budgets", "0.0625")
    assert result.exit_code == 0, result.output
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made >= {"results.jsonl", "summary.json", "table.md", "pareto.png", "overlays"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["cells"]["random@0.0625"]["groups"]) == {"one-hop", "two-hop"}


def test_benchmarks_lists_all():
    from vtc.eval.benchmarks import registry

    result = call("benchmarks")
    assert result.exit_code == 0 and all(f"| `{name}` |" in result.output for name in registry)


def test_eval_reads_a_table_by_its_suffix(ask, tmp_path):
    from tests.eval.public import write_tsv

    result = ask("--data", write_tsv(tmp_path))
    assert result.exit_code == 0, result.output
    assert "3 questions a cell of tsv (test)" in result.output


def test_a_split_without_answers_is_refused_before_a_model_is_loaded(tmp_path):
    result = call("eval", "--model", "none", "--output", tmp_path, "--benchmarks", "vqav2", "--split", "test")
    assert result.exit_code == 1 and "use --split validation" in result.output


def test_calibrate_prints_what_eval_takes(saved):
    from vtc.methods._spelling import build, spell

    result = call("calibrate", "--model", saved, "--calibration", "scenes:dev", "--examples", "2", "--budget", "50%")
    assert result.exit_code == 0, result.stderr
    method = build(result.stdout.strip().splitlines()[-1])
    assert method.name == "adaptive"
    for spec in ("adaptive:layer=3:candidates=2", "adaptive:layer=null", "divprune+share", "pyramiddrop:layers=[1, 2]"):
        assert build(spell(build(spec))) == build(spec)


def test_sensitivity_asks_any_benchmark(saved, tmp_path):
    from tests.eval.public import benchmark_of

    benchmark_of("pope", tmp_path / "data")
    quick = ["--layers", "0,2", "--keep", "50%", "--limit", 2, "--device", "cpu", "--output", tmp_path / "out"]
    asked = ["--benchmarks", "pope", "--data-dir", tmp_path / "data"]
    result = call("sensitivity", "--model", saved, *asked, *quick)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert found["settings"]["benchmark"]["name"] == "pope" and found["settings"]["benchmark"]["split"] == "test"
    neither = call("sensitivity", "--model", saved, "--output", tmp_path / "none")
    assert neither.exit_code == 1 and "either --data questions.jsonl or --benchmarks" in neither.output


@pytest.mark.parametrize("command", ["compress", "calibrate"])
def test_own_questions_calibrate_too(command, saved, data):
    more = ["--recipe", "int4", "--output", data.parent / "small"] if command == "compress" else ["--budget", "50%"]
    result = call(command, saved, "--data", data, "--examples", 2, *more)
    assert result.exit_code == 0, result.output
    assert "int4" in result.output or "bytes of weights" in result.output or "adaptive" in result.output


# What cannot go on, by command: the arguments after MODEL. Whatever the error advises must be an option there.
REFUSED = [
    ("compress", ["--output", "OUT"], "--data questions.jsonl"),
    ("compress", ["--output", "OUT", "--calibration", "scenes:dev", "--data", "DATA"], "either"),
    ("compress", ["--output", "OUT", "--data", "BAD"], "line|row|2"),
    ("compress", ["--output", "OUT", "--data", "missing.jsonl"], "missing.jsonl"),
    ("compress", ["--output", "OUT", "--calibration", "scenes:nope"], "nope"),
    ("calibrate", [], "--data questions.jsonl"),
    ("calibrate", ["--data", "BAD"], "cannot be used"),
    ("show", ["--image", "nowhere.png", "--question", "?"], "nowhere.png is no file; give the path"),
    ("show", ["--image", "DATA", "--question", "?"], "picture|image"),
    ("show", ["--image", "PICTURE", "--question", "?", "--methods", "nope"], "no method"),
    ("eval", ["--output", "OUT", "--data", "BAD"], "--allow-errors"),
    ("eval", ["--output", "OUT", "--data", "missing.jsonl"], "missing.jsonl"),
]


@pytest.mark.parametrize(("command", "arguments", "told"), REFUSED)
def test_an_error_advises_only_what_the_command_has(command, arguments, told, saved, data):
    (data.parent / "bad.jsonl").write_text(data.read_text() + "\n{not json")
    places = {
        "OUT": data.parent / "o",
        "DATA": data,
        "BAD": data.parent / "bad.jsonl",
        "PICTURE": data.parent / "0.png",
    }
    result = call(command, saved, *(places.get(a, a) for a in arguments))
    assert result.exit_code == 1 and re.search(told, result.output), result.output
    options = {o for p in get_command(app).commands[command].params for o in p.opts + p.secondary_opts} | {"--debug"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", result.output)) <= options


def test_without_methods_eval_says_what_it_measures(ask):
    bare = ask(methods="")
    assert bare.exit_code == 0 and "only the unpatched model is measured; add --methods" in bare.stderr
    assert "only the unpatched model" not in ask("--overwrite").stderr
