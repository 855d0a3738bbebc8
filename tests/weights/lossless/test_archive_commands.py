"""``vtc archive``, ``unarchive`` and ``restore``: what they print, and one line for what cannot be done."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from tests.weights.lossless.test_archive import contents, write_checkpoint
from vtc.checkpoint.restore import keep_original
from vtc.cli import app


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "in")


def test_archive_and_unarchive(source, tmp_path):
    done = call("archive", source, tmp_path / "m.vtcz")
    assert done.exit_code == 0 and f"{(tmp_path / 'm.vtcz').stat().st_size} bytes" in done.output
    assert call("unarchive", tmp_path / "m.vtcz", tmp_path / "out").exit_code == 0
    assert contents(tmp_path / "out") == contents(source)


def test_restore(source, tmp_path):
    shutil.copytree(source, tmp_path / "compressed")
    keep_original(source, tmp_path / "compressed")
    assert call("restore", tmp_path / "compressed", tmp_path / "out").exit_code == 0
    assert contents(tmp_path / "out") == contents(source)


def test_errors_are_one_line_and_exit_code_1(source, tmp_path):
    (tmp_path / "bad.vtcz").write_bytes(b"VTCZ")
    for arguments in (
        ("archive", tmp_path / "nowhere", tmp_path / "m.vtcz"),
        ("unarchive", tmp_path / "bad.vtcz", tmp_path / "out"),
        ("restore", source, tmp_path / "out"),
    ):
        done = call(*arguments)
        assert done.exit_code == 1 and done.output.startswith("error: ") and done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()
