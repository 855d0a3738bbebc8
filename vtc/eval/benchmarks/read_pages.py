"""Reading words back from printed pages: text as pictures, as far as the testbed's model goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.benchmarks import register
from vtc.eval.benchmarks.base import Benchmark, Sample

TEXTS = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (8, 4))
"""Words of a text, and the pages they stand on."""


@register("read_pages")
@dataclass(frozen=True)
class ReadPages(Benchmark):
    """``limit`` texts (400 unless told otherwise), one question each; type ``8 on 4``: eight words on four pages.

    ``printed``: words in the testbed's letters and colours, set in lines; the testbed's model has learned these
    letters, though not such pages, nor several pictures at once. ``rendered``: one word on a page of
    ``vtc.render_text``, black on white; that model has never seen such letters.
    """

    name: ClassVar[str] = "read_pages"
    max_new_tokens: ClassVar[int] = 4
    splits: ClassVar[tuple[str, ...]] = ("printed", "rendered")

    def count(self) -> int:
        return 400 if self.limit is None else self.limit

    def samples(self) -> Iterator[Sample]:
        from vtc.eval.scenes.sample import first_scene

        first = first_scene("test", self.seed)
        draw = rendered if self.split == "rendered" else printed
        yield from map(draw, range(first, first + self.count()))


def printed(number: int) -> Sample:
    """Pages in the testbed's letters, and a question about one of their words by its colour."""
    import numpy as np

    from vtc.eval import scenes
    from vtc.eval.scenes.ask import ask_about
    from vtc.eval.scenes.glyphs import COLORS, WORDS

    count, pages = TEXTS[number % len(TEXTS)]
    rng = np.random.default_rng((number, count, pages))
    names, colors = rng.permutation(WORDS).tolist(), rng.permutation(list(COLORS)).tolist()
    words = list(zip(names[:count], colors, strict=False))
    each = count // pages
    drawn = [scenes.page(number, words[n : n + each]) for n in range(0, count, each)]
    (asked,) = ask_about([o for page in drawn for o in page.objects], rng, 1, ["word"])
    name, kind = f"printed-{number}", f"{count} on {pages}"
    images = tuple(page.image for page in drawn)
    return Sample(name, asked.text, (asked.answer,), images, kind, where=f"read_pages:{name}")


def rendered(number: int) -> Sample:
    """A page of ``vtc.render_text`` with one word, of the size and about the letter height of the testbed."""
    import vtc
    from vtc.eval.scenes import SIZE
    from vtc.eval.scenes.glyphs import WORDS

    word, name = WORDS[number % len(WORDS)], f"rendered-{number}"
    (page,) = vtc.render_text(word, size=(SIZE, SIZE), font_size=10)
    return Sample(name, "what word is written ?", (word,), (page,), "1 on 1", where=f"read_pages:{name}")
