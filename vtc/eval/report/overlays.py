"""What a method looked at: the picture with dropped patches dimmed and merged groups coloured, a column a method."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import vtc
from vtc.errors import BudgetError, UnsupportedModel
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.cells import UNPATCHED, Cell
from vtc.eval.costs.measure import entered

SIDE, GAP, LINE = 224, 12, 15
COLUMNS = 6


def draw(answerer: Answerer, asked: Asked, cells: list[Cell]) -> Image.Image:
    """One sheet: the question, the unpatched answer, then each cell's answer and what it kept."""
    inputs = answerer.inputs([asked])
    seen = what_the_tower_saw(inputs, answerer.processor, asked.pictures[0])
    with entered(answerer.model, Cell()):
        panels = [(UNPATCHED, answerer.answers(inputs)[0], fit(seen))]
    for cell in cells:
        try:
            with entered(answerer.model, cell) as model:
                answer = answerer.answers(inputs)[0]
                picture = vtc.report(model).pictures[0]
        except (BudgetError, UnsupportedModel):
            continue
        title = f"{cell.spec}: {picture.average:.0f} of {picture.tokens_in}"
        panels.append((title, answer, paint(seen, picture.grid, picture.slot)))
    return sheet(f"{asked.sample.question}   expected: {' / '.join(asked.sample.answers)}", panels)


def what_the_tower_saw(inputs: Any, processor: Any, picture: Image.Image) -> Image.Image:
    """The picture after resizing and cropping where the processor makes one plain square of it, else as it came."""
    pixels, image = inputs.get("pixel_values"), getattr(processor, "image_processor", None)
    if pixels is None or pixels.dim() != 4 or pixels.shape[0] != 1 or pixels.shape[1] != 3 or image is None:
        return picture
    values = pixels[0].float().cpu().numpy().transpose(1, 2, 0)
    if getattr(image, "do_normalize", False):
        values = values * np.asarray(image.image_std) + np.asarray(image.image_mean)
    return Image.fromarray((values.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def fit(picture: Image.Image) -> Image.Image:
    """Scaled to SIDE pixels on the longer side."""
    scale = SIDE / max(picture.size)
    size = [max(1, round(edge * scale)) for edge in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def paint(picture: Image.Image, grid: list[tuple[int, int, int]], slot: list[int]) -> Image.Image:
    """Dim what was dropped, tint each group of merged patches and outline it, with a dot where its token stands;
    patches kept alone stay as they are.

    ``grid``: (t, y, x) of each token; ``slot``: the token each went into, -1 if dropped. Of a video frame 0 is shown.
    """
    cells = {(y, x): s for (t, y, x), s in zip(grid, slot, strict=True) if t <= 0 and y >= 0}
    if not cells:
        return fit(picture)
    high, wide = max(y for y, _ in cells) + 1, max(x for _, x in cells) + 1
    base = np.asarray(fit(picture)).astype(np.float32)
    height, width = base.shape[:2]
    sizes: dict[int, int] = {}
    for s in slot:
        sizes[s] = sizes.get(s, 0) + 1
    edges: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for (y, x), s in cells.items():
        top, bottom = y * height // high, (y + 1) * height // high
        left, right = x * width // wide, (x + 1) * width // wide
        part = base[top:bottom, left:right]
        if s < 0:
            part[:] = part * 0.22 + 255 * 0.70
        elif sizes[s] > 1:
            part[:] = part * 0.65 + np.asarray(tint(s)) * 0.35
        if s >= 0:
            for near, ends in (
                ((y - 1, x), ((left, top), (right, top))),
                ((y + 1, x), ((left, bottom - 1), (right, bottom - 1))),
                ((y, x - 1), ((left, top), (left, bottom))),
                ((y, x + 1), ((right - 1, top), (right - 1, bottom))),
            ):
                edges += [ends] if cells.get(near, -1) != s else []
    image = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for n, (_, y, x) in enumerate(grid):
        if slot[n] == n and sizes[n] > 1:
            middle = ((x + 0.5) * width / wide, (y + 0.5) * height / high)
            pen.circle(middle, 2.5, fill="white", outline="black")
    for ends in edges:
        pen.line(ends, fill="#222222")
    return image


def tint(slot: int) -> tuple[float, float, float]:
    """A bright colour for a group; neighbours in number lie far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb(slot * 0.61803 % 1.0, 0.75, 1.0)
    return 255 * red, 255 * green, 255 * blue


def sheet(title: str, panels: list[tuple[str, str, Image.Image]]) -> Image.Image:
    """The panels in rows of ``COLUMNS``, each under its name and answer."""
    font = ImageFont.load_default(12)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    cell_height = max(panel.height for *_, panel in panels) + 2 * LINE + GAP
    size = (columns * (SIDE + GAP) + GAP, rows * cell_height + 2 * GAP + LINE)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP // 2), title[:160], fill="black", font=ImageFont.load_default(14))
    for n, (name, answer, panel) in enumerate(panels):
        x, y = GAP + n % columns * (SIDE + GAP), GAP + LINE + 4 + n // columns * cell_height
        pen.text((x, y), name[:34], fill="black", font=font)
        pen.text((x, y + LINE), f"answers: {answer[:28]}", fill="#0050a0", font=font)
        page.paste(panel, (x, y + 2 * LINE))
    return page
