"""A picture with dropped patches dimmed and merged groups coloured."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDE = 224  # pixels of the longer side
EDGE = "#222222"


def fit(picture: Image.Image) -> Image.Image:
    """Scaled to SIDE pixels on the longer side."""
    scale = SIDE / max(picture.size)
    size = [max(1, round(edge * scale)) for edge in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def paint(
    picture: Image.Image, grid: list[tuple[int, int, int]], slot: list[int], seen: list[float] | None = None
) -> Image.Image:
    """Dim what was dropped, tint each group of merged patches and outline it, with a dot where its token stands;
    patches kept alone stay as they are.

    ``grid``: (t, y, x) of each token; ``slot``: the token each went into, -1 if dropped; ``seen``: the share of the
    layers in which each is a key, where layers choose: the fewer, the dimmer. Of a video frame 0 is shown.
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
            part[:] = faded(part)
        elif sizes[s] > 1:
            part[:] = tinted(part, s)
        if s >= 0 and seen is not None:
            part[:] = seen[s] * part + (1 - seen[s]) * faded(part)
        if s >= 0 and (seen is None or seen[s] > 0):
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
        if slot[n] == n and sizes[n] > 1 and (seen is None or seen[n] > 0):
            middle = ((x + 0.5) * width / wide, (y + 0.5) * height / high)
            anchor(pen, middle)
    for ends in edges:
        pen.line(ends, fill=EDGE)
    return image


def faded(part: Any) -> Any:
    """Pixels of a dropped patch."""
    return part * 0.22 + 255 * 0.70


def tinted(part: Any, slot: int) -> Any:
    """Pixels of a patch that went into the token ``slot`` with others."""
    return part * 0.65 + np.asarray(tint(slot)) * 0.35


def anchor(pen: ImageDraw.ImageDraw, middle: tuple[float, float]) -> None:
    """The dot where a merged token stands."""
    pen.circle(middle, 2.5, fill="white", outline="black")


def tint(slot: int) -> tuple[float, float, float]:
    """A bright colour for a group; neighbours in number lie far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb(slot * 0.61803 % 1.0, 0.75, 1.0)
    return 255 * red, 255 * green, 255 * blue
