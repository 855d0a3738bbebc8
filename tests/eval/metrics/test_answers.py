"""What an answer is: a table of pairs, laws of the normal form, and that every score of answers shares it."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.eval.metrics.answers import DIFFERENT, SAME
from vtc.eval.benchmarks import registry
from vtc.eval.benchmarks.base import Sample
from vtc.eval.metrics import exact_match, normalise
from vtc.eval.results.summary import summarise
from vtc.eval.studies.compare import drift

HARD = st.text(st.sampled_from(string.printable + "½²⁻i\u0307\u0301٣٫٬\u202f\u00a0İßﬁ…−–“’°\u200dａ，"), max_size=12)


@pytest.mark.parametrize(("one", "other", "why"), SAME)
def test_the_same(one, other, why):
    assert exact_match(one, [other]) == exact_match(other, [one]) == 1, (normalise(one), normalise(other))


@pytest.mark.parametrize(("one", "other", "why"), DIFFERENT)
def test_not_the_same(one, other, why):
    assert exact_match(one, [other]) == exact_match(other, [one]) == 0, normalise(one)


def test_the_table_is_large_and_has_no_pair_twice():
    pairs = [(one, other) for one, other, _ in [*SAME, *DIFFERENT]]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) >= 120


@example("ab-.8")
@example("i\u0307\u0307")
@given(HARD | st.text(max_size=12))
def test_a_normal_form_is_its_own(text):
    assert normalise(normalise(text)) == normalise(text)


@given(HARD)
def test_case_and_white_space_say_nothing(text):
    assert normalise(f"  {text}\n") == normalise(text)


@given(st.text(string.ascii_lowercase, min_size=2, max_size=8).filter(lambda word: word not in ("an", "the")))
def test_a_word_is_its_own_normal_form(word):
    assert normalise(f"The “{word.upper()}”!") == normalise(word) == word


@given(st.integers(), st.integers(0, 4))
def test_a_whole_number_has_one_form(value, zeros):
    forms = [f"{value}", f"{value:,}", f"{value}." + "0" * zeros, f"{value:,}".replace(",", "\u202f")]
    assert {normalise(form) for form in forms} == {str(value)}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("9" * 10**6, "9" * 10**6),  # int() takes 4,300 digits
        ("0." + "0" * 10**6, "0"),
        ("9" + ",999" * 10**5, "9" + "999" * 10**5),
        ("1e999999999", "1e999999999"),
        ("-1E-999999999", "-1e-999999999"),
        ("the " * 10**5 + "cat", "cat"),
        ("." * 10**5 + "cat", "cat"),
    ],
    ids=["digits", "zeros", "thousands", "exponent", "small", "articles", "points"],
)
def test_huge_answers(text, form):
    assert normalise(text) == form


ALIKE, OTHER = ("3.50", "3.5"), ("5", "-5")
CELLS = ("unpatched", "grid@4")


@pytest.mark.parametrize("name", ["jsonl", "tsv", "parquet"])
def test_peoples_own_files_are_scored_by_it(name):
    benchmark = registry[name](data=None)
    for (reply, expected), score in ((ALIKE, 1), (OTHER, 0)):
        assert benchmark.score(reply, Sample("1", answers=(expected,))) == score
        assert (normalise(reply) in benchmark.credits([expected])) == score


def answered(cell, row, answer):
    said = {"answer": answer, "expected": ["x"], "score": 0.0, "tokens": 4.0, "confidence": 0.5}
    return {"cell": cell, "row": row, "id": str(row)} | said


def test_agreement_and_compare_share_it():
    pairs = (ALIKE, ALIKE[::-1], OTHER)
    base, mine = ([answered(cell, n, pair[m]) for n, pair in enumerate(pairs)] for m, cell in enumerate(CELLS))
    found = summarise(base + mine, list(CELLS), {})
    assert found["cells"][CELLS[1]]["agreement"]["same"] == 2 / 3
    one, two = ({line["id"]: line for line in lines} for lines in (base, mine))
    assert drift(one, two)["answers_changed"] == 1


def test_a_row_of_a_file_is_scored_by_it(tmp_path):
    file = tmp_path / "q.jsonl"
    rows = [
        {"id": n, "image": "a.png", "question": "?", "answer": a}
        for n, a in enumerate(("3.5", "-5", "+", "cafe\u0301"))
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    benchmark = registry["jsonl"](data=file)
    right, wrong = ("3.50", "\u22125", "+", "caf\u00e9"), ("35", "5", "", "cafe")
    assert [benchmark.score(reply, sample) for reply, sample in zip(right, benchmark.samples(), strict=True)] == [1] * 4
    assert [benchmark.score(reply, sample) for reply, sample in zip(wrong, benchmark.samples(), strict=True)] == [0] * 4
