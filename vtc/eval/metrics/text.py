"""Answers compared as texts in the ways that public benchmarks mean it: GQA's exact match, OCRBench's containment."""

from __future__ import annotations

import string
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)
# The full-width forms of ASCII, and the ideographic space.
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def gqa_match(answer: str, expected: str) -> float:
    """GQA as lmms-eval scores it: lower case and ASCII punctuation deleted on both sides, white space as it stands."""
    return float(answer.lower().translate(PUNCTUATION) == expected.lower().translate(PUNCTUATION))


def ocr_match(answer: str, expected: Sequence[str], formula: bool = False) -> float:
    """OCRBench: 1.0 when one of ``expected`` is in the answer. ``formula`` (HME100k): with case, without blanks."""
    found = _ocr(answer, formula)
    return float(any(_ocr(e, formula) in found for e in expected))


def _ocr(text: str, formula: bool) -> str:
    if formula:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.translate(HALF_WIDTH).lower().strip().replace("\n", " ")
