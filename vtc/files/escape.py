"""Texts of strangers made harmless, by what they go into.

A data file brings question types, ids, questions and answers, a user the names of methods, files and folders. Wherever
one of them is written or printed it goes through the function of that format, once, at the edge; until then it is what
it is.
"""

from __future__ import annotations

import html as standard
import re
import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidi marks, zero width), surrogate, line and paragraph ends
JOINERS = "\u200c\u200d"  # format characters that Persian and emoji are written with

MARKS = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]")  # emphasis, code, links, a table's cells
LINKS = re.compile(r"(?<=:)/(?=/)|(?<=www)\.|(?<=\S)@(?=\S)", re.IGNORECASE)  # what GitHub makes links of by itself
LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}
FORMULA = re.compile(
    r"""(^|;)([\s"']*)(?=[=+\-@＝＋－＠])"""
)  # what spreadsheets run; many take ; for the border of fields


def visible(text: str) -> str:
    """One line for a terminal or any file: what moves the cursor, hides, or turns the direction of what follows is
    shown as Python writes it (``\\x1b``, ``\\n``, ``\\u202e``)."""
    return "".join(shown(char) for char in text)


def shown(char: str) -> str:
    hidden = unicodedata.category(char) in HIDDEN and char not in JOINERS
    return char.encode("unicode_escape").decode() if hidden else char


def markdown(text: str) -> str:
    """Inside a line or a table's cell of Markdown (CommonMark, GitHub's tables, links and formulas)."""
    plain = standard.escape(MARKS.sub(r"\\\g<0>", visible(text)), quote=False)
    return LINKS.sub(r"\\\g<0>", plain)


def code(text: str) -> str:
    """As code inside a line or a table's cell of Markdown."""
    text = visible(text).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def html(text: str) -> str:
    """Inside an element or a quoted attribute of HTML."""
    return standard.escape(visible(text))


def latex(text: str) -> str:
    """Inside a paragraph or a table's cell of LaTeX."""
    return "".join(LATEX.get(char, char) for char in visible(text))


def spreadsheet(text: str) -> str:
    """A field of a table for a spreadsheet, which runs a text that begins like a formula unless a quote leads."""
    return FORMULA.sub(r"\1\2'", visible(text))


def figure(text: str) -> str:
    """A text that matplotlib draws, which takes dollars for formulas."""
    return visible(text).replace("$", r"\$")
