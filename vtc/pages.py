"""Text as pictures: words set in lines, lines in columns, columns on pages that any processor takes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vtc.errors import DataError, VTCError

SIDES = (16, 4096)
LONGEST = 10_000
"""Characters: no page is so wide that a longer word could stand on it."""
ABSENT = "\U0010ffff"
"""No font has it: what is drawn for it stands for every character that is missing."""

Line = tuple[float, int, str]
"""Left and top in pixels, and what is written."""


@dataclass(frozen=True)
class Sheet:
    """How pages look: black on white, from left to right. Lengths are in pixels.

    ``size``: width and height of a page; ``line_spacing``: in heights of the font; ``columns``: side by side, one
    ``font_size`` apart; ``font``: a TrueType or OpenType file (None: Pillow's own, which has ASCII and little more);
    ``replacement``: one character for those that cannot be drawn (None: they are refused); ``break_words``: cut words
    that are wider than a column (else they are refused). Raises ``VTCError``.
    """

    size: tuple[int, int] = (224, 224)
    font_size: int = 10
    margin: int = 4
    line_spacing: float = 1.0
    columns: int = 1
    font: str | Path | None = None
    replacement: str | None = None
    break_words: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
            raise VTCError(f"size is {self.size!r:.80}, but must be (width, height) in pixels, like (224, 224)")
        for name, value, least, most in (
            ("size: width", self.size[0], *SIDES),
            ("size: height", self.size[1], *SIDES),
            ("font_size", self.font_size, 4, 512),
            ("margin", self.margin, 0, SIDES[1]),
            ("columns", self.columns, 1, 64),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise VTCError(f"{name} is {value!r:.80}, but must be a whole number from {least} to {most}: change it")
        if not isinstance(self.line_spacing, (int, float)) or not 1 <= self.line_spacing <= 10:
            raise VTCError(f"line_spacing is {self.line_spacing!r:.80}, but must be from 1 to 10: change it")
        if self.column < self.font_size or self.rows < 1:
            raise VTCError(
                f"a page of {self.size[0]} x {self.size[1]} with margin {self.margin} and columns {self.columns} has "
                f"no room for a line of font_size {self.font_size}: enlarge size, or lower one of the others"
            )
        if self.replacement is not None and (len(self.replacement) != 1 or not self.draws(self.replacement)):
            raise VTCError(f"replacement is {self.replacement!r:.80}, but must be one character that the font draws")

    @cached_property
    def face(self) -> ImageFont.FreeTypeFont:
        """The font at its size. Basic layout: what is optional in Pillow would give other pixels elsewhere."""
        if self.font is None:
            face = ImageFont.load_default(self.font_size)
            if not isinstance(face, ImageFont.FreeTypeFont):
                raise VTCError("this Pillow has no FreeType, which draws the text: install Pillow's own wheel")
            return face
        try:
            return ImageFont.truetype(str(self.font), self.font_size, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise VTCError(f"font {str(self.font)!r:.200} cannot be read ({error}): give a .ttf or .otf file") from None

    @property
    def height(self) -> int:
        """Of a line."""
        return sum(self.face.getmetrics())

    @property
    def pitch(self) -> int:
        """From one line to the next."""
        return round(self.height * self.line_spacing)

    @property
    def column(self) -> float:
        """The width of a column."""
        return (self.size[0] - 2 * self.margin - (self.columns - 1) * self.font_size) / self.columns

    @property
    def rows(self) -> int:
        """Lines in a column."""
        return (self.size[1] - 2 * self.margin - self.height) // self.pitch + 1

    @property
    def space(self) -> int:
        """The font's own between words is one or two pixels at small sizes, too few to tell words apart."""
        return max(round(self.face.getlength(" ")), round(0.3 * self.font_size))

    def width(self, line: str) -> float:
        """Of a line's words and spaces."""
        extents = [_extent(self.face, word) for word in line.split(" ") if word]
        return sum(right - left for left, right in extents) + self.space * line.count(" ")

    def draws(self, character: str) -> bool:
        """Whether the font has it, and it stands by itself: marks and right-to-left scripts need shaping."""
        if character == " ":
            return True
        if unicodedata.category(character)[0] == "M" or unicodedata.bidirectional(character) in ("R", "AL", "AN"):
            return False
        ink = bytes(self.face.getmask(character))
        return any(ink) and ink != bytes(self.face.getmask(ABSENT))

    def wrap(self, paragraph: str) -> list[str]:
        """The lines of a paragraph in a column. Raises ``DataError``."""
        return wrap(paragraph, self.width, self.column, self.break_words)

    def place(self, number: int) -> tuple[float, int]:
        """Left and top of a page's line, counted down the columns."""
        column, row = divmod(number, self.rows)
        return self.margin + column * (self.column + self.font_size), self.margin + row * self.pitch


def render_text(text: str, **options: Any) -> list[Image.Image]:
    """The text on as many pages as it takes, as RGB pictures of one size; the options are those of ``Sheet``.

    Line breaks and indentation stay, a tab is four spaces. Raises ``DataError`` for a text that is empty, has a
    character that cannot be drawn or a word wider than a column, and ``VTCError`` for an option out of bounds.
    """
    sheet = Sheet(**options)
    return [_draw(lines, sheet) for lines in lay_out(text, sheet)]


def pages_needed(text: str, **options: Any) -> int:
    """How many pages ``render_text`` makes of it, without drawing any."""
    return len(lay_out(text, Sheet(**options)))


def lay_out(text: str, sheet: Sheet) -> list[list[Line]]:
    """The lines of each page and where they stand. Raises ``DataError``."""
    if not isinstance(text, str) or not text.strip():
        given = "empty" if isinstance(text, str) else f"a {type(text).__name__}"
        raise DataError(f"the text is {given}: give a string with at least one word")
    paragraphs = _drawable(text.rstrip().expandtabs(4), sheet).splitlines()
    lines = [line for paragraph in paragraphs for line in sheet.wrap(paragraph)]
    step = sheet.rows * sheet.columns
    pages = [lines[start : start + step] for start in range(0, len(lines), step)]
    return [[(*sheet.place(n), line) for n, line in enumerate(page)] for page in pages]


def wrap(paragraph: str, measure: Callable[[str], float], width: float, break_words: bool = False) -> list[str]:
    """Lines of as many words as fit the width; the spaces where one breaks fall away. Raises ``DataError``."""
    lines = [""]
    for gap, word in re.findall("( *)([^ ]+)", paragraph):
        if measure(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
            continue
        pieces = _cut(word, measure, width) if break_words else [word]
        if any(measure(piece) > width for piece in pieces):
            raise DataError(
                f"the word {word!r:.60} is wider than a line, which has {width:g} pixels: pass break_words=True, or "
                "take a smaller font, wider pages or fewer columns"
            )
        lines += pieces
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def _cut(word: str, measure: Callable[[str], float], width: float) -> list[str]:
    """Pieces of a word, each as long as fits, at least one character."""
    pieces = [word[0]]
    for character in word[1:]:
        if measure(pieces[-1] + character) <= width:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _drawable(text: str, sheet: Sheet) -> str:
    """The text with replacements where they are wanted. Raises ``DataError`` that names what cannot be drawn."""
    missing = sorted(c for c in set(text) if c.splitlines() != [""] and not sheet.draws(c))
    if missing and sheet.replacement is None:
        names = [f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}" for c in missing]
        raise DataError(
            f"{len(missing)} character(s) of the text cannot be drawn: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}; give a font file that has them, or a replacement like '?'"
        )
    return text.translate({ord(c): sheet.replacement for c in missing})


def _draw(lines: list[Line], sheet: Sheet) -> Image.Image:
    width, height = sheet.size
    page = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(page)
    for left, top, line in lines:
        words = line.split(" ")
        for n, word in enumerate(words):
            place = left + sheet.width(" ".join([*words[:n], ""]))
            pen.text((place - _extent(sheet.face, word)[0], top), word, fill=0, font=sheet.face)
    return page.convert("RGB")


@lru_cache(65536)
def _extent(face: ImageFont.FreeTypeFont, word: str) -> tuple[float, float]:
    """Where a word's ink begins, which may be left of its place, and where it ends, in pixels."""
    if len(word) > LONGEST:
        return 0, float("inf")
    left, _, right, _ = face.getbbox(word)
    return min(left, 0), right
