"""The tables of what there is say what the code does."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.docs.pages import ROOT
from tests.support import STIFF
from vtc.eval.report import catalogue
from vtc.methods import ToMe

WORDS = {
    **{"llava_pixtral": "Pixtral", "mistral3": "Mistral 3", "ovis2": "Ovis 2", "perception_lm": "Perception-LM"},
    **{"got_ocr2": "GOT-OCR 2", "aria": "Aria"},
}


def test_tome_names_the_families_it_refuses():
    """In ``vtc methods`` and on the page of families alike."""
    told = catalogue.families(ToMe())
    page = (ROOT / "docs" / "families.md").read_text("utf-8")
    assert set(WORDS) == set(STIFF)
    for words in WORDS.values():
        assert words in told and words in page
    for other in ("Idefics", "InternVL", "Qwen"):
        assert other not in told


@pytest.mark.parametrize("table", [catalogue.papers, catalogue.table])
def test_no_option_is_shown_as_code(table):
    console = Console(file=io.StringIO(), width=400)
    console.print(table())
    text = console.file.getvalue()
    assert "(share=" not in text and "combined" in text
    if table is catalogue.papers:
        assert "methods=divprune/fastv" in text
