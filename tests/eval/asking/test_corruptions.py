"""Corruptions: pictures really change, a seed fixes them, typos change one word and no length."""

from __future__ import annotations

import numpy as np
import pytest

from tests.eval.tiny import picture
from vtc.errors import UnknownName
from vtc.eval.asking.corruptions import KINDS, PICTURES, Corrupted, typo
from vtc.eval.benchmarks.jsonl import JSONL


def pixels(image):
    return np.asarray(image, np.int32)


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_changes_and_a_seed_fixes_how(kind):
    before = picture(0, (60, 50))
    after = PICTURES[kind](before, 7)
    assert after.size == before.size and after.mode == "RGB"
    assert np.abs(pixels(after) - pixels(before)).mean() > 2
    assert (pixels(PICTURES[kind](before, 7)) == pixels(after)).all()
    assert (pixels(before) == pixels(picture(0, (60, 50)))).all(), "the original stays as it was"


def test_each_picture_has_noise_of_its_own():
    assert (pixels(PICTURES["noise"](picture(0), 1)) != pixels(PICTURES["noise"](picture(0), 2))).any()


def test_blur_and_contrast_do_what_they_say():
    before = pixels(picture(0, (300, 300)))
    assert pixels(PICTURES["contrast"](picture(0, (300, 300)), 0)).std() == pytest.approx(0.4 * before.std(), rel=0.05)
    steps = np.abs(np.diff(pixels(PICTURES["blur"](picture(0, (300, 300)), 0)), axis=1)).mean()
    assert steps < 0.3 * np.abs(np.diff(before, axis=1)).mean()


@pytest.mark.parametrize("seed", range(25))
def test_a_typo_swaps_two_letters_of_one_word(seed):
    question = "is the red cat in <image> left of <image> ?"
    said = typo(question, seed)
    assert said != question and said == typo(question, seed)
    words, changed = question.split(" "), said.split(" ")
    different = [(a, b) for a, b in zip(words, changed, strict=True) if a != b]
    assert len(different) == 1
    ((old, new),) = different
    assert old not in ("is", "in", "of", "<image>", "?") and sorted(old) == sorted(new) and len(old) == len(new)


@pytest.mark.parametrize("question", ["", "<image>", "is it 12 ?", "aaa", "A1 b22", "<|vision_start|> ?"])
def test_a_question_without_a_word_stays(question):
    assert typo(question, 3) == question


def test_typos_are_not_all_alike():
    assert len({typo("what is the color of the square ?", seed) for seed in range(40)}) > 5


def test_a_spoiled_benchmark(rows, write_rows):
    clean = JSONL(data=write_rows([*rows[:3], {"id": "bad"}]))
    samples = list(clean.samples())
    for kind in KINDS:
        spoiled = Corrupted(clean, kind)
        again = list(spoiled.samples())
        assert [(s.id, s.answers, s.images, s.error) for s in again] == [
            (s.id, s.answers, s.images, s.error) for s in samples
        ]
        assert spoiled.count() == 4 and spoiled.name == "jsonl" and spoiled.max_new_tokens == clean.max_new_tokens
        assert spoiled.score("Blue", again[0]) == 1.0
        assert spoiled.fingerprint() != clean.fingerprint() and spoiled.fingerprint()["corruption"] == kind
        changed = [pixels(spoiled.pictures(a)[0]) - pixels(clean.pictures(a)[0]) for a in again[:3]]
        assert all(c.any() for c in changed) == (kind != "typo")
        assert [a.question != b.question for a, b in zip(again, samples, strict=True)] == [kind == "typo"] * 3 + [False]
        part = list(Corrupted(JSONL(data=clean.data, limit=1), kind).samples())
        assert (
            part == again[:1] and (pixels(spoiled.pictures(part[0])[0]) == pixels(spoiled.pictures(again[0])[0])).all()
        )


def test_an_unknown_kind():
    with pytest.raises(UnknownName, match="'fog'.*noise, blur"):
        Corrupted(JSONL(), "fog")
