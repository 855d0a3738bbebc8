"""Text as pictures: every word lands in order inside its page, and nothing is dropped without a word about it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

import vtc
from vtc.errors import DataError, VTCError
from vtc.pages import Sheet, lay_out, wrap

TEXT = "The quick brown fox jumps over the lazy dog; 1,234 tokens (and 'more').\n\n  An indented line.\n" * 9


def pixels(pages):
    return [np.array(page) for page in pages]


def test_the_same_text_gives_the_same_pixels_in_any_process():
    code = "import sys, zlib, vtc; print(zlib.crc32(b''.join(p.tobytes() for p in vtc.render_text(sys.argv[1]))))"
    sums = {subprocess.check_output([sys.executable, "-c", code, text]) for text in (TEXT, TEXT, TEXT[:-3])}
    assert len(sums) == 2, "equal texts equal pixels, other texts other pixels"


def test_pages_are_rgb_of_the_size_and_as_many_as_told():
    for options in ({}, {"size": (120, 300), "columns": 2, "font_size": 7}, {"size": (90, 32), "margin": 0}):
        pages = vtc.render_text(TEXT, **options)
        assert len(pages) == vtc.pages_needed(TEXT, **options) >= 1
        assert {(p.mode, p.size) for p in pages} == {("RGB", options.get("size", (224, 224)))}
        assert all(p.min() < 100 and p.max() == 255 for p in pixels(pages)), "ink on paper"


words = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12), min_size=1)
sheets = st.builds(
    Sheet,
    size=st.tuples(st.integers(200, 400), st.integers(40, 200)),
    font_size=st.integers(5, 12),
    margin=st.integers(0, 9),
    line_spacing=st.floats(1, 2),
    columns=st.integers(1, 2),
    break_words=st.just(True),
)


@given(words, st.sampled_from([" ", "\n", "  ", "\n\n", " \t"]), sheets)
@settings(max_examples=40, deadline=None)
def test_every_word_stands_on_a_page_in_order(words, between, sheet):
    pages = lay_out(between.join(words), sheet)
    lines = [line for page in pages for _, _, line in page]
    assert "".join(lines).replace(" ", "") == "".join(words), "nothing lost, nothing twice, nothing out of order"
    if max(map(sheet.width, words)) <= sheet.column:
        assert [w for line in lines for w in line.split()] == words, "no word is cut that fits"
    for page in pages:
        assert len({(left, top) for left, top, _ in page}) == len(page), "no two lines in one place"
        for left, top, line in page:
            assert left >= sheet.margin and left + sheet.width(line) <= sheet.size[0] - sheet.margin
            assert top >= sheet.margin and top + sheet.height <= sheet.size[1] - sheet.margin


@pytest.mark.parametrize("font_size", [6, 10, 17])
def test_ink_stays_inside_the_margin(font_size):
    """Letters like j and f reach beyond their place."""
    text = " ".join(a + b for a in "jfyY/,;W" for b in "jfyTV/WK|Q[")
    for page in pixels(vtc.render_text(text, margin=5, font_size=font_size)):
        page[5:-5, 5:-5] = 255
        assert page.min() == 255


def test_line_breaks_and_indentation_stay():
    (page,) = lay_out("a\n\n    b  c\n\td \n\n", Sheet())
    assert [line for _, _, line in page] == ["a", "", "    b  c", "    d"]
    step = page[1][1] - page[0][1]
    assert [top for _, top, _ in page] == [page[0][1] + n * step for n in range(4)]


def test_columns_are_read_one_after_the_other():
    sheet = Sheet(columns=2)
    (page,) = lay_out("\n".join(map(str, range(2 * sheet.rows))), sheet)
    left, right = page[: sheet.rows], page[sheet.rows :]
    assert len({x for x, _, _ in left}) == len({x for x, _, _ in right}) == 1 and left[0][0] < right[0][0]
    assert [y for _, y, _ in left] == [y for _, y, _ in right]


def test_wrap_fills_lines_and_cuts_only_when_told():
    assert wrap("aa bb  cc d", len, 5) == ["aa bb", "cc d"]
    assert wrap("", len, 5) == [""]
    assert wrap("a 1234567", len, 5, break_words=True) == ["a", "12345", "67"]
    with pytest.raises(DataError, match="'1234567' is wider than a line.*break_words=True"):
        wrap("a 1234567", len, 5)


@pytest.mark.parametrize("text", ["", " \n\t", None, 3, b"text"])
def test_no_text_is_refused(text):
    with pytest.raises(DataError, match="give a string"):
        vtc.render_text(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("caf\u00e9", "U\\+00E9 LATIN SMALL LETTER E WITH ACUTE"),
        ("e\u0301", "U\\+0301 COMBINING ACUTE ACCENT"),
        ("\u05d0", "U\\+05D0 HEBREW LETTER ALEF"),
        ("a\u200bb", "U\\+200B ZERO WIDTH SPACE"),
        ("a\x00b", "U\\+0000 without a name"),
        ("a\ud800", "U\\+D800 without a name"),
    ],
)
def test_what_cannot_be_drawn_is_named_or_replaced(text, name):
    with pytest.raises(DataError, match=name):
        vtc.pages_needed(text)
    (page,) = lay_out(text, Sheet(replacement="?"))
    assert page[0][2] == "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def test_a_word_wider_than_the_page_is_refused_or_cut():
    for word in ("x" * 100, "x" * 20_000):
        with pytest.raises(DataError, match="wider than a line"):
            vtc.render_text(word)
        assert "".join(line for page in lay_out(word, Sheet(break_words=True)) for _, _, line in page) == word


BAD = [
    {"size": (0, 224)},
    {"size": (224, 10**9)},
    {"size": 224},
    {"size": (224.0, 224)},
    {"size": (True, 224)},
    {"font_size": 0},
    {"font_size": 10**6},
    {"font_size": float("nan")},
    {"font_size": 300},
    {"margin": -1},
    {"margin": 110},
    {"columns": 0},
    {"columns": 40},
    {"line_spacing": 0.5},
    {"line_spacing": float("nan")},
    {"line_spacing": "1"},
    {"replacement": ""},
    {"replacement": "\u05d0"},
    {"replacement": "??"},
    {"font": "/no/such.ttf"},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_options_are_refused(options):
    with pytest.raises(VTCError, match=str(next(iter(options)))):
        vtc.pages_needed("text", **options)


def test_a_font_of_ones_own_draws_what_pillows_cannot(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    ImageFont.truetype(font, 10)
    assert len(vtc.render_text("caf\u00e9 \u2013 \u03b1\u03b2", font=font)) == 1
    with pytest.raises(DataError, match="2 character"):
        vtc.render_text("\u4e00\u4e01", font=font)
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    with pytest.raises(VTCError, match="broken.ttf"):
        vtc.render_text("text", font=tmp_path / "broken.ttf")


def test_pages_pass_through_a_processor_and_a_patched_model():
    import torch

    from tests.eval.tiny import SIDE, tiny_llava, tiny_processor

    model, processor = tiny_llava(), tiny_processor()
    pages = vtc.render_text("red green blue " * 3, size=(SIDE, SIDE), font_size=8, margin=1)
    assert len(pages) > 2
    prompt = f"USER: {'<image> ' * len(pages)}what is the color ? ASSISTANT:"
    inputs = processor(images=pages, text=prompt, return_tensors="pt")
    vtc.patch(model, "divprune", budget=4)
    with torch.no_grad():
        model(**inputs)
    assert [(p.tokens_in, p.average) for p in vtc.report(model).pictures] == [(16, 4)] * len(pages)
