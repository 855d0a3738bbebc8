"""What README and docs tell people to run runs: every block and every command of every page."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path

import pytest

import vtc
from tests.docs import pages, reader, run, shrink
from tests.docs.marks import HUB, MARKS, MOST
from tests.docs.pages import PAGES, Broken

REGISTRIES = (vtc.methods.registry, vtc.signals.registry)
KINDS = {"ran", "shrunk", "mention", "parsed", "hub", "gpu", "absent"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A reader's folder, and afterwards a process that knows nothing of what a page registered or imported."""
    folder = reader.folder(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LMUData", str(tmp_path / "LMUData"))
    registered = [dict(registry.items()) for registry in REGISTRIES]
    modules = set(sys.modules)
    yield folder
    for registry, entries in zip(REGISTRIES, registered, strict=True):
        registry._entries = entries
    for name in set(sys.modules) - modules:
        if name == "page" or str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def play(page: str, text: str, folder: Path) -> tuple[dict[pages.Item, str], list[str]]:
    """What was done with each block of a page, and what went wrong; a block that fails stops none after it."""
    played, done, wrong = run.Page(folder, reader.names(page)), {}, []
    for item in pages.items(page, text):
        try:
            done[item] = played.run(item)
        except (Exception, SystemExit) as error:
            wrong.append(f"{item.where}\n{''.join(traceback.format_exception(error, limit=-3))}")
    return done, wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, here):
    text = pages.read(page)
    done, wrong = play(page, text, here)
    assert not wrong, "\n\n".join(wrong)
    assert set(done) == set(pages.items(page, text)) and set(done.values()) <= KINDS
    fenced = {item.line for item in done if item.kind != "span"}
    assert len(fenced) >= len(re.findall(r"^ *(?:```|~~~)", text, flags=re.MULTILINE)) / 2, "a block was not read"
    marked = {first: mark.kind for (of, first), mark in MARKS.items() if of == page}
    assert {item.first: how for item, how in done.items() if how in ("hub", "gpu", "absent")} == marked


def test_the_pages_are_found():
    assert len(PAGES) >= 25 and "README.md" in PAGES and "docs/results/qwen/README.md" in PAGES


def test_marks_only_shrink_and_none_is_left_over():
    assert len(MARKS) <= MOST
    assert {page for page, _ in MARKS} <= set(PAGES)
    for page, first in MARKS:
        assert first in [item.first for item in pages.items(page, pages.read(page))], f"{page} has no block {first!r}"


def test_every_line_of_the_table_is_needed():
    every = [item for page in PAGES for item in pages.items(page, pages.read(page)) if item.kind in ("command", "span")]
    used = {shrink.entry(pages.words(item.text)) for item in every}
    assert used >= set(range(len(shrink.SHRINK)))


BROKEN = {
    "python that raises": ("```python\nassert model is None\n```", "AssertionError"),
    "an unknown command": ("```bash\nvtc evaluate scenes --output runs/x\n```", "No such command"),
    "an unknown option": ("```bash\nvtc eval scenes --budgetz 24 --output runs/x\n```", "No such option"),
    "an unknown method": ("```bash\nvtc eval scenes --methods random,nosuch --output runs/x\n```", "UnknownName"),
    "an option that is only named": ("See `vtc eval --robust`.", "no option --robust"),
    "a command that is only named": ("See `vtc evaluate`.", "no command 'evaluate'"),
    "a command in the text": ("Run `vtc eval scenes --budgets 2.5 --output runs/x`.", "exit code 1"),
    "a block without a language": ("```\nvtc methods\n```", "no language"),
    "a block of an unknown language": ("```sh\nvtc methods\n```", "a block of 'sh'"),
    "a block that is indented": ("- a list\n  ```bash\n  vtc methods\n  ```", "a block of"),
    "a command as text": ("```text\nvtc methods\n```", "what a reader would run"),
    "a command with a setting as text": ("```text\nOMP_NUM_THREADS=1 python x.py\n```", "what a reader would run"),
    "Python as text": ("```text\nimport vtc\n```", "what a reader would run"),
    "no TOML": ("```toml\n[a\n```", "TOML"),
    "no JSON": ("```json\n{'a': 1}\n```", "JSON"),
    "an unknown program": ("```bash\nnosuch --help\n```", "no way to run nosuch"),
    "two commands in a line": ("```bash\nvtc methods | head\n```", "not one plain command"),
    "an unknown script": ("```bash\npython scripts/nosuch.py\n```", "No such file"),
    "an unknown option of a script": ("Run `python scripts/measure_second_turn.py --pears 3`.", "exit code 2"),
    "an unknown option of torchrun": ("Run `torchrun --nproc 2 -m vtc.cli eval`.", "no option --nproc"),
    "an unknown script of torchrun": ("Run `torchrun scripts/nosuch.py ...`.", "neither a command"),
    "an unknown extra": ("```bash\npip install '.[nosuch]'\n```", "no extra 'nosuch'"),
    "our package of an index": ("```bash\npip install 'vtc-vlm[eval]'\n```", "is on no index"),
    "an unknown target": ("```bash\nmake nosuch\n```", "nosuch"),
    "an unmarked model of the hub": (f"```bash\nvtc eval {HUB[0]} --output runs/x\n```", "needs a mark"),
    "tests that select none": ("```bash\npython -m pytest --noconftest tests/__init__.py\n```", "no tests ran"),
    "an empty block": ("```bash\n# nothing\n```", "an empty block"),
    "a block without an end": ("```python\nvtc", "without an end"),
}


@pytest.mark.parametrize(("text", "told"), BROKEN.values(), ids=BROKEN)
def test_a_page_that_does_not_run_is_found(text, told, here):
    try:
        _, wrong = play("made-up.md", text, here)
    except (Broken, ValueError) as error:
        wrong = [f"{type(error).__name__}: {error}"]
    assert len(wrong) == 1 and told in wrong[0]


def test_blocks_that_run_are_told_apart(here):
    text = """```python\nseen = model\n```
`vtc methods` and `vtc eval --compare RUN_A RUN_B [--output DIR]`; `vtc methods --help`.
```bash
vtc methods  # all of them
vtc eval scenes \\
    --methods random --budgets 24 --output runs/x
torchrun --nproc_per_node 2 -m vtc.cli eval scenes --methods random --budgets 24 --output runs/x
```
```python\nassert seen is model\n```
```text\nwords\n```
"""
    done, wrong = play("made-up.md", text, here)
    assert not wrong
    assert list(done.values()) == ["ran", *["mention"] * 3, "ran", "shrunk", "shrunk", "ran", "parsed"]
