"""Pictures from a seed: small coloured objects on a busy ground. Needs numpy and Pillow only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtc.eval.scenes.glyphs import COLORS, DIGIT_MASKS, DIGITS, SHAPE_MASKS, SHAPE_SIZES, SHAPES, WORD_MASKS, WORDS

SIZE = 112
"""Height and width of a picture, in pixels."""
PATCH = 8
"""Height and width of a patch of the vision tower, in pixels."""
CROWD = 12
"""A crowded scene has at least this many objects."""

Box = tuple[int, int, int, int]
"""y0, x0, y1, x1: the end is not part of the box."""


@dataclass(frozen=True)
class Object:
    """One thing in a picture: a shape, a digit or a word."""

    kind: str
    name: str
    color: str
    box: Box

    @property
    def center(self) -> tuple[float, float]:
        """y and x of the middle, in pixels."""
        y0, x0, y1, x1 = self.box
        return (y0 + y1) / 2, (x0 + x1) / 2


@dataclass(frozen=True)
class Scene:
    """A picture, what is in it, and its decoys: bright noise that no question is about."""

    image: Image.Image
    objects: tuple[Object, ...]
    decoys: tuple[Box, ...]


Wish = tuple[str, str, str]
"""Kind, name and colour of an object that has no place yet."""


class _Board:
    """Which parts of the picture are taken."""

    def __init__(self, taken: Sequence[Object] = ()) -> None:
        self.boxes: list[Box] = [o.box for o in taken]

    def take(self, box: Box) -> Box | None:
        """The box, now taken, or None where it leaves the picture or comes within two pixels of another."""
        y0, x0, y1, x1 = box
        if min(y0, x0) < 1 or max(y1, x1) > SIZE - 1:
            return None
        for a0, b0, a1, b1 in self.boxes:
            if y0 < a1 + 2 and a0 < y1 + 2 and x0 < b1 + 2 and b0 < x1 + 2:
                return None
        self.boxes.append(box)
        return box

    def anywhere(self, rng: np.random.Generator, height: int, width: int) -> Box | None:
        """A free place, by up to 40 throws."""
        corners = rng.integers((1, 1), (SIZE - height, SIZE - width), (40, 2)).tolist()
        for y, x in corners:
            if box := self.take((y, x, y + height, x + width)):
                return box
        return None

    def beside(self, rng: np.random.Generator, height: int, width: int, hub: Box) -> Box | None:
        """A free place right above, below, left or right of a hub."""
        middle_y, middle_x = (hub[0] + hub[2] - height) // 2, (hub[1] + hub[3] - width) // 2
        for side in rng.permutation(4).tolist():
            gap, slip = int(rng.integers(3, 8)), int(rng.integers(-3, 4))
            y = (hub[0] - gap - height, hub[2] + gap, middle_y + slip, middle_y + slip)[side]
            x = (middle_x + slip, middle_x + slip, hub[1] - gap - width, hub[3] + gap)[side]
            if box := self.take((y, x, y + height, x + width)):
                return box
        return None


def _shape_names(rng: np.random.Generator, count: int, crowded: bool, easy: bool) -> list[str]:
    """Some names several times (for counting), the others once (so that a name alone can identify)."""
    order = rng.permutation(list(SHAPES)).tolist()
    if easy:
        return order[:count]
    names = order[:1] * int(rng.integers(1, 5 if crowded else 4))
    names += order[1:2] * int(rng.integers(1, 4) if crowded else 1)
    names = (names + order[2:])[:count]
    return names + order[:1] * (count - len(names))


def _shape_wishes(rng: np.random.Generator, count: int, crowded: bool, easy: bool) -> list[Wish]:
    """Shapes of which no two agree in both name and colour."""
    deck = rng.permutation(list(COLORS)).tolist() * 2
    wishes: list[Wish] = []
    for name in _shape_names(rng, count, crowded, easy):
        color = str(rng.choice(list(COLORS))) if rng.random() < 0.3 else deck.pop()
        while ("shape", name, color) in wishes:
            color = str(rng.choice(list(COLORS)))
        wishes.append(("shape", name, color))
    return wishes


def _wishes(rng: np.random.Generator, crowded: bool, easy: bool) -> list[Wish]:
    """What a scene should hold: words first, then shapes, then digits."""
    if crowded:
        words, shapes, digits = 2, int(rng.integers(7, 10)), int(rng.integers(3, 5))
    elif easy:
        words, shapes, digits = int(rng.random() < 0.4), int(rng.integers(2, 4)), int(rng.integers(0, 3))
    else:
        words = int(rng.choice(3, p=(0.25, 0.5, 0.25)))
        shapes, digits = int(rng.integers(3, 7)), int(rng.choice((1, 2, 3), p=(0.2, 0.4, 0.4)))
    word_colors, digit_colors = rng.permutation(list(COLORS)).tolist(), rng.permutation(list(COLORS)).tolist()
    names = rng.permutation(WORDS).tolist()[:words]
    wishes = [("word", name, color) for name, color in zip(names, word_colors, strict=False)]
    wishes += _shape_wishes(rng, shapes, crowded, easy)
    values = rng.choice(DIGITS, digits).tolist()
    return wishes + [("digit", value, color) for value, color in zip(values, digit_colors, strict=False)]


def _mask(rng: np.random.Generator, kind: str, name: str) -> np.ndarray:
    """The pixels of an object; shapes vary in size."""
    if kind == "shape":
        return SHAPE_MASKS[name, int(rng.integers(SHAPE_SIZES.start, SHAPE_SIZES.stop))]
    return DIGIT_MASKS[name] if kind == "digit" else WORD_MASKS[name]


def _hubs(objects: list[Object], kind: str) -> list[Object]:
    """Objects that a new one of this kind may stand beside: shapes at words, digits at two of the shapes."""
    if kind == "shape":
        return [o for o in objects if o.kind == "word"]
    return [o for o in objects if o.kind == "shape"][:2] if kind == "digit" else []


def _layout(rng: np.random.Generator, wishes: list[Wish]) -> tuple[list[Object], list[np.ndarray]]:
    """Places for the wishes; one that finds none is left out."""
    board = _Board()
    objects: list[Object] = []
    masks: list[np.ndarray] = []
    for kind, name, color in wishes:
        mask = _mask(rng, kind, name)
        height, width = mask.shape
        hubs, box = _hubs(objects, kind), None
        if hubs and rng.random() < (0.75 if kind == "digit" else 0.5):
            box = board.beside(rng, height, width, hubs[int(rng.integers(len(hubs)))].box)
        box = box or board.anywhere(rng, height, width)
        if box:
            objects.append(Object(kind, name, color, box))
            masks.append(mask)
    return objects, masks


def _upsampling(cells: int) -> np.ndarray:
    """The matrix [SIZE, cells] of linear interpolation."""
    place = np.linspace(0, cells - 1, SIZE)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


_UP = _upsampling(8)
_YY, _XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A busy ground, [SIZE, SIZE, 3] in float: soft blobs of colour, stripes and short dim lines."""
    cells = rng.uniform(30, 120, (3, 8, 8)).astype(np.float32)
    ground = np.ascontiguousarray((_UP @ cells @ _UP.T).transpose(1, 2, 0))
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.4, 1.2)
    ground += (12 * np.sin((_XX * np.cos(angle) + _YY * np.sin(angle)) * np.float32(pitch)))[..., None]
    for _ in range(rng.integers(5, 11)):
        start, angle = rng.uniform(0, SIZE, 2), rng.uniform(0, np.pi)
        steps = np.arange(rng.integers(4, 10))
        y = np.clip(start[0] + steps * np.sin(angle), 0, SIZE - 1).astype(int)
        x = np.clip(start[1] + steps * np.cos(angle), 0, SIZE - 1).astype(int)
        ground[y, x] = rng.integers(20, 200, 3)
    return ground


