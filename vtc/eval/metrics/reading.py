"""Reading documents and charts: ANLS (DocVQA) and relaxed accuracy (ChartQA)."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.errors import VTCError

THRESHOLD = 0.5  # of ANLS: what is less alike counts nothing
TOLERANCE = 0.05  # of relaxed accuracy


def anls(answer: str, expected: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer: the best over ``expected``, 0.0 below one half.

    The distance is of lower-case texts with collapsed blanks, and is divided by the longer text as it stands
    (lmms-eval). Raises ``VTCError`` without rapidfuzz.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise VTCError("ANLS needs rapidfuzz; pip install 'vtc-vlm[eval]'") from None

    def similarity(gold: str) -> float:
        longest = max(len(gold.upper()), len(answer.upper()))
        return 1 - Levenshtein.distance(_blanks(gold), _blanks(answer)) / longest if longest else 1.0

    best = max(map(similarity, expected), default=0.0)
    return best if best >= THRESHOLD else 0.0


def relaxed_accuracy(answer: str, expected: str) -> float:
    """1.0 when both are numbers and at most 5 % of the expected one apart, or when they are equal but for case.

    ``"5%"`` is 0.05; an expected 0 is compared as text; the answer is not stripped (lmms-eval).
    """
    found, gold = _number(answer), _number(expected)
    if found is not None and gold:
        return float(abs(found - gold) / abs(gold) <= TOLERANCE)
    return float(answer.lower() == expected.lower())


def _blanks(text: str) -> str:
    return " ".join(text.lower().split())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
