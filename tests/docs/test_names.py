"""What pages name of the library and of the repository is there (files called yours are the reader's to write)."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.pages import PAGES, ROOT, SPAN, fences, read

SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "vtc").rglob("*.py")))
GROUPS = set(re.findall(r'group="(vtc\.\w+)"', SOURCE))  # of entry points
NAME = re.compile(r"vtc(\.\w+)+(?=$|[^\w./])")
PATH = re.compile(r"(?:vtc|scripts|tests|docs)/[\w./-]+")


def spans(page: str) -> list[str]:
    return SPAN.findall(fences(page, read(page))[1])


def is_there(name: str) -> bool:
    """An attribute of an attribute ..., from the deepest module that can be imported by its name."""
    found, path = importlib.import_module("vtc"), "vtc"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


def missing_names(texts: list[str]) -> list[str]:
    named = {found[0] for text in texts for found in NAME.finditer(text)}
    return sorted(name for name in named if name not in GROUPS and not is_there(name))


def missing_paths(texts: list[str]) -> list[str]:
    named = {found[0] for text in texts if (found := PATH.match(text))}
    return sorted(name for name in named if "yours" not in name and not (ROOT / name).exists())


@pytest.mark.parametrize("page", PAGES)
def test_names_and_paths_are_there(page):
    texts = spans(page)
    assert (missing_names(texts), missing_paths(texts)) == ([], [])


def test_what_is_not_there_is_found():
    texts = ["vtc.patch(model)", "vtc.weights.plan.nosuch", "vtc.nosuch", "vtc.signals", "vtc/nosuch.py", "tests/docs"]
    assert missing_names(texts) == ["vtc.nosuch", "vtc.weights.plan.nosuch"]
    assert missing_paths(texts) == ["vtc/nosuch.py"]
    assert {"vtc.methods", "vtc.signals"} <= GROUPS


def test_the_walkthroughs_files_hold_what_it_says():
    """A door is a file of the package, with placeholders for one of many, and perhaps the function to read."""
    matches = (re.fullmatch(r"(\w[\w/]*\.py)(?:: (\w+))?", span) for span in spans("docs/walkthrough.md"))
    doors = [match for match in matches if match and not match[0].startswith("tests/")]
    assert len(doors) > 30
    for door in doors:
        files = [ROOT / "vtc" / door[1], *(ROOT / "vtc").rglob(f"*/{door[1]}")]
        here = [file for file in files if file.is_file()]
        assert here, door[0]
        assert not door[2] or any(f"def {door[2]}(" in f.read_text(encoding="utf-8") for f in here), door[0]
