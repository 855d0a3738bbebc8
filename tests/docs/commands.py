"""How a command is run: in this process where that is the same, for a process costs seconds."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

from tests.docs.pages import ROOT, Broken
from tests.docs.shrink import KEEP
from vtc.cli import app
from vtc.eval import cells

VTC = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PLACEHOLDER = re.compile(r"\.\.\.|\[?[A-Z][A-Z_]+\]?")
SHELL = {"|", ">", "<", "&", ";", "&&", "||"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def plain(words: list[str]) -> list[str]:
    """Without the one setting that may stand before a command. Raises ``Broken`` for what is not one command."""
    given = words[1:] if words[0] == "OMP_NUM_THREADS=1" else words
    if SHELL & set(given) or any("$(" in word for word in given):
        raise Broken(f"not one plain command: {' '.join(given)}")
    return given


def expanded(word: str) -> str:
    """As a shell expands ``~`` and variables."""
    return os.path.expandvars(os.path.expanduser(word))


def unwrapped(words: list[str]) -> list[str]:
    """``vtc`` for its other names, and the one process that torchrun deals out for all of them."""
    if words[0] == "torchrun":
        words = ["python", *launched(words)]
    return ["vtc", *words[3:]] if words[:2] == ["python", "-m"] and words[2] in ("vtc", "vtc.cli") else words


def launched(words: list[str]) -> list[str]:
    """What torchrun starts in each process. Raises ``Broken`` for an option that it does not have."""
    from torch.distributed.run import get_args_parser

    at = next((n for n, word in enumerate(words) if word == "-m" or word.endswith(".py")), len(words))
    known = get_args_parser()._option_string_actions
    if wrong := [word for word in words[:at] if word.startswith("-") and word.partition("=")[0] not in known]:
        raise Broken(f"torchrun has no option {wrong[0]}")
    return words[at:]


def is_mention(words: list[str]) -> bool:
    """A command that is only named: placeholders, or nothing but options without values after its name."""
    if any(PLACEHOLDER.fullmatch(word) for word in words) or words[0] == "accelerate":
        return True
    return words[0] in ("vtc", "make") and all(word.startswith("--") for word in words[2:])


def mention(words: list[str]) -> None:
    """Raises ``Broken`` unless the command, and every option that is named, exists."""
    program, *rest = words
    if program == "make":
        return make(words)
    if program == "python" and rest and (ROOT / rest[0]).is_file():
        return
    if program not in ("vtc", "accelerate"):
        raise Broken(f"{' '.join(words)} is neither a command nor the name of one")
    if program == "vtc" and rest[0].startswith("-"):
        known = {"--help", "-h", "--version"}
    else:
        known = options_of(rest[0]) if program == "vtc" else accelerate_options(rest[0])
    if wrong := [w for w in (word.strip("[]") for word in rest) if w.startswith("-") and w not in known]:
        raise Broken(f"{' '.join(words)}: no option {wrong[0]}")


def options_of(command: str) -> set[str]:
    if command not in VTC:
        raise Broken(f"vtc has no command {command!r}; it has {', '.join(VTC)}")
    named = {name for parameter in VTC[command].params for name in parameter.opts}
    return named | {"--model", "--help", "-h"}


def accelerate_options(command: str) -> set[str]:
    from accelerate.commands.launch import launch_command_parser

    if command != "launch":
        raise Broken(f"accelerate {command} is not known here")
    return set(launch_command_parser()._option_string_actions)


def fewer(words: list[str]) -> list[str]:
    """Of a long ``vtc eval`` the first methods only, after all of them were planned at all its budgets."""
    if words[:2] != ["vtc", "eval"] or "--methods" not in words:
        return words
    at = words.index("--methods") + 1
    specs = cells.parse_specs(words[at])
    budgets = words[words.index("--budgets") + 1] if "--budgets" in words else "0.5"
    cells.plan(specs, cells.parse_budgets(budgets))
    return [*words[:at], ",".join(specs[:KEEP]), *words[at + 1 :]]


def perform(words: list[str], folder: Path) -> None:
    """Runs it in ``folder``, which is where this process stands. Raises ``Broken`` when it fails."""
    programs = {"vtc": vtc, "python": python, "pip": pip, "make": make, "curl": curl}
    if words[:3] == ["python", "-m", "pytest"]:
        words = words[2:]
    if words[0] == "pytest" and all((ROOT / word).is_file() for word in words[1:]):
        return  # files of this suite, which runs them
    if words[0] == "pytest":
        return pytest_alone(words[1:], folder)
    if words[0] not in programs:
        raise Broken(f"no way to run {words[0]}: {' '.join(words)}")
    programs[words[0]](words)


def vtc(words: list[str]) -> None:
    done = CliRunner().invoke(app, words[1:])
    if done.exit_code:
        raise Broken(f"{' '.join(words)}: exit code {done.exit_code}: {done.output[-2000:]}") from done.exception


def python(words: list[str]) -> None:
    """``python -c``, ``-m`` or a script, in this process."""
    if words[1] == "-c":
        return exec(words[2], {"__name__": "__main__"})
    if words[1] == "-m":
        runpy.run_module(words[2], run_name="__main__")
        return None
    before = set(sys.modules)
    try:
        with (
            mock.patch.object(sys, "argv", words[1:]),
            mock.patch.object(sys, "path", [str(ROOT / "scripts"), *sys.path]),
        ):
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise Broken(f"{' '.join(words)}: exit code {end.code}") from end
    finally:
        for name in set(sys.modules) - before:
            if str(ROOT / "scripts") in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]  # scripts import each other by bare names


def pip(words: list[str]) -> None:
    """A name that pip takes, an extra of ours that exists, and nothing of ours from an index."""
    if words[1] != "install" or len(words) < 3:
        raise Broken(f"not an installation: {' '.join(words)}")
    for what in (word for word in words[2:] if not word.startswith("-")):
        if not what.startswith("."):
            if Requirement(what).name.replace("_", "-").lower() in ("vtc", "vtc-vlm"):
                raise Broken(f"{what}: vtc is on no index; write pip install '.[...]'")
        elif missing := [extra for extra in re.findall(r"[\w-]+", what) if extra not in EXTRAS]:
            raise Broken(f"{what}: there is no extra {missing[0]!r}; there are {', '.join(EXTRAS)}")


def curl(words: list[str]) -> None:
    """A question to the reader's own machine, from a file that is there; who answers is not here."""
    url, option, file = words[1:]
    if not url.startswith("http://127.0.0.1:") or option != "--json" or not json.loads(Path(file[1:]).read_text()):
        raise Broken(f"not a question to this machine: {' '.join(words)}")


def make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Broken(f"{' '.join(words)}: {done.stderr}")


def pytest_alone(arguments: list[str], folder: Path) -> None:
    """In a process of its own, in the repository, with ``folder`` on the path as if what it holds were installed."""
    path = os.pathsep.join([str(ROOT), str(folder)])
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode or not re.search(r"\b[1-9]\d* passed", done.stdout):
        raise Broken(f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
