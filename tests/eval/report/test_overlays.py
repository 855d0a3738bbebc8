"""Overlays: what was dropped and merged, a legend that says so, right and wrong told apart without colour."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vtc.eval.benchmarks import Sample
from vtc.eval.report import overlay_paint as paint
from vtc.eval.report import overlay_sheet as sheet
from vtc.eval.report import overlays
from vtc.eval.report.overlay_sheet import Panel

BLACK = Image.new("RGB", (paint.SIDE, 100))


@pytest.fixture
def texts(monkeypatch):
    """What is written onto sheets."""
    seen = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, **more: (seen.append(text), write(self, at, text, **more))
    )
    return seen


def test_overlay_dims_what_was_dropped_and_tints_what_was_merged():
    grid = [(0, y, x) for y in range(2) for x in range(2)]
    painted = paint.paint(Image.new("RGB", (8, 8)), grid, [0, -1, 2, 2])
    side = paint.SIDE
    kept, dropped, merged = (
        painted.getpixel(at) for at in ((side // 4, side // 4), (3 * side // 4, side // 4), (side // 8, 7 * side // 8))
    )
    assert kept == (0, 0, 0) and min(dropped) > 150 and max(merged) > 60 and merged != kept
    assert paint.paint(BLACK, [(-1, -1, -1)], [0]).size == BLACK.size  # a family that knows no places


def test_overlay_dims_a_token_by_the_layers_that_do_not_choose_it():
    grid = [(0, y, x) for y in range(2) for x in range(2)]
    painted = paint.paint(Image.new("RGB", (8, 8)), grid, [0, 1, 2, 3], [1.0, 0.5, 0.25, 0.0])
    step = paint.SIDE // 4
    light = [sum(painted.getpixel((x * step, y * step))) for y in (1, 3) for x in (1, 3)]
    assert light == sorted(light) and len(set(light)) == 4 and light[0] == 0


def test_overlay_sheets_hold_any_number_of_columns():
    one, many = (sheet.sheet("question", [Panel("n", "a", BLACK)] * n) for n in (1, 2 * sheet.COLUMNS + 1))
    assert many.width > one.width and many.height > 2 * one.height


@pytest.mark.parametrize("panels", [1, 2, 8])
def test_a_legend_names_what_patches_look_like(texts, panels):
    page = sheet.sheet("question", [Panel("n", "a", BLACK)] * panels)
    assert [text for text in texts if text in sheet.LEGEND] == list(sheet.LEGEND)
    assert {word.split()[0] for word in sheet.LEGEND} == {"dropped", "kept", "merged", "anchor"}
    for n, x, y in sheet.places(page.width - 2 * sheet.GAP):
        wide = sheet.ImageFont.load_default(12).getlength(sheet.LEGEND[n])
        assert x + sheet.SWATCH + 6 + wide <= page.width - 2 * sheet.GAP and y >= 0
    seen = [np.asarray(sheet.swatch(word)).tobytes() for word in sheet.LEGEND]
    assert len(set(seen)) == len(seen)


def test_right_and_wrong_differ_without_colour(texts):
    pages = [sheet.sheet("q", [Panel("n", "cat", BLACK, score)]).convert("1", dither=0) for score in (1.0, 0.0, 0.3)]
    assert [t for t in texts if "cat" in t] == ["right: cat", "wrong: cat", "partly right (0.3): cat"]
    mark = (sheet.GAP, 30, sheet.GAP + sheet.MARK + 3, 60)
    assert len({page.crop(mark).tobytes() for page in pages}) == 3, "the marks alone are told apart"


def test_nobody_knows_what_is_right(texts):
    sheet.sheet("q", [Panel("n", "cat", BLACK)])
    assert "answers: cat" in texts


def test_names_are_not_cut_and_long_texts_stay_on_the_page(texts):
    name = "divprune+share:spend=0.25: 49 of 196"
    sheet.sheet("why " * 60, [Panel(name, "word " * 40, BLACK)])
    assert name in texts and any(text.endswith("...") for text in texts)
    font = sheet.ImageFont.load_default(14)
    heads = [text for text in texts if text.startswith("why")]
    assert " ".join(heads) == " ".join(["why"] * 60) and max(map(font.getlength, heads)) <= paint.SIDE


class Answering:
    """Answers ``cat``; no cell is entered."""

    model = processor = None

    def inputs(self, asked):
        return {}

    def answers(self, inputs):
        return ["cat"]


class Asked:
    def __init__(self, *answers):
        self.sample, self.pictures = Sample("1", "what is this ?", answers), [BLACK]


def test_nothing_expected_is_not_told(texts, monkeypatch):
    monkeypatch.setattr(overlays, "entered", lambda model, cell: nullcontext())
    overlays.draw(Answering(), Asked(), [], lambda answer, sample: 1.0)
    assert "what is this ?" in texts and "answers: cat" in texts and not any("expected" in text for text in texts)
    overlays.draw(Answering(), Asked("cat", "kitten"), [], lambda answer, sample: 1.0)
    assert "right: cat" in texts and "what is this ? (expected: cat / kitten)" in " ".join(texts)
