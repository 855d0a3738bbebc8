"""Methods as people spell them: the same on the command line, in Python, in reports."""

from __future__ import annotations

import sys

import pytest

import vtc
from tests import zoo
from tests.support import METHODS, logits
from vtc.errors import UnknownName, VTCError
from vtc.methods import registry
from vtc.methods._spelling import build, spell

SPELLED = (
    *METHODS,
    *("divprune+share", "fastv:layer=3", "random:seed=4:layer=0.5", "adaptive:layer=null", "visionzip/fastv"),
    *("pyramiddrop:layers=[1,2]", "divprune:rest=[1,2]+share", "divprune+share/fastv:layer=2"),
)


def test_what_is_spelled():
    assert build("visionzip").name == "visionzip"
    assert build("divprune+share").share is True
    assert build("fastv:layer=3").layer == 3
    assert build("random:seed=4:layer=0.5").layer == 0.5
    assert build("divprune+share/fastv:layer=3").stages()[1].layer == 3
    assert build("random", seed=3) == build("random:seed=3") == vtc.methods.Random(seed=3)


@pytest.mark.parametrize("spec", SPELLED)
def test_it_is_read_as_it_is_written(spec):
    method = build(spec)
    assert build(spell(method)) == method
    if spec != "combined":  # its default is spelled out
        assert spell(method) == spec


@pytest.mark.parametrize(
    ("options", "spelled"), [({"share": True}, "divprune+share"), ({"rest": (1,)}, "divprune:rest=[1]")]
)
def test_what_several_are_given_together_the_first_is(options, spelled):
    method = build("divprune/fastv:layer=2", **options)
    assert spell(method) == f"{spelled}/fastv:layer=2"
    again = build(spell(method))
    assert (again.share, again.rest, again.stages()) == (method.share, method.rest, method.stages())


@pytest.mark.parametrize(
    ("spec", "kind", "word"),
    [
        ("visonzip", UnknownName, "visionzip"),
        ("fastv:layr=2", UnknownName, "'layer'"),
        ("fastv:layer", VTCError, "option=value"),
        ("fastv:layer=0", VTCError, "layer"),
        ("fastv+share", VTCError, "share"),
        ("grid+fast", UnknownName, "fast"),
        ("grid/visonzip", UnknownName, "visionzip"),
    ],
)
def test_wrong_spellings_name_the_right_ones(spec, kind, word, model_of):
    with pytest.raises(kind, match=word):
        build(spec)
    with pytest.raises(kind, match=word):
        vtc.patch(model_of("llava"), spec)


@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_option_lists_what_a_user_may_set(name):
    with pytest.raises(UnknownName) as error:
        build(f"{name}:qqqqqqqq=1")
    listed = str(error.value).partition("there are: ")[2].split(", ")
    assert listed and not [option for option in listed if option.startswith("_")]
    for option in listed:
        build(name, **{option: getattr(build(name), option)})


@pytest.mark.parametrize("spec", [spec for spec in SPELLED if spec not in METHODS])
def test_python_reports_and_repr_say_the_same(spec, model_of):
    model = model_of("llava")
    vtc.patch(model, spec, "90%")
    assert repr(vtc.patch_of(model)) == f"<Patch: {spec} at 90%>"
    logits(model, zoo.prompt(model, 1))
    assert str(vtc.report(model)).startswith(f"{spec} at 90%: ")
    vtc.patch_of(model).set_budget("30")
    logits(model, zoo.prompt(model, 1))
    assert str(vtc.report(model)).startswith(f"{spec} at 30: ")


def test_a_module_whose_method_has_the_modules_name(tmp_path, monkeypatch):
    """The first spec imports it, and the name is registered from then on."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom vtc.methods import register\nfrom vtc.methods.grid import Grid\n\n\n"
        "@register('mine')\n@dataclass(frozen=True)\nclass Mine(Grid):\n    name = 'mine'\n    part: float = 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry.items()))
    plain, with_option, by_name = (build(spec) for spec in ("mine:Mine", "mine:Mine:part=0.5+share", "mine:part=0.5"))
    assert [m.part for m in (plain, with_option, by_name)] == [1.0, 0.5, 0.5] and with_option.share
    monkeypatch.delitem(sys.modules, "mine")
