"""README fits a screen, links lead somewhere, and nothing boasts."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT, fences, read

BOASTS = ("nobody else", "no one else", "the only", "first to ")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: str) -> str:
    return fences(page, read(page))[1]


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: str) -> list[str]:
    """Links of a page that lead to no file, or to no heading of one."""
    found = []
    for link in LINK.findall(re.sub(r"`[^`]*`", "", prose(page))):
        name, _, anchor = link.partition("#")
        if re.match(r"\w+://", link):
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists():
            found.append(link)
        elif anchor and anchor not in anchors(str(target.resolve().relative_to(ROOT.resolve()))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert not broken(page)


def test_broken_links_are_found(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# A title: of it\n[a](#a-title-of-it) [b](#nowhere) [c](no.md) [d](page.md#x)")
    monkeypatch.setattr("tests.docs.test_prose.ROOT", tmp_path)
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    assert broken("page.md") == ["#nowhere", "no.md", "page.md#x"]


@pytest.mark.parametrize("page", PAGES)
def test_nothing_boasts(page):
    sentences = re.split(r"(?<=[.:;])\s", re.sub(r"\s+", " ", prose(page)))
    assert not [s for s in sentences if any(boast in s.lower() for boast in BOASTS)]


def test_readme_fits_a_screen():
    lines = read("README.md").splitlines()
    assert len(lines) <= 150
    for paragraph in re.split(r"\n\s*\n", prose("README.md")):
        written = [line for line in paragraph.strip().splitlines() if not line.startswith(("#", "|", "!["))]
        assert len(written) <= 4, paragraph
        assert all(len(line) <= 130 for line in written), paragraph


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_said_to_be_on_an_index(page):
    assert not re.search(r"pip install ['\"]?vtc", read(page))
