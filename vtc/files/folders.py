"""Folders that are published whole: filled beside the old one, synced, and put in its place by one rename."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.sync import sync, sync_all

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
WEIGHTS = (".safetensors", ".safetensors.index.json")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill; what it holds stands at ``folder`` when the block ends well, and nowhere otherwise.

    Killed at any moment, ``folder`` is the old one or the new one. What a killed process filled stays beside it as
    ``.NAME.saving-PID``. Where a system cannot exchange two folders (Linux can) there is a moment with neither: the old
    one then stands beside as ``.NAME.old`` until ``recover`` puts it back.

    What the system refuses on the way, a full disk or a folder that may not be written, is a ``CheckpointError``.
    """
    from safetensors import SafetensorError

    folder = Path(os.path.realpath(folder))
    temporary = folder.parent / f".{folder.name}.saving-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had this number
        temporary.mkdir()
        yield temporary
        sync_all(temporary)
        publish(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # now it holds the old one, or what failed


def cannot_write(path: Path, error: Exception) -> CheckpointError:
    """What to tell of an error of the system while ``path`` was written."""
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"{path} cannot be written ({reason}); make room, or give another place (what is there is the old one or the "
        "new one, whole)"
    )


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What the system refuses inside is a ``CheckpointError`` that ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def publish(temporary: Path, folder: Path) -> None:
    """Put ``temporary`` where ``folder`` is; a folder that was there stands at ``temporary`` then, or is gone."""
    recover(folder)
    if not folder.exists():
        temporary.rename(folder)
    elif not exchange(temporary, folder):
        shutil.rmtree(aside(folder), ignore_errors=True)  # left by a killed process that had published
        folder.rename(aside(folder))
        try:
            temporary.rename(folder)
        except OSError:
            recover(folder)
            raise
        shutil.rmtree(aside(folder), ignore_errors=True)
    sync(folder.parent)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step. False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # an old C library, or none that can be asked
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)) == 0


def recover(folder: Path) -> None:
    """Put back what a killed process had set aside and not yet replaced."""
    if aside(folder).exists() and not folder.exists():
        aside(folder).rename(folder)


def aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


def check_replaceable(folder: Path, mark: str) -> None:
    """Raises ``CheckpointError`` unless ``folder`` is absent, empty, or holds the file ``mark``: nothing else of the
    user's is ever replaced."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise CheckpointError(
            f"{folder} holds files and no {mark}, so it was not written by vtc and is not replaced; give another folder"
        )


def safe_path(path: Any, where: str) -> str:
    """A relative path with / between at most 32 names, none empty, . or .. Raises ``CheckpointError``."""
    path = path if isinstance(path, str) else ""
    names = path.split("/")
    try:
        long = len(names) > 32 or len(path) > 1000 or any(len(os.fsencode(name)) > 255 for name in names)
    except UnicodeEncodeError:
        long = True
    if long or any(name in ("", ".", "..") or set(name) & set("\\:\0") for name in names):
        raise CheckpointError(f"{where}: {str(path)[:200]!r} is no path inside the folder; it is not to be trusted")
    return path


def names_in(folder: Path) -> list[str]:
    """The files in ``folder``, in order, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_whole(folder: Path, names: Iterable[str]) -> None:
    """Raises ``CheckpointError`` where a file of those ``names`` is missing, or is JSON that was cut off: transformers
    would put defaults in the place of some."""
    for name in names:
        path = folder / name
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif not path.is_file():
                raise FileNotFoundError("No such file")
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} was saved and cannot be read ({error}); copy the whole folder, or save again"
            ) from error


def keep_named(old: Path, new: Path, names: Iterable[str]) -> None:
    """Copy the files of those ``names`` that ``old`` holds and ``new`` lacks, weights left out."""
    for name in names:
        if (old / name).is_file() and not (new / name).exists() and not name.endswith(WEIGHTS):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(old / name, new / name)


def keep_others(old: Path, new: Path, replaced: Iterable[str] = ()) -> None:
    """Copy into ``new`` what ``old`` holds and ``new`` lacks, weights and what is ``replaced`` left out: a processor
    that was saved earlier, a README."""
    if not old.is_dir():
        return
    for path in old.iterdir():
        weights = path.name.endswith(WEIGHTS) or path.name in replaced
        if weights or (new / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)
