"""The suites walk the library's own entries, whatever is installed beside it; and somebody's, where asked."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest

import vtc
from tests import own
from tests.support import METHODS
from vtc.methods import Method
from vtc.weights.passes import registry as passes


@dataclass(frozen=True)
class Stranger(Method):
    name = "stranger"


@pytest.fixture
def installed(monkeypatch):
    """As if a package with an entry point stood beside the library."""
    monkeypatch.setattr(own, "NAMED", [])
    monkeypatch.setattr(vtc.methods.registry, "_entries", {**dict(vtc.methods.registry.items()), "stranger": Stranger})


def test_a_stranger_is_not_walked(installed):
    assert set(METHODS) <= set(own.walked(vtc.methods.registry)) == set(own.known(vtc.methods.registry))
    assert "stranger" in vtc.methods.registry and "stranger" not in own.known(vtc.methods.registry)


def test_but_alone_where_it_is_named(installed, monkeypatch):
    monkeypatch.setattr(own, "NAMED", ["stranger"])
    assert own.walked(vtc.methods.registry) == {"stranger": Stranger}
    assert {"stranger", "divprune"} <= set(own.known(vtc.methods.registry))
    assert set(own.walked(vtc.signals.registry)) == set(own.known(vtc.signals.registry)), "a name of another registry"


@pytest.mark.parametrize("registry", [vtc.methods.registry, vtc.signals.registry, passes])
def test_all_of_the_librarys_own_are_walked(registry, monkeypatch):
    monkeypatch.setattr(own, "NAMED", [])
    here = Path(vtc.__file__).parent
    ours = {name for name, entry in registry.items() if here in Path(inspect.getfile(entry)).parents}
    assert set(own.walked(registry)) == ours and len(ours) > 5
