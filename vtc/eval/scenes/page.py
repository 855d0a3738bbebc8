"""Pages: words in the testbed's letters, set in lines, on the ground of a scene."""

from collections.abc import Sequence

import numpy as np

from vtc.eval.scenes.draw import SIZE, Object, Scene, compose
from vtc.eval.scenes.glyphs import WORD_MASKS
from vtc.pages import wrap

MARGIN, GAP, PITCH = 6, 6, 14
"""Pixels around the text, between two words, and from one line to the next."""


def page(seed: int, words: Sequence[tuple[str, str]]) -> Scene:
    """Words and their colours in lines, somewhere on a page: always the same for a seed."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be at least 0: take one from SPLITS")
    rng = np.random.default_rng((seed, len(words)))
    lines = wrap(" ".join(word for word, _ in words), _width, SIZE - 2 * MARGIN)
    room = SIZE - 2 * MARGIN - PITCH * len(lines)
    if not words or room < 0:
        raise ValueError(f"{len(words)} words make {len(lines)} lines: give one word or more, and less than a page")
    top = MARGIN + int(rng.integers(room, endpoint=True))
    left = int(rng.integers(MARGIN, SIZE - MARGIN - max(map(_width, lines)), endpoint=True))
    objects: list[Object] = []
    for y, line in enumerate(lines):
        x0 = left
        for word in line.split():
            height, width = WORD_MASKS[word].shape
            box = (top + PITCH * y, x0, top + PITCH * y + height, x0 + width)
            objects.append(Object("word", word, words[len(objects)][1], box))
            x0 += width + GAP
    return compose(rng, objects, [WORD_MASKS[o.name] for o in objects])


def _width(line: str) -> int:
    """Of words with single spaces, in pixels."""
    return sum(WORD_MASKS[word].shape[1] for word in line.split()) + GAP * line.count(" ")
