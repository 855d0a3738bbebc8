"""Boxes in answers (RefCOCO): read four numbers, compare by intersection over union."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from vtc.errors import DataError

Box = tuple[float, float, float, float]  # left, top, right, bottom
NUMBER = r"(-?\d+(?:\.\d+)?|-?\.\d+)"
FOUR = re.compile(r"[\s,()\[\]<>]+".join([NUMBER] * 4))
WHOLE = {"unit": (1, 1), "thousand": (1000, 1000)}  # what stands for a picture's width and height


def parse_box(reply: str) -> Box | None:
    """The first four numbers that stand together, in the reply's own coordinates; None where there are none."""
    found = FOUR.search(reply)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return left, top, right, bottom


def rescale(box: Sequence[float], size: tuple[int, int], coordinates: str) -> Box:
    """Corners in pixels of a picture of ``size`` (width, height) as ``unit`` (0 to 1), ``thousand`` (0 to 1000) or
    ``pixels``. Raises ``DataError`` for other coordinates."""
    if coordinates not in (*WHOLE, "pixels"):
        raise DataError(f"coordinates {coordinates!r} are unknown; there are {', '.join([*WHOLE, 'pixels'])}")
    width, height = WHOLE.get(coordinates, size)
    x, y = width / size[0], height / size[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0.0 where one is empty or turned round."""
    inside = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    union = area(one) + area(other) - inside
    return inside / union if union > 0 and math.isfinite(union) else 0.0


def area(box: Sequence[float]) -> float:
    """0.0 where a side is not positive."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
