"""MMMU: the letter a reply means among several options, and open answers."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

EDGES = (",", ".", "!", "?", ";", ":", "'")
MARKERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # thousands
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
Candidate = str | float


def mmmu_letter(reply: str, options: Sequence[str], lax: bool = True) -> str | None:
    """The letter that a reply means; None where the public scorers draw one (``drawn_letter``).

    ``lax`` is lmms-eval's reading, which takes a letter before a blank or a period wherever it stands; without it the
    authors', which wants blanks on both sides.
    """
    text = reply
    for mark in EDGES:
        text = text.strip(mark)
    text = f" {text} "
    letters = letters_of(options)
    forms = [("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")] if lax else [("({})", "({})"), (" {} ", " {} ")]
    for form, place in forms:
        if found := [(text.rfind(place.format(x)), x) for x in letters if form.format(x) in text]:
            return max(found, key=lambda f: f[0])[1]
    if len(text.split()) > 5:
        low = text.lower()
        said = [(low.rfind(o.lower()), x) for x, o in zip(letters, options, strict=True) if o.lower() in low]
        return max(said, key=lambda f: f[0])[1] if said else None
    return None


def drawn_letter(options: Sequence[str], seed: str) -> str:
    """A letter drawn at random, the same for the same ``seed``."""
    return random.Random(seed).choice(letters_of(options))


def letters_of(options: Sequence[str]) -> list[str]:
    return [chr(ord("A") + n) for n in range(len(options))]


def open_score(reply: str, expected: Sequence[str]) -> float:
    """1.0 when a text found in the reply contains an expected text, or a number found in it equals an expected one."""
    gold = {g for e in expected for g in normalised(e)}
    for candidate in open_candidates(reply):
        if isinstance(candidate, str):
            if any(isinstance(g, str) and g in candidate for g in gold):
                return 1.0
        elif candidate in gold:
            return 1.0
    return 0.0


def open_candidates(reply: str) -> set[Candidate]:
    """What an open reply may mean: the end of each line that sounds like a conclusion, and the numbers in them."""
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    keys = [k for n, line in enumerate(lines) if (k := conclusion(line, n == len(lines) - 1))] or [reply]
    found = [number for key in keys for pattern in NUMBERS for number in pattern.findall(key)]
    return {c for text in [*keys, *found] for c in normalised(text)}


def conclusion(line: str, last: bool) -> str:
    """The shortest text after a marker such as "so" or "answer" (in the last line "=" too); empty without one."""
    shortest = ""
    for marker in (*MARKERS, "=") if last else MARKERS:
        if marker in line:
            tail = line.split(marker)[-1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return "" if shortest in (":", ",", ".", "!", "?", ";", "'") else shortest


def normalised(text: str) -> list[Candidate]:
    """A number rounded to two decimals, or the text in lower case; one character stands with a blank on either side."""
    text = text.strip()
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        low = text.lower()
        return [" " + low, low + " "] if len(low) == 1 else [low]
    return [round(value, 2) if math.isfinite(value) else value]
