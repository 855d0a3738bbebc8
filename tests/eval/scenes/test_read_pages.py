"""Pages of printed words: what is asked stands on one page, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.eval.benchmarks import registry
from vtc.eval.scenes import SIZE, SPLITS, page
from vtc.eval.scenes.glyphs import COLORS, WORD_MASKS, WORDS

WORDS_IN_COLORS = list(zip(WORDS, COLORS, strict=False))


def test_a_page_holds_its_words_in_reading_order():
    drawn = page(7, WORDS_IN_COLORS)
    assert [(o.name, o.color) for o in drawn.objects] == WORDS_IN_COLORS
    corners = [o.box[:2] for o in drawn.objects]
    assert corners == sorted(corners) and len({y for y, _ in corners}) == 2, "two lines"
    for item in drawn.objects:
        y0, x0, y1, x1 = item.box
        assert 0 < y0 and 0 < x0 and y1 < SIZE and x1 < SIZE and (y1 - y0, x1 - x0) == WORD_MASKS[item.name].shape
        ink = np.asarray(drawn.image)[y0:y1, x0:x1][WORD_MASKS[item.name]].astype(int)
        assert abs(ink.mean(0) - COLORS[item.color]).max() < 40
    assert page(7, WORDS_IN_COLORS).image.tobytes() == drawn.image.tobytes() != page(8, WORDS_IN_COLORS).image.tobytes()


@pytest.mark.parametrize(
    ("seed", "words", "match"),
    [(-1, WORDS_IN_COLORS, "SPLITS"), (0, [], "0 words"), (0, WORDS_IN_COLORS * 10, "80 words")],
)
def test_bad_pages_are_refused(seed, words, match):
    with pytest.raises(ValueError, match=match):
        page(seed, words)


def test_questions_cover_all_kinds_of_texts_and_fit_the_pages():
    samples = list(registry["read_pages"](limit=24).samples())
    assert {s.type for s in samples} == {"1 on 1", "2 on 1", "4 on 1", "8 on 1", "4 on 2", "8 on 4"}
    assert {len(s.images) for s in samples} == {1, 2, 4}
    assert len({s.answers for s in samples}) > 5 and {s.answers[0] for s in samples} <= set(WORDS)


def test_two_seeds_share_no_page():
    ids = [{s.id for s in registry["read_pages"](limit=6, seed=seed).samples()} for seed in (0, 1)]
    assert not ids[0] & ids[1]
    with pytest.raises(ValueError, match="seed is 99"):
        list(registry["read_pages"](limit=6, seed=99).samples())


def test_pages_are_of_the_test_split():
    first = next(iter(registry["read_pages"](limit=1).samples()))
    assert int(first.id.split("-")[1]) == SPLITS["test"].start


def test_the_rendered_split_is_drawn_by_render_text():
    samples = list(registry["read_pages"](split="rendered", limit=10).samples())
    assert sorted(s.answers[0] for s in samples) == sorted(WORDS)
    assert all(np.asarray(s.images[0])[0, 0].min() == 255 for s in samples), "white paper"
