"""Questions about a scene, with the one answer that its objects allow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vtc.eval.scenes.draw import Box, Object, Scene
from vtc.eval.scenes.glyphs import COLORS, SHAPES
from vtc.eval.scenes.vocabulary import PLACES

ONE_HOP = ("exist", "color", "shape", "count", "relation", "digit", "word")
"""Answered by looking at one place, or at all places at once."""
TWO_HOP = ("digit_beside", "color_beside")
"""Answered by looking where something else was found: what is left of, right of, above or below it."""
TYPES = ONE_HOP + TWO_HOP

MOST = 6
"""No count goes beyond this."""
CLEARLY = 10
"""Pixels by which a place, or the nearest of several, must differ from the rest to be asked about."""
REACH = 34
"""Pixels within which something counts as beside."""


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer, and where to look."""

    text: str
    answer: str
    type: str
    evidence: tuple[Box, ...]
    """Boxes that the answer rests on; of a two-hop question first the known object, then the one asked about."""
    mentions: tuple[tuple[int, Object | None], ...] = ()
    """Position of a word in the text, and the object that it names (None: no such object)."""

    @property
    def hops(self) -> int:
        return 2 if self.type in TWO_HOP else 1


class _View:
    """The objects of a scene by kind, and those that one feature alone identifies."""

    def __init__(self, objects: Sequence[Object]) -> None:
        self.shapes = [o for o in objects if o.kind == "shape"]
        self.digits = [o for o in objects if o.kind == "digit"]
        self.words = [o for o in objects if o.kind == "word"]

    def unique(self, items: list[Object], feature: str) -> list[Object]:
        values = [getattr(o, feature) for o in items]
        return [o for o, value in zip(items, values, strict=True) if values.count(value) == 1]


Rng = np.random.Generator
T = TypeVar("T")


