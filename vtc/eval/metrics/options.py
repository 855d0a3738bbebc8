"""Which option's letter a reply means: ScienceQA, SEED-Bench, MMBench; and MMBench's circular accuracy."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from vtc.eval.metrics import mean

LETTERS = "ABCDE"  # of MMBench and of LLaVA's ScienceQA
TOLD = re.compile(r"The answer is ([A-Z]).")
EDGES = (",", ".", "!", "?", ";", ":", "'", '"')
AROUND = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)
FAILED = "Failed to obtain answer via API"
MARKED = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def scienceqa_score(reply: str, letter: str) -> float:
    """lmms-eval: the reply is the letter in either case, or begins with it and a period."""
    text = reply.strip()
    if text.lower() == letter.lower():
        return 1.0
    return float(len(text) >= 2 and text[0].isupper() and text[1] == "." and text[0] == letter)


def scienceqa_letter(reply: str) -> str | None:
    """LLaVA's parser: a letter A to E alone, or before a period and a blank, or once after "The answer is"."""
    if reply in tuple(LETTERS) or (len(reply) >= 3 and reply[0] in LETTERS and reply[1:3] == ". "):
        return reply[0]
    told = TOLD.findall(reply)
    return told[0] if len(told) == 1 else None


def seed_letter(reply: str) -> str:
    """SEED-Bench: the first character, whatever follows; empty of an empty reply."""
    return reply.strip()[:1].upper()


def mmbench_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """MMBench without a judge: a letter that stands for itself, else the one option whose text is in the reply, else
    the letter in the most telling place. ``options``: texts by letter. None where no letter is found."""
    return lone_letter(reply) or option_text(reply, options) or likely_letter(reply, tuple(options))


def lone_letter(reply: str) -> str | None:
    """The one letter of A to E that is a word, or a word with one of the usual marks around it."""
    if FAILED in reply:
        return None
    words = reply.split()
    alone = [letter for letter in LETTERS if letter in words]
    if len(alone) == 1 and not (alone == ["A"] and len(words) > 3):  # "A" may be an article
        return alone[0]
    for before, after in AROUND:
        found = [letter for letter in LETTERS if before + letter + after in words]
        if len(found) == 1:
            return found[0]
    return None


def option_text(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter of the only option whose text is part of the reply."""
    found = [letter for letter, text in options.items() if text.lower() in reply.lower()]
    return found[0] if len(found) == 1 else None


def likely_letter(reply: str, letters: tuple[str, ...]) -> str | None:
    """The letter in the most telling place: at the start, at the end, after "answer is", with a mark, anywhere."""
    bare = reply.strip()
    for mark in EDGES:
        bare = bare.strip(mark)
    if not bare:
        return None
    text = f" {bare} "
    found: list[tuple[int, int, str]] = []  # (priority, position, letter)
    for letter in letters:
        for form, priority in MARKED:
            if (mark := form.format(letter)) in text:
                found.append((priority, text.rfind(mark), letter))
    for phrase in PHRASES:
        at = text.lower().find(phrase)
        if at >= 0:
            rest = text[at + len(phrase) :]
            found += [(7, text.find(letter), letter) for letter in letters if letter in rest]
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((9, len(text) - 1, letter))
    found = found or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda f: f[:2])[2] if found else None


def circular(rows: Iterable[tuple[int, float]]) -> dict[int, float]:
    """CircularEval, by question: 1.0 where every rotation of its options was answered right. ``rows``: (index, score);
    rotation r of question q has the index q + r million."""
    hits: dict[int, float] = defaultdict(lambda: 1.0)
    for index, score in rows:
        hits[index % 1_000_000] = min(hits[index % 1_000_000], score)
    return dict(hits)


def circular_accuracy(rows: Iterable[tuple[int, float]]) -> float:
    """The share of questions with every rotation right."""
    return mean(circular(rows).values())
