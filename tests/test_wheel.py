"""What the distribution says it holds; `make test-wheel` builds it, installs it and runs it elsewhere."""

from __future__ import annotations

import subprocess
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages

from vtc.version import __version__

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DATA = SETTINGS["tool"]["setuptools"]["package-data"]


def test_every_folder_of_code_is_a_package_of_the_wheel():
    packages = set(find_packages(str(ROOT), include=SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]))
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "vtc").rglob("*.py")}
    assert folders == packages


def test_every_other_file_under_vtc_is_declared_and_there():
    folders = {ROOT / package.replace(".", "/"): names for package, names in DATA.items()}
    declared = {path for folder, names in folders.items() for name in names for path in folder.glob(name)}
    tracked = subprocess.run(["git", "ls-files", "vtc"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert declared == {ROOT / name for name in tracked.stdout.split() if not name.endswith(".py")}
    for name in (
        "py.typed",
        "eval/scenes/checkpoint/model.safetensors",
        "eval/scenes/checkpoint_qwen/model.safetensors",
    ):
        assert ROOT / "vtc" / name in declared


def test_notices_and_versions_agree():
    assert SETTINGS["project"]["license-files"] == ["LICENSE", "NOTICE"]
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        for name in line.split()[1:] if line.startswith("include ") else ():
            assert (ROOT / name).is_file(), f"MANIFEST.in names {name}, which is not there"


def test_the_oldest_versions_are_the_lower_bounds():
    """Each bound of pyproject.toml stands in constraints-oldest.txt, as the version that is tested."""
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if "==" in line
    )
    project = SETTINGS["project"]
    extras = ("eval", "plot", "timm", "lossless", "train", "ct", "gguf", "test")
    wanted = [*project["dependencies"], *(w for name in extras for w in project["optional-dependencies"][name])]
    for bound in (w for w in wanted if ">=" in w and not w.startswith(("ruff", "mypy"))):  # those two do not run there
        name, least = bound.split(",")[0].split(">=")
        assert f"{pinned[name]}.".startswith(f"{least}."), f"{bound} is tested with {pinned[name]}"


def test_the_extra_lmms_takes_just_the_filelocks_that_lmms_eval_can_import():
    """lmms-eval 0.7.3 imports a private module that filelock 4.3 no longer has; asked of the one installed here."""
    bounds = {
        need.name: need.specifier for need in map(Requirement, SETTINGS["project"]["optional-dependencies"]["lmms"])
    }
    there = find_spec("filelock._api") is not None
    assert bounds["filelock"].contains(version("filelock")) == there


def test_the_extra_lmms_is_met_where_lmms_eval_is_installed():
    pytest.importorskip("lmms_eval")
    for need in map(Requirement, SETTINGS["project"]["optional-dependencies"]["lmms"]):
        assert need.specifier.contains(version(need.name)), f"{need} is asked for, {version(need.name)} is installed"
