"""A system that refuses one step: the n-th creation, renaming, removal, writing or syncing of files fails, once."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

STEPS = ("os.mkdir", "os.rename", "os.chmod", "tempfile.mkstemp", "tempfile.mkdtemp", "ctypes.dlopen", "fsync")
_left: list = []  # steps until it refuses, the error's number; empty: never


def _count(event: str, arguments: tuple) -> None:
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if not _left or not (writing or event in STEPS):
        return
    _left[0] -= 1
    if _left[0] == 0:
        raise OSError(_left[1], os.strerror(_left[1]), str(arguments[0]) if arguments else None)


sys.addaudithook(_count)


@contextmanager
def refused_at(step: int, number: int, monkeypatch):
    """Inside, the ``step``-th step fails with the error ``number``; gives a list of the steps that are left."""
    real = os.fsync

    def fsync(handle):
        sys.audit("fsync")
        return real(handle)

    with monkeypatch.context() as patches:
        patches.setattr(os, "fsync", fsync)
        _left[:] = [step, number]
        try:
            yield _left
        finally:
            _left.clear()