def _pick(rng: Rng, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _absent(view: _View, rng: Rng) -> tuple[str, str] | None:
    """A colour and a shape that both occur, never together; where there is none, any colour of an occurring shape."""
    there = {(o.color, o.name) for o in view.shapes}
    colors = sorted({o.color for o in view.shapes}) if rng.random() < 0.85 else list(COLORS)
    names = sorted({o.name for o in view.shapes})
    for palette in (colors, list(COLORS)):
        if free := [(c, n) for c in palette for n in names if (c, n) not in there]:
            return _pick(rng, free)
    return None


def _exist(view: _View, rng: Rng) -> Question | None:
    if not view.shapes:
        return None
    item = _pick(rng, view.shapes) if rng.random() < 0.5 else None
    pair = (item.color, item.name) if item else _absent(view, rng)
    if pair is None:
        return None
    text = f"is there a {pair[0]} {pair[1]} ?"
    return Question(text, "yes" if item else "no", "exist", (item.box,) if item else (), ((4, item),))


def _color(view: _View, rng: Rng) -> Question | None:
    if not (items := view.unique(view.shapes, "name")):
        return None
    item = _pick(rng, items)
    return Question(f"what color is the {item.name} ?", item.color, "color", (item.box,), ((4, item),))


def _shape(view: _View, rng: Rng) -> Question | None:
    if not (items := view.unique(view.shapes, "color")):
        return None
    item = _pick(rng, items)
    return Question(f"what shape is {item.color} ?", item.name, "shape", (item.box,), ((3, item),))


def _count(view: _View, rng: Rng) -> Question | None:
    """First a number, so that the numbers that a scene offers are equally likely, then something that often there."""
    groups = {SHAPES[name]: [o for o in view.shapes if o.name == name] for name in SHAPES}
    groups["digits"] = view.digits
    numbers = sorted({len(g) for g in groups.values() if len(g) <= MOST})
    if not numbers:
        return None
    number = _pick(rng, numbers)
    name = _pick(rng, [n for n, g in groups.items() if len(g) == number])
    return Question(f"how many {name} ?", str(number), "count", tuple(o.box for o in groups[name]))


def _relation(view: _View, rng: Rng) -> Question | None:
    items = view.unique(view.shapes, "name")
    if len(items) < 2:
        return None
    first, second = (items[i] for i in rng.permutation(len(items))[:2])
    axis = int(rng.integers(2))
    offset = first.center[axis] - second.center[axis]
    if abs(offset) < CLEARLY:
        return None
    words, joint = (("above", "below"), "") if axis == 0 else (("left", "right"), " of")
    text = f"is the {first.name} {words[0]} or {words[1]}{joint} the {second.name} ?"
    mentions = ((2, first), (len(text.split()) - 2, second))
    return Question(text, words[int(offset > 0)], "relation", (first.box, second.box), mentions)


def _digit(view: _View, rng: Rng) -> Question | None:
    if not (items := view.unique(view.digits, "color")):
        return None
    item = _pick(rng, items)
    return Question(f"what digit is {item.color} ?", item.name, "digit", (item.box,), ((3, item),))


def _word(view: _View, rng: Rng) -> Question | None:
    if not (items := view.unique(view.words, "color")):
        return None
    item = _pick(rng, items)
    known = item.color if len(view.words) > 1 or rng.random() < 0.5 else "written"
    return Question(f"what word is {known} ?", item.name, "word", (item.box,), ((3, item),))


def _distance(hub: Object, place: str, item: Object, slope: float) -> float | None:
    """How far an item lies from a hub on one side of it; None outside the sector |across| <= slope * |along|."""
    down, right = item.center[0] - hub.center[0], item.center[1] - hub.center[1]
    along, across = {"above": (-down, right), "below": (down, right), "left": (-right, down), "right": (right, down)}[
        place
    ]
    return along if along > 0 and abs(across) <= slope * along else None


def nearest(hub: Object, place: str, items: Sequence[Object]) -> Object | None:
    """The item on that side of the hub, if one is there within reach and clearly nearer than any other.

    It must lie in a narrow sector; all others in a wide one must be at least CLEARLY pixels farther.
    """
    wide = sorted(
        ((d, i) for i, o in enumerate(items) if o is not hub and (d := _distance(hub, place, o, 1.6)) is not None)
    )
    if not wide or wide[0][0] > REACH or (len(wide) > 1 and wide[1][0] < wide[0][0] + CLEARLY):
        return None
    item = items[wide[0][1]]
    return item if _distance(hub, place, item, 0.6) is not None else None


def _beside(rng: Rng, hubs: list[Object], items: list[Object]) -> tuple[Object, str, Object] | None:
    """A hub, a side and what is there."""
    found = [(h, p, o) for h in hubs for p in PLACES if (o := nearest(h, p, items))]
    return _pick(rng, found) if found else None


def _where(place: str) -> str:
    return f"{place} of" if place in ("left", "right") else place


def _digit_beside(view: _View, rng: Rng) -> Question | None:
    """A digit beside a shape; asked only where there are other digits to take by mistake."""
    found = _beside(rng, view.shapes, view.digits) if len(view.digits) > 1 else None
    if found is None:
        return None
    hub, place, item = found
    text = f"what digit is {_where(place)} the {hub.color} {hub.name} ?"
    mentions = ((len(text.split()) - 2, hub),)
    return Question(text, item.name, "digit_beside", (hub.box, item.box), mentions)


def _color_beside(view: _View, rng: Rng) -> Question | None:
    """The colour of a shape beside a word or a digit; asked only where the shapes differ in colour."""
    hubs = view.words + view.unique(view.digits, "name")
    several = len({o.color for o in view.shapes}) > 1
    found = _beside(rng, hubs, view.shapes) if several else None
    if found is None:
        return None
    hub, place, item = found
    text = f"what color is the shape {_where(place)} the {hub.kind} {hub.name} ?"
    mentions = ((len(text.split()) - 2, hub),)
    return Question(text, item.color, "color_beside", (hub.box, item.box), mentions)


_ASK: dict[str, Callable[[_View, Rng], Question | None]] = {
    "exist": _exist,
    "color": _color,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "digit": _digit,
    "word": _word,
    "digit_beside": _digit_beside,
    "color_beside": _color_beside,
}


def check_types(types: Sequence[str] | None) -> tuple[str, ...]:
    """The types asked for; all of them where none are named."""
    types = TYPES if types is None else tuple(types)
    if unknown := [t for t in types if t not in TYPES]:
        raise ValueError(f"unknown question types {unknown}: choose from {', '.join(TYPES)}")
    if not types:
        raise ValueError("types is empty: name at least one, or pass None for all")
    return types


def ask_about(
    objects: Sequence[Object],
    rng: Rng,
    count: int,
    types: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> list[Question]:
    """Up to `count` questions about these objects, of types drawn by weight; fewer where they allow no more."""
    types = check_types(types)
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    if weights is not None and len(weights) != len(types):
        raise ValueError(f"{len(weights)} weights for {len(types)} types: give one weight for each type")
    view, questions = _View(objects), []
    shares = None if weights is None else np.asarray(weights, float) / np.sum(weights)
    for index in rng.choice(len(types), 20 * count, p=shares).tolist():
        if question := _ASK[types[index]](view, rng):
            questions.append(question)
            if len(questions) == count:
                break
    return questions


def ask(
    scene: Scene,
    rng: Rng,
    count: int,
    types: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> list[Question]:
    """Up to `count` questions about a scene; see `ask_about`."""
    return ask_about(scene.objects, rng, count, types, weights)
