"""Which option a reply to one's own table means: any letters, any options. MMBench's own reading is in ``options``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from vtc.eval.metrics.answers import normalise

LATIN = "A-Za-z0-9\u00c0-\u024f_"  # what makes a word of a letter beside it; Chinese may stand against it
ALONE = rf"(?![{LATIN}+-]|'[{LATIN}])"  # not A+, X-ray, D'accord
MARK = rf"\s*(?:[^\w\s'+-]|'(?![{LATIN}])|\Z)"
FIRST = re.compile(rf"\W*([A-Za-z]){MARK}")
WORDS = r"(?i:answer|option|choice|choose|pick|select)(?i:\s+is)?\s*:?\s*\W*|(?:答案|选项|选|答え|정답)[是为は은:\s]*"
SAID = re.compile(rf"(?:{WORDS})(?:([A-Z]){ALONE}|([a-z]){MARK})")


def told_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that ``reply`` means, by the first of these rules that finds one; None where none does.

    ``options``: texts by capital letter. 1. One option's letter alone stands in the reply as a capital, marks
    around it or not; A in more than three words may be the article and says nothing, as I beside other words
    (VLMEvalKit's ``can_infer_option``). 2. The text of one option alone is in it, in whole words; one that is part
    of another found does not count. 3. One letter alone follows "answer is", "option", "choose" and the like, small
    before a mark or the end. 4. The reply begins with a letter, small or not, and a mark: ``d``, ``(d) dog``, ``D,
    not A``. 5. The text of one option alone is part of it (``can_infer_text``).
    """
    reply = unicodedata.normalize("NFKC", reply)
    for rule in (capital, whole_text, said, first, part):
        if found := rule(reply, options):
            return found
    return None


def capital(reply: str, options: Mapping[str, str]) -> str | None:
    words = len(reply.split())
    found = [x for x in options if re.search(rf"(?<![{LATIN}]){x}{ALONE}", reply)]
    if words > 1 and "I" in found:
        found.remove("I")
    return found[0] if len(found) == 1 and not (found == ["A"] and words > 3) else None


def whole_text(reply: str, options: Mapping[str, str]) -> str | None:
    said = f" {normalise(reply)} "
    texts = {letter: f" {normalise(text)} " for letter, text in options.items()}
    found = [letter for letter, text in texts.items() if text in said]
    largest = [x for x in found if not any(texts[x] in texts[y] for y in found if texts[y] != texts[x])]
    return largest[0] if len(largest) == 1 else None


def first(reply: str, options: Mapping[str, str]) -> str | None:
    found = FIRST.match(reply)
    return among(found[1], options) if found else None


def said(reply: str, options: Mapping[str, str]) -> str | None:
    found = {among(large or small, options) for large, small in SAID.findall(reply)}
    return found.pop() if len(found) == 1 else None


def part(reply: str, options: Mapping[str, str]) -> str | None:
    found = [letter for letter, text in options.items() if text.lower() in reply.lower()]
    return found[0] if len(found) == 1 else None


def among(letter: str, options: Mapping[str, str]) -> str | None:
    return letter.upper() if letter.upper() in options else None
