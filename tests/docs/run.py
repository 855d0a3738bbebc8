"""A page's blocks from top to bottom: Python in one namespace, commands in one folder."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

from tests.docs.commands import expanded, fewer, is_mention, mention, perform, plain, unwrapped
from tests.docs.marks import HUB, MARKS, Mark
from tests.docs.pages import Broken, Item, words
from tests.docs.shrink import SHRINK, entry, replaced
from vtc.eval import scenes


class Page:
    """``run`` takes the items in their order and says of each what was done with it."""

    def __init__(self, folder: Path, known: dict[str, Any]):
        self.folder = folder
        self.module = types.ModuleType("page")
        self.module.__dict__.update(known)
        self.lines: set[int] = set()  # of the table SHRINK that were used
        sys.modules["page"] = self.module  # where dataclasses look their names up

    def run(self, item: Item) -> str:
        """``ran``, ``shrunk``, ``mention``, ``parsed`` or the mark's kind. Raises what the block raises."""
        mark = MARKS.get((item.page, item.first))
        if mark and mark.kind == "absent":
            return mark.kind
        if item.kind == "python":
            return self.python(item, mark)
        if item.kind in ("command", "span"):
            return self.command(item, mark)
        if item.kind == "toml":
            self.install(tomllib.loads(item.text))
        return "parsed"  # when the page was read

    def install(self, project: dict[str, Any]) -> None:
        """Entry points that a page gives its package: as if that were installed, for processes that start here."""
        groups = project.get("project", {}).get("entry-points", {})
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()
        ]
        about = self.folder / "standout-1.0.dist-info"
        about.mkdir()
        (about / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: standout\nVersion: 1.0\n", encoding="utf-8")

    def python(self, item: Item, mark: Mark | None) -> str:
        if item.file:
            (self.folder / item.file).write_text(item.text, encoding="utf-8")
        code = "\n" * item.line + from_hub(item.text, mark)  # so that a traceback names the page's line
        exec(compile(code, item.page, "exec"), self.module.__dict__)
        return mark.kind if mark else "ran"

    def command(self, item: Item, mark: Mark | None) -> str:
        given = unwrapped(plain(words(item.text)))
        if item.kind == "span" and is_mention(given):
            mention(given)
            return "mention"
        line = entry(given)
        short = fewer([expanded(from_hub(word, mark)) for word in given])
        if line is not None:
            self.lines.add(line)
            short = replaced(short, SHRINK[line][1])
        perform(replaced(short, mark.options) if mark else short, self.folder)
        return mark.kind if mark else "ran" if line is None else "shrunk"


def from_hub(text: str, mark: Mark | None) -> str:
    """With the testbed's model for those of the hub, where the block is marked so."""
    named = [name for name in HUB if name in re.sub("#.*", "", text)]
    if named and not (mark and mark.kind == "hub"):
        raise Broken(f"{named[0]} is on the hub; the block needs a mark")
    for name in named:
        text = text.replace(name, str(scenes.checkpoint_path()))
    return text
