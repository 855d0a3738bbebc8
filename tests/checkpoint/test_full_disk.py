"""Whatever the system refuses while a folder, an archive or a delta is written: the old one or the new one, whole, no
litter, and one clear error."""

from __future__ import annotations

import copy
import errno
import shutil
from pathlib import Path

import pytest

import vtc
from tests import zoo
from tests.eval.running.test_full_disk import no_file_beyond
from tests.eval.tiny import tiny_llava, tiny_processor
from tests.files.refusals import refused_at
from vtc.checkpoint.restore import restore
from vtc.checkpoint.save_load import save_processor
from vtc.errors import VTCError
from vtc.files import folders
from vtc.files.atomic import write_text
from vtc.weights.deltas.delta import difference
from vtc.weights.deltas.folder import load as load_delta
from vtc.weights.deltas.folder import save as save_delta
from vtc.weights.formats.manifest import Manifest
from vtc.weights.lossless.archive import archive, unarchive

pytest.importorskip("zstandard")
ERRORS = [errno.ENOSPC, errno.EACCES, errno.EROFS]


def tree(path: Path):
    """Every file below ``path`` and what it holds."""
    files = [path] if path.is_file() else path.rglob("*")
    return {p.relative_to(path.parent).as_posix(): p.read_bytes() for p in files if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models, a folder, its archive and a delta to write."""
    work = tmp_path_factory.mktemp("made")
    old, new = zoo.build("llava", layers=2), zoo.build("llava", layers=2, seed=1)
    delta = difference(old, zoo.build("llava", layers=2, seed=2), "bitdelta", progress=False)
    for model in (old, new):
        vtc.patch(model, "perceiver", budget=0.5)
    vtc.save(old, work / "old")
    vtc.save(new, work / "new")
    archive(work / "old", work / "old.vtcz")
    archive(work / "new", work / "new.vtcz")
    original, kept = tiny_llava(layers=2), work / "kept"
    original.save_pretrained(work / "original")
    small = vtc.compress(copy.deepcopy(original), "rtn:bits=8:group=8", progress=False)
    vtc.save(small, kept, keep_original=work / "original")
    return {"work": work, "new": new, "small": small, "delta": delta}


def over(kind: str):
    """A copy of an older one where it is to be written, or nothing."""
    return lambda made, path: (shutil.copytree if (made["work"] / kind).is_dir() else shutil.copy2)(
        made["work"] / kind, path
    )


# What stands there before, what writes, and what reads it again (raising for anything that is not whole).
WRITERS = {
    "vtc.save": (None, lambda m, p: vtc.save(m["new"], p), vtc.load),
    "vtc.save over another": (over("old"), lambda m, p: vtc.save(m["new"], p, tiny_processor()), vtc.load),
    "vtc.save that keeps the original": (
        None,
        lambda m, p: vtc.save(m["small"], p, keep_original=m["work"] / "original"),
        vtc.load,
    ),
    "delta": (None, lambda m, p: save_delta(m["delta"], p), load_delta),
    "archive": (None, lambda m, p: archive(m["work"] / "new", p), lambda p: unarchive(p, p.parent / "read")),
    "archive over another": (
        over("old.vtcz"),
        lambda m, p: archive(m["work"] / "new", p),
        lambda p: unarchive(p, p.parent / "read"),
    ),
    "unarchive": (None, lambda m, p: unarchive(m["work"] / "new.vtcz", p), vtc.load),
    "restore": (None, lambda m, p: restore(m["work"] / "kept", p), lambda p: (p / "model.safetensors").stat()),
    "a text": (None, lambda m, p: write_text(p, "all of it"), lambda p: p.read_text().index("all of it")),
}


def check(path: Path, before: dict, read) -> None:
    """As it was, or whole; and nothing beside it."""
    assert [p.name for p in path.parent.iterdir()] == ([path.name] if path.exists() else [])
    if tree(path) != before:
        read(path)
        shutil.rmtree(path.parent / "read", ignore_errors=True)


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("writer", WRITERS)
def test_any_step_that_the_system_refuses(made, tmp_path, monkeypatch, writer, number):
    prepare, write, read = WRITERS[writer]
    step, ended = 1, False
    while not ended:
        path = tmp_path / str(step) / "out"
        path.parent.mkdir()
        if prepare:
            prepare(made, path)
        before = tree(path)
        with refused_at(step, number, monkeypatch) as left:
            try:
                write(made, path)
            except VTCError as error:
                assert "cannot be written" in str(error) and "\n" not in str(error)
            ended = left[0] > 0  # no step of that number: all is done
        check(path, before, read)
        shutil.rmtree(path.parent)
        step += 1
    assert step > 3


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_up(made, tmp_path, writer):
    prepare, write, read = WRITERS[writer]
    for n, room in enumerate((0, 5, 400, 5_000, 20_000)):
        path = tmp_path / str(n) / "out"
        path.parent.mkdir()
        if prepare:
            prepare(made, path)
        before = tree(path)
        try:
            with no_file_beyond(room):
                write(made, path)
        except VTCError as error:
            assert "cannot be written" in str(error) and "\n" not in str(error)
        else:
            assert room > 5
        check(path, before, read)


def test_where_folders_cannot_be_exchanged(made, tmp_path, monkeypatch):
    """A renaming that is refused after the old one was set aside: it comes back."""
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    test_any_step_that_the_system_refuses(made, tmp_path, monkeypatch, "vtc.save over another", errno.ENOSPC)


def test_a_tokenizers_own_error_is_one_of_the_disk(tmp_path):
    with no_file_beyond(1000), pytest.raises(OSError, match="File too large"):
        save_processor(tiny_processor(), tmp_path)


def test_a_manifest_is_whole_or_absent(tmp_path):
    manifest = Manifest("0" * 64, {}, None, {}, None, {})
    with no_file_beyond(10), pytest.raises(VTCError, match="cannot be written"):
        manifest.write(tmp_path)
    assert not list(tmp_path.iterdir())
    assert Manifest.read(manifest.write(tmp_path).parent) == manifest
