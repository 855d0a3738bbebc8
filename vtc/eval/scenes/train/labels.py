"""What the tower learns in stage 1: labels per patch and labels per picture."""

from dataclasses import dataclass

import numpy as np

from vtc.eval.scenes.draw import PATCH, SIZE, Object, Scene
from vtc.eval.scenes.glyphs import COLORS, DIGITS, SHAPES, WORDS

GRID = SIZE // PATCH
KINDS = ("ground", *SHAPES, *DIGITS, *WORDS, "decoy")
DECOY = KINDS.index("decoy")
COLOR_NAMES = tuple(COLORS)
PICTURE_LABELS = (*(f"{color} {name}" for name in SHAPES for color in COLORS), *DIGITS, *WORDS)
"""What may be in a picture: a shape with its colour, a digit, a word."""


@dataclass
class Labels:
    """Labels of one picture, or of many (stacked along a first axis)."""

    kind: np.ndarray
    """int8 [196]: index into KINDS."""
    color: np.ndarray
    """int8 [196]: index into the colours, -1 where there is no object."""
    middle: np.ndarray
    """uint8 [196]: 1 in the patch that holds an object's centre."""
    place: np.ndarray
    """float16 [196, 2]: y and x of the object's centre, in [-1, 1]."""
    present: np.ndarray
    """uint8 [68]: which of PICTURE_LABELS are there."""


def position(center: tuple[float, float]) -> tuple[float, float]:
    """y and x in pixels -> y and x in [-1, 1]."""
    return center[0] * 2 / SIZE - 1, center[1] * 2 / SIZE - 1


def _picture_label(item: Object) -> int:
    return PICTURE_LABELS.index(f"{item.color} {item.name}" if item.kind == "shape" else item.name)


def _overlap(box: tuple[int, int, int, int]) -> np.ndarray:
    """How many pixels of a box lie in each patch, [GRID, GRID]."""
    edges = np.arange(GRID) * PATCH
    rows = np.clip(np.minimum(box[2], edges + PATCH) - np.maximum(box[0], edges), 0, None)
    columns = np.clip(np.minimum(box[3], edges + PATCH) - np.maximum(box[1], edges), 0, None)
    return rows[:, None] * columns


def label(scene: Scene) -> Labels:
    """A patch belongs to the object that covers most of it, if that is at least six pixels."""
    kind, color = np.zeros((GRID, GRID), np.int8), np.full((GRID, GRID), -1, np.int8)
    middle, place = np.zeros((GRID, GRID), np.uint8), np.zeros((GRID, GRID, 2), np.float16)
    best, present = np.full((GRID, GRID), 5), np.zeros(len(PICTURE_LABELS), np.uint8)
    for item in scene.objects:
        overlap = _overlap(item.box)
        mine = overlap > best
        best[mine] = overlap[mine]
        kind[mine] = KINDS.index(item.name)
        color[mine] = COLOR_NAMES.index(item.color)
        place[mine] = position(item.center)
        middle[int(item.center[0]) // PATCH, int(item.center[1]) // PATCH] = 1
        present[_picture_label(item)] = 1
    for box in scene.decoys:
        kind[(_overlap(box) > 20) & (kind == 0)] = DECOY
    return Labels(kind.ravel(), color.ravel(), middle.ravel(), place.reshape(-1, 2), present)
