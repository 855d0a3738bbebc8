"""VQA soft accuracy over ten human answers: the official one (VQAv2) and EvalAI's (TextVQA, VizWiz)."""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the official code passes a flag, 32, where the number of replacements goes
NUMBERS = {w: str(n) for n, w in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBERS |= {"none": "0"}
ARTICLES = {"a", "an", "the"}
# An answer that lacks one of the apostrophes gets it back.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()
APOSTROPHES = {w[:n] + w[n + 1 :]: w for w in CONTRACTIONS for n, mark in enumerate(w) if mark == "'"}
APOSTROPHES |= {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


def vqa_accuracy(answer: str, expected: Sequence[str], always: bool = False) -> float:
    """The official accuracy (GT-Vision-Lab/VQA), which normalises nothing when all expected answers agree; with
    ``always`` (lmms-eval) it does so even then."""
    answer, expected = _plain(answer), [_plain(e) for e in expected]
    if always or len(set(expected)) > 1:
        answer, expected = vqa_normalise(answer), [vqa_normalise(e) for e in expected]
    return consensus(answer, expected)


def textvqa_accuracy(answer: str, expected: Sequence[str]) -> float:
    """EvalAI's accuracy, as TextVQA and VizWiz use it: both sides are always normalised."""
    return consensus(evalai_normalise(answer), [evalai_normalise(e) for e in expected])


def consensus(answer: str, expected: Sequence[str]) -> float:
    """The mean over annotators of min(1, others that gave ``answer`` / 3): of ten, 0, 1, 2, 3, 4 alike give 0, .3, .6,
    .9, 1. 0.0 where nobody answered."""
    alike = sum(e == answer for e in expected)
    credit = [min(1.0, (alike - (e == answer)) / 3) for e in expected]
    return sum(credit) / len(credit) if credit else 0.0


def vqa_normalise(text: str) -> str:
    """The official steps: punctuation, then number words, articles and contractions."""
    text = _plain(text)
    out = text
    for mark in MARKS:
        gone = mark + " " in text or " " + mark in text or DIGITS.search(text)
        out = out.replace(mark, "" if gone else " ")
    out = PERIOD.sub("", out, count=MOST_PERIODS)
    words = [NUMBERS.get(word, word) for word in out.lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def evalai_normalise(text: str) -> str:
    """EvalAI's steps before the official ones: lower case, no comma, no question mark, ``'s`` a word of its own."""
    return vqa_normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
