"""Questions with yes or no for an answer: POPE's parser and figures, MME's parser and sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from vtc.errors import DataError
from vtc.eval.metrics import mean

PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()


def pope_answer(reply: str, strict: bool = False) -> str:
    """POPE's official parser (LLaVA's too): ``no`` when the first sentence has the word No, no or not, else ``yes``.

    ``strict`` (lmms-eval): the whole reply in lower case, so that "Yes." is neither.
    """
    if strict:
        return reply.lower().strip()
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def binary_figures(predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """``f1``, ``accuracy``, ``precision``, ``recall`` of yes, and ``yes_ratio``, the share of yes among predictions.

    A ratio without a denominator is 0.0; what is neither yes nor no is wrong and counts in no other figure.
    """
    pairs = list(zip(predicted, labels, strict=True))
    right, taken, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision, recall = _ratio(right, right + taken), _ratio(right, right + missed)
    return {
        "f1": _ratio(2 * precision * recall, precision + recall),
        "accuracy": _ratio(sum(p == label for p, label in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "yes_ratio": _ratio(sum(p == "yes" for p in predicted), len(pairs)),
    }


def mme_answer(reply: str) -> str:
    """MME's parser as in lmms-eval: ``yes``, ``no`` or ``other``, from the first four characters without periods."""
    text = reply.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def mme_scores(rows: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """``perception`` (of 2,000), ``cognition`` (of 800) and every category (of 200), in points.

    ``rows``: (category, pair, score). A pair counts 100 times its mean score, and 100 more when both are right.
    Raises ``DataError`` for a pair that is not two questions.
    """
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for category, pair, score in rows:
        pairs[category, pair].append(score)
    points: dict[str, list[float]] = defaultdict(list)
    for (category, pair), scores in pairs.items():
        if len(scores) != 2:
            raise DataError(f"MME pair {pair!r} of {category} has {len(scores)} answer(s); a pair has 2")
        points[category].append(50 * sum(scores) + 100 * (sum(scores) == 2))
    found = {category: mean(points[category]) for category in [*PERCEPTION, *COGNITION] if category in points}
    sums = {"perception": PERCEPTION, "cognition": COGNITION}
    return {name: sum(found.get(category, 0.0) for category in parts) for name, parts in sums.items()} | found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
