"""Fixed sets of questions: the same ids, pictures and answers wherever they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtc.eval.scenes.ask import TYPES, Question, ask, check_types
from vtc.eval.scenes.draw import Box, scene
from vtc.eval.scenes.splits import SPLITS

PROMPT = "USER: <image> {question} ASSISTANT:"
PER_SCENE = 3
"""At most so many questions share a picture."""
STRIDE = 20_000
"""Scenes between two values of `seed`."""


@dataclass(frozen=True)
class Sample:
    """One question about one picture. The id fixes both: it does not depend on what else is asked."""

    id: str
    image: Image.Image
    question: str
    answer: str
    type: str
    hops: int
    evidence: tuple[Box, ...]

    @property
    def prompt(self) -> str:
        """What the processor gets."""
        return PROMPT.format(question=self.question)


def first_scene(split: str, seed: int) -> int:
    """The first scene of a block of a split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    blocks = len(SPLITS[split]) // STRIDE
    if not 0 <= seed < blocks:
        raise ValueError(f"seed is {seed}, but the {split} split has blocks 0 to {blocks - 1}: choose one of them")
    return SPLITS[split][seed * STRIDE]


def _questions(number: int, crowded: bool, wanted: Sequence[str]) -> tuple[Image.Image, list[Question]]:
    """The picture of a scene, and its question of each wanted type that it allows."""
    drawn = scene(number, crowded=crowded)
    found = []
    for kind in wanted:
        rng = np.random.default_rng((number, TYPES.index(kind)))
        found += ask(drawn, rng, 1, [kind])
    return drawn.image, found


def samples(
    split: str, count: int, seed: int = 0, crowded: bool = False, types: Sequence[str] | None = None
) -> Iterator[Sample]:
    """Yields `count` samples of a split, the same number of each type (up to one).

    `seed` selects a block of scenes, so that two seeds share no picture.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count is {count!r}, but must be a whole number of at least 1")
    types = check_types(types)
    first = first_scene(split, seed)
    return _balanced(split, count, range(first, first + STRIDE), crowded, types)


def _balanced(split: str, count: int, seeds: range, crowded: bool, types: tuple[str, ...]) -> Iterator[Sample]:
    """Walks the scenes and asks each about the types that are most behind."""
    left = {t: count // len(types) + (i < count % len(types)) for i, t in enumerate(types)}
    for number in seeds:
        wanted = sorted((t for t in types if left[t]), key=lambda t: -left[t])
        image, questions = _questions(number, crowded, wanted)
        for q in questions[:PER_SCENE]:
            left[q.type] -= 1
            name = f"{split}{'-crowded' if crowded else ''}-{number}-{q.type}"
            yield Sample(name, image, q.text, q.answer, q.type, q.hops, q.evidence)
        if not any(left.values()):
            return
    raise ValueError(f"{count} samples need more than the {len(seeds)} scenes of one seed: ask for fewer")
