"""When two answers are the same: the one definition that exact match, agreement and ``--compare`` share.

An answer is compared by its normal form, which ``normalise`` makes in these steps.

1. Characters. Compatible forms of Unicode are one (NFKC, UAX 15), and so are upper and lower case (case folding,
   without any language's own rules: I is i, STRASSE is straße). Invisible characters go; quotes, dashes and white
   space of all kinds are one. Superscripts are powers (10² is 10^2), a fraction sign is a fraction (1½ is 1 1/2);
   nothing is computed.
2. Words. Punctuation around a word goes: sentence marks, quotes, brackets. Inside a word it stays (12:30, don't).
   Units, currencies and operators are no punctuation and stay wherever they are: % $ ° # & @ * / + - = < > ^ _ and
   the like. A hyphen at two letters or more is a blank: t-shirt is t shirt, and not tshirt.
3. Numbers are numbers, in the digits of any script: 3.50 is 3.5, .5 is 0.5, +5 is 5, -0 is 0. Thousands may be set
   apart by commas (1,000 and 1,00,000), apostrophes, no-break spaces, or by points where there are several or a
   comma follows (1.000.000 and 1.000,5); 1.000 alone is 1, and plain blanks set nothing apart. Any other comma may
   be a decimal comma or make a list, so 3,5 is neither 3.5 nor 35. No numbers are codes (007), versions (v1.10),
   exponents (1e3) and words (three). A blank between a number and its unit says nothing: 5 kg is 5kg.
4. Articles. The words a, an and the go before another word (a cat on the mat is cat on mat), and stay at the end:
   vitamin a. Before a single character A is a letter or a name and stays: a 1, a b.

An answer of nothing but punctuation stays as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

KEPT = "#%&*@\\/-_‰‱′"  # Unicode calls them punctuation, and in an answer they are units and operators
DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－"), "-")
QUOTES = dict.fromkeys(map(ord, "‘’‚‛ʼ´`"), "'") | dict.fromkeys(map(ord, "“”„‟"), '"')
SLASHES = {0x2044: "/", 0x2215: "/"}
SEPARATORS = {0x066A: "%", 0x066B: ".", 0x066C: ","}  # of Arabic numbers
SAME = DASHES | QUOTES | SLASHES | SEPARATORS

POWER = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
MIXED = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅟↉])")  # between 1 and ½
SPACED = re.compile("(?<!\\d)\\d{1,3}(?:[\u00a0\u2007\u2009\u202f]\\d{3})+(?!\\d)")  # thousands
HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=\.?\w)|(?<=\w)-(?=[^\W\d_]{2})")
NUMBER = re.compile(
    r"(?:(?<![\w)\].,'+-])[+-])?"  # a sign stands first, or it is an operator: 5-3
    r"(?<!\w)(?<![0-9][.,'])(?:(?<!\.)\.)?[0-9]+(?:[.,'][0-9]+)*"
)
PLAIN = re.compile(r"(0|[1-9][0-9]*)?(?:\.([0-9]+))?")
GROUPED = (  # thousands mark, decimal mark
    (re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?"), ",", "."),
    (re.compile(r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?"), ",", "."),
    (re.compile(r"[1-9][0-9]{0,2}(?:'[0-9]{3})+(?:\.[0-9]+)?"), "'", "."),
    (re.compile(r"[1-9][0-9]{0,2}(?:\.[0-9]{3})(?:\.[0-9]{3})+(?:,[0-9]+)?"), ".", ","),
    (re.compile(r"[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]+"), ".", ","),
)
UNIT = re.compile(r"(?<=[0-9]) (?=[^\W\d_]|[%‰°$€£¥₹₩₽₺₫₦])")


def normalise(text: str) -> str:
    """The normal form of an answer, as this file defines it; its own normal form."""
    text = fold(text)
    words = [word for word in map(bare, HYPHEN.sub(" ", text).split()) if word]
    if not words:
        return " ".join(text.split())
    found: list[str] = []
    for word in reversed(UNIT.sub("", " ".join(map(numbers, words))).split()):
        if not (found and article(word, found[-1])):
            found.append(word)
    return " ".join(reversed(found))


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1.0 when the answer is the same as any of the expected ones, else 0.0."""
    return float(normalise(answer) in {normalise(e) for e in expected})


def fold(text: str) -> str:
    """Characters that say the same as one: step 1."""
    if text.isascii():
        return text.lower().translate(QUOTES)
    text = SPACED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = POWER.sub(r"^\g<0>", MIXED.sub(" ", text)).translate(QUOTES)
    text = "".join(c for c in text if not invisible(c))
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", re.sub("i\u0307+", "i", text))  # the dot of İ is that of i
    return re.sub(r"(?![0-9])\d", lambda m: str(unicodedata.decimal(m[0])), text).translate(SAME)


def invisible(char: str) -> bool:
    """Format characters, like zero-width blanks and marks of direction, and selectors of a variant."""
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def bare(word: str) -> str:
    """A word without the punctuation around it; the point of ``.5`` is the number's."""
    start, end = 0, len(word)
    while start < end and mark(word[start]):
        start += 1
    while end > start and mark(word[end - 1]):
        end -= 1
    if re.search(r"(?<!\.)\.\Z", word[:start]) and word[start:end][:1].isdigit():
        start -= 1
    return word[start:end]


def mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "P" and char not in KEPT


def numbers(word: str) -> str:
    """The word with its numbers as Python would write them exactly."""
    return NUMBER.sub(lambda m: number(m[0]), word)


def number(text: str) -> str:
    """``text`` as a plain decimal without idle zeros, or as it is where it is no number. It may have millions of
    digits, which Python's int refuses."""
    sign, size = ("-" if text[0] == "-" else ""), text.lstrip("+-")
    for form, thousands, decimal in GROUPED:
        if form.fullmatch(size):
            size = size.replace(thousands, "").replace(decimal, ".")
            break
    found = PLAIN.fullmatch(size)
    if not found:
        return text
    decimals = (found[2] or "").rstrip("0")
    value = (found[1] or "0") + ("." + decimals if decimals else "")
    return value if value == "0" else sign + value


def article(word: str, following: str) -> bool:
    return word in ("an", "the") or (word == "a" and len(following) > 1)