def _paint(canvas: np.ndarray, rng: np.random.Generator, item: Object, mask: np.ndarray) -> None:
    """One object, slightly off its nominal colour; glyphs get a dim plate so that thin strokes can be read."""
    y0, x0, y1, x1 = item.box
    if item.kind != "shape":
        canvas[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] *= 0.35
    canvas[y0:y1, x0:x1][mask] = np.clip(np.array(COLORS[item.color]) + rng.normal(0, 10, 3), 0, 255)


def _decoys(canvas: np.ndarray, rng: np.random.Generator, board: _Board) -> tuple[Box, ...]:
    """Two to four blocks of saturated noise: strong to a vision tower, and of no use."""
    boxes = []
    for _ in range(rng.integers(2, 5)):
        if box := board.anywhere(rng, PATCH, PATCH):
            y0, x0, y1, x1 = box
            canvas[y0:y1, x0:x1] = 255 * rng.integers(0, 2, (PATCH, PATCH, 3))
            boxes.append(box)
    return tuple(boxes)


def scene(seed: int, crowded: bool = False, easy: bool = False) -> Scene:
    """The picture of a seed: always the same.

    `crowded` asks for at least 12 objects, `easy` for two or three shapes and little else.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be at least 0: take one from SPLITS")
    if crowded and easy:
        raise ValueError("crowded=True and easy=True exclude each other: pass one of them")
    rng = np.random.default_rng(seed)
    objects, masks = _layout(rng, _wishes(rng, crowded, easy))
    while crowded and len(objects) < CROWD:
        objects, masks = _layout(rng, _wishes(rng, crowded, easy))
    return compose(rng, objects, masks)


def compose(rng: np.random.Generator, objects: Sequence[Object], masks: Sequence[np.ndarray]) -> Scene:
    """Objects that have their places, on a ground and among decoys of their own."""
    canvas = _ground(rng)
    decoys = _decoys(canvas, rng, _Board(objects))
    for item, mask in zip(objects, masks, strict=True):
        _paint(canvas, rng, item, mask)
    canvas += 8 * rng.standard_normal(canvas.shape, np.float32)
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), tuple(objects), decoys)
