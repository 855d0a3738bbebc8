"""What a page asks its reader to run: fenced blocks, and commands in the text, in the order they stand in."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PATTERNS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "docs/results/*/README.md")
PAGES = [str(path.relative_to(ROOT)) for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
LANGUAGES = ("python", "bash", "toml", "text", "json", "yaml")
PROGRAMS = ("vtc", "python", "pip", "make", "torchrun", "pytest", "accelerate")
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
NAMED_FILE = re.compile(r"^`(\w+\.py)`")
RUNNABLE = re.compile(rf"^\s*(\$ |\w+=\S* )*({'|'.join(PROGRAMS)}|lmms-eval|import|from)\b(?!:)")


class Broken(Exception):
    """A block that a reader cannot use."""


@dataclass(frozen=True)
class Item:
    """One thing to run or to check: ``kind`` is a language, ``command`` (a line of bash) or ``span`` (in the text)."""

    page: str
    line: int
    kind: str
    text: str
    file: str = ""  # of a python block: the module that the text before it says it is

    @property
    def first(self) -> str:
        return self.text.split("\n")[0].removesuffix("\\").strip()

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}: {self.first}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def items(page: str, text: str) -> list[Item]:
    """Everything of a page, by line. Raises ``Broken``."""
    found, prose = fences(page, text)
    return sorted(found + spans(page, prose), key=lambda item: item.line)


def fences(page: str, text: str) -> tuple[list[Item], str]:
    """The blocks, bash as one item a command, and the text with the blocks' lines empty. Raises ``Broken``."""
    found: list[Item] = []
    prose: list[str] = []
    opened, language, body = 0, "", []
    for number, line in enumerate(text.split("\n"), 1):
        mark = line.strip().startswith(("```", "~~~"))
        if mark and not opened:
            language = line.strip().lstrip("`~").partition(" ")[0]
            if language not in LANGUAGES or not line.startswith("```"):
                raise Broken(f"{page}:{number}: a block of {language or 'no language'!r}; it is one of {LANGUAGES}")
            opened, body = number, []
        elif mark:
            made = block(page, opened, language, "\n".join(body), named_file(prose[: opened - 1]))
            if not made:
                raise Broken(f"{page}:{opened}: an empty block")
            found, opened = found + made, 0
        elif opened:
            body.append(line)
        prose.append("" if mark or opened else line)
    if opened:
        raise Broken(f"{page}:{opened}: a block without an end")
    return found, "\n".join(prose)


def named_file(before: list[str]) -> str:
    """``standout.py``, where the paragraph before a block starts with that name."""
    paragraph = "\n".join(before).strip().rpartition("\n\n")[2].rpartition("\n#")[2].split("\n")
    names = [found[1] for line in paragraph if (found := NAMED_FILE.match(line))]
    return names[-1] if names else ""


def block(page: str, line: int, language: str, body: str, file: str) -> list[Item]:
    if language == "bash":
        return commands(page, line, body)
    if language in ("toml", "json", "yaml"):
        {"toml": tomllib.loads, "json": json.loads, "yaml": yaml.safe_load}[language](body)
    if language != "python" and (lines := [each for each in body.split("\n") if RUNNABLE.match(each)]):
        raise Broken(f"{page}:{line}: a block of {language} holds what a reader would run: {lines[0]}")
    return [Item(page, line, language, body, file)] if body.strip() else []


def commands(page: str, line: int, body: str) -> list[Item]:
    """One item a command; lines that end in a backslash go on."""
    found, start, kept = [], 0, []
    for number, text in enumerate(body.split("\n"), line + 1):
        start = start if kept else number
        kept.append(text)
        if text.endswith("\\"):
            continue
        whole, kept = "\n".join(kept), []
        if words(whole):
            found.append(Item(page, start, "command", whole))
    if kept:
        raise Broken(f"{page}:{line}: the last line ends in a backslash")
    return found


def words(text: str) -> list[str]:
    """As a shell splits a command: continued lines joined, comments gone."""
    return shlex.split(text.replace("\\\n", " "), comments=True)


def spans(page: str, prose: str) -> list[Item]:
    """Code in the text that starts like a command; a span may go on in the next line of its paragraph."""
    found = []
    for match in SPAN.finditer(re.sub(r"\n\s*\n", lambda gap: "\0" * len(gap[0]), prose)):
        text = re.sub(r"\s+", " ", match[1])
        if re.match(rf"(\w+=\S+ )*({'|'.join(PROGRAMS)}) ", text) and "\0" not in text:
            line = prose.count("\n", 0, match.start()) + 1
            found.append(Item(page, line, "span", text.replace("\\|", "|")))
    return found
