"""Pictures side by side on a page, each under its name and its answer, and a legend of what their colours mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtc.eval.report.overlay_paint import EDGE, SIDE, anchor, faded, tinted
from vtc.files.escape import visible

GAP, LINE, MARK = 12, 15, 10
COLUMNS = 6
SWATCH = 13  # pixels a side of a patch in the legend
GREY = np.full((SWATCH, SWATCH, 3), (70.0, 84.0, 104.0))  # what its patches show
LEGEND = ("dropped", "kept", "merged (a colour a group)", "anchor of a group")


@dataclass(frozen=True)
class Panel:
    """A picture, its name, the answer and its score from 0 to 1 (None: nobody knows what is right)."""

    name: str
    answer: str
    picture: Image.Image
    score: float | None = None


def sheet(title: str, panels: list[Panel]) -> Image.Image:
    """The panels in rows of ``COLUMNS`` under the title, the legend below."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = columns * (SIDE + GAP) + GAP
    head = list(lines(visible(" ".join(title.split())), ImageFont.load_default(14), width - 2 * GAP))
    legend = list(places(width - 2 * GAP))
    top = GAP + len(head) * (LINE + 3)
    cell_height = max(panel.picture.height for panel in panels) + 2 * LINE + GAP
    low = top + rows * cell_height
    page = Image.new("RGB", (width, low + legend[-1][2] + SWATCH + GAP), "white")
    pen = ImageDraw.Draw(page)
    for n, text in enumerate(head):
        pen.text((GAP, GAP // 2 + n * (LINE + 3)), text, fill="black", font=ImageFont.load_default(14))
    for n, panel in enumerate(panels):
        x, y = GAP + n % columns * (SIDE + GAP), top + n // columns * cell_height
        write(pen, (x, y), panel.name, "black", SIDE)
        tell(pen, (x, y + LINE), panel)
        page.paste(panel.picture, (x, y + 2 * LINE))
    for n, x, y in legend:
        page.paste(swatch(LEGEND[n]), (GAP + x, low + y))
        pen.text((GAP + x + SWATCH + 6, low + y - 1), LEGEND[n], fill="black", font=ImageFont.load_default(12))
    return page


def tell(pen: ImageDraw.ImageDraw, at: tuple[int, int], panel: Panel) -> None:
    """The answer; where it has a score, behind a mark and a word that say the same as the colour."""
    if panel.score is None:
        write(pen, at, f"answers: {panel.answer}", "#0050a0", SIDE)
        return
    (x, y), box = at, MARK
    strokes: list[list[tuple[int, int]]]
    if panel.score >= 1:
        word, color, strokes = "right", "#1b7837", [[(0, 6), (4, 10), (10, 1)]]
    elif panel.score <= 0:
        word, color, strokes = "wrong", "#b2182b", [[(1, 1), (9, 9)], [(1, 9), (9, 1)]]
    else:
        word, color, strokes = f"partly right ({panel.score:.2g})", "#8a5a00", [[(1, 6), (9, 6)]]
    for stroke in strokes:
        pen.line([(x + dx, y + 2 + dy) for dx, dy in stroke], fill=color, width=2)
    write(pen, (x + box + 5, y), f"{word}: {panel.answer}", color, SIDE - box - 5)


def write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, color: str, room: int) -> None:
    """The text as large as fits, and what does not fit even small with dots for its end."""
    text = visible(" ".join(text.split()))
    size = next((size for size in range(12, 8, -1) if ImageFont.load_default(size).getlength(text) <= room), 9)
    font = ImageFont.load_default(size)
    if font.getlength(text) > room:
        while text and font.getlength(text + "...") > room:
            text = text[:-1]
        text += "..."
    pen.text(at, text, fill=color, font=font)


def lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> Iterator[str]:
    """The text in lines of whole words."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > room:
            yield line
            longer = word
        line = longer
    yield line


def places(room: int) -> Iterator[tuple[int, int, int]]:
    """Where each entry of the legend stands: its number, x and y; on as many lines as it takes."""
    x = y = 0
    for n, text in enumerate(LEGEND):
        wide = SWATCH + 6 + int(ImageFont.load_default(12).getlength(text)) + 18
        if x and x + wide > room:
            x, y = 0, y + SWATCH + 6
        yield n, x, y
        x += wide


def swatch(word: str) -> Image.Image:
    """A patch as ``paint`` shows it."""
    name = word.split()[0]
    values = {"dropped": faded(GREY), "kept": GREY}.get(name, tinted(GREY, 3))
    image = Image.fromarray(values.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, SWATCH - 1, SWATCH - 1), outline="#bbbbbb" if name == "dropped" else EDGE)
    if name == "anchor":
        anchor(pen, (SWATCH / 2, SWATCH / 2))
    return image
