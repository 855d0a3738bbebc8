"""``vtc.save`` refuses what ``vtc.load`` could not read, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import vtc
from tests import zoo
from vtc.errors import CheckpointError
from vtc.methods import register, registry
from vtc.methods.grid import Grid


@dataclass(frozen=True)
class Unregistered(Grid):
    name: ClassVar[str] = "unregistered"


@dataclass(frozen=True)
class Unnamed(Grid):
    name: ClassVar[str] = ""


@dataclass(frozen=True)
class Inherits(Grid):
    """Under the name of the class it is made from, as which it would come back."""


@dataclass(frozen=True)
class Taken(Grid):
    name: ClassVar[str] = "random"


@dataclass(frozen=True)
class Optioned(Grid):
    name: ClassVar[str] = "optioned"
    option: Any = None


METHODS = {
    "unregistered": lambda: Unregistered(),
    "unnamed": lambda: Unnamed(),
    "under an inherited name": lambda: Inherits(),
    "under another one's name": lambda: Taken(),
    "combined with one of these": lambda: vtc.methods.Combined((Unregistered(), vtc.methods.FastV())),
}
OPTIONS = {  # of a registered method: what JSON does not hold, or gives back otherwise
    "a function": lambda: 1,
    "a class": int,
    "a tensor": torch.ones(2),
    "a set": {1, 2},
    "bytes": b"1",
    "not a number": float("nan"),
    "infinity": float("inf"),
    "a list": [1, 2],
    "an object": {"a": 1},
    "a list inside a tuple": ([1],),
}


@pytest.fixture
def optioned(monkeypatch):
    monkeypatch.setitem(registry._entries, "optioned", Optioned)
    return Optioned


def refused(method, tmp_path, match: str) -> None:
    model = zoo.build("llava", layers=2)
    vtc.patch(model, method, budget=0.5)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=match):
        vtc.save(model, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_would_not_be_found_or_be_another(name, tmp_path):
    refused(METHODS[name](), tmp_path, "cannot be saved.*name")


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_would_not_come_back(name, tmp_path, optioned):
    refused(optioned(option=OPTIONS[name]), tmp_path, "cannot be saved.*JSON")


@pytest.mark.parametrize("value", [None, 1, 0.5, "a", True, (1, (2, "b"))])
def test_options_that_come_back(value, tmp_path, optioned):
    model = zoo.build("llava", layers=2)
    vtc.patch(model, optioned(option=value), budget=0.5)
    vtc.save(model, tmp_path / "out")
    assert vtc.patch_of(vtc.load(tmp_path / "out")).method == optioned(option=value)


def test_a_registered_method_is_read_where_it_is_registered(tmp_path, monkeypatch):
    """A folder names no module to import: who loads it has the method, or is told which one is missing."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("mine")
    @dataclass(frozen=True)
    class Mine(Grid):
        name: ClassVar[str] = "mine"

    model = zoo.build("llava", layers=2)
    vtc.patch(model, Mine(), budget=0.5)
    vtc.save(model, tmp_path / "out")
    assert type(vtc.patch_of(vtc.load(tmp_path / "out")).method) is Mine
    del registry._entries["mine"]
    with pytest.raises(CheckpointError, match="vtc_config.json: no .* is called 'mine'.*import the module"):
        vtc.load(tmp_path / "out")
