"""Run by ``test_platforms``: vtc on a system that is pretended not to be Linux.

``python -m tests.elsewhere FOLDER``: vtc and filelock cannot import POSIX's own modules (torch and others are this
system's builds and may), ``/proc`` and ``/sys`` are not there, the C library cannot be asked, folders are neither
synced nor renamed onto each other, and only handles that may write are synced, as on Windows. Then every file of vtc
is imported, and a run, a checkpoint and an archive are written and read.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import importlib.util
import io
import os
import sys
from pathlib import Path

POSIX = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog")
LINUX = ("/proc", "/sys")
TRITON = "_triton"  # kernels: imported where there is a GPU
VLLM = ("attention", "families", "model", "positions", "processor", "tower")
# Files and folders that need what vtc does not depend on.
EXTRAS = {"vtc.integrations.lmms_eval": "lmms_eval"} | {f"vtc.integrations.vllm.{name}": "vllm" for name in VLLM}


def pretend() -> None:
    """From here on this process is elsewhere."""
    os.fsync = only_writable(os.fsync)
    builtins.__import__ = without_posix(builtins.__import__)
    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
        setattr(module, name, without_linux(getattr(module, name)))
    os.open = only_files(os.open)
    os.rename, os.replace = not_onto_folders(os.rename), not_onto_folders(os.replace)
    ctypes.CDLL = nameless(ctypes.CDLL)
    from vtc.files import sync

    sync.WINDOWS = True


def without_posix(call):
    def guarded(name, globals=None, *args, **kwargs):
        asking = (globals or {}).get("__name__", "").split(".")[0]
        if name in POSIX and asking in ("vtc", "filelock"):
            raise ModuleNotFoundError(f"{asking} imports {name}, which is not on every system", name=name)
        return call(name, globals, *args, **kwargs)

    return guarded


def without_linux(call):
    def guarded(path=".", *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(LINUX):
            raise FileNotFoundError(2, "not on this system", os.fspath(path))
        return call(path, *args, **kwargs)

    return guarded


def only_files(call):
    def guarded(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, "a folder cannot be opened", os.fspath(path))
        return call(path, flags, *args, **kwargs)

    return guarded


def only_writable(call):
    import fcntl

    def guarded(handle):
        number = handle if isinstance(handle, int) else handle.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "a handle that may only read cannot be synced")
        return call(handle)

    return guarded


def not_onto_folders(call):
    def guarded(source, target, **kwargs):
        if os.path.isdir(target):
            raise PermissionError(13, "a folder is in the way", os.fspath(target))
        return call(source, target, **kwargs)

    return guarded


def nameless(kind):
    class Library(kind):
        def __init__(self, name, *args, **kwargs):
            if name is None:
                raise TypeError("bad argument type for built-in operation")  # what Windows says
            super().__init__(name, *args, **kwargs)

    return Library


def refuses(folder: Path) -> None:
    """The negative control: what POSIX and Linux alone can do, this process cannot."""
    (folder / "file").write_text("")
    reading = os.open(folder / "file", os.O_RDONLY)
    for attempt in (
        lambda: exec("import fcntl", {"__name__": "vtc.files.lock"}),
        lambda: Path("/proc/self/status").read_text(),
        lambda: os.open(folder, os.O_RDONLY),
        lambda: os.fsync(reading),
        lambda: os.replace(folder / "file", folder),
        lambda: ctypes.CDLL(None),
    ):
        try:
            attempt()
        except (OSError, ImportError, TypeError):
            continue
        raise SystemExit("the pretence has a hole")
    os.close(reading)


def needed(name: str) -> str:
    """The package without which this file cannot be imported."""
    return next((extra for file, extra in EXTRAS.items() if f"{name}.".startswith(f"{file}.")), "vtc")


def import_all() -> int:
    """Import every file of vtc; how many those were."""
    import vtc

    root = Path(vtc.__file__).parent
    names = sorted(".".join(("vtc", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py"))
    names = [name.removesuffix(".__init__") for name in names if not name.endswith((TRITON, "__main__"))]
    there = [name for name in names if importlib.util.find_spec(needed(name))]
    for name in there:
        importlib.import_module(name)
    return len(there)


def runs(folder: Path) -> None:
    """One writer a folder; a whole run, costs included: what cannot be read here is unavailable."""
    from tests.eval.tiny import picture, tiny_llava, tiny_processor
    from vtc.errors import RunRefused
    from vtc.eval.benchmarks.jsonl import JSONL
    from vtc.eval.running.run import evaluate
    from vtc.files.lock import lock

    held = lock(folder)
    try:
        lock(folder)
        raise SystemExit("two writers have one folder")
    except RunRefused:
        held.release()
    picture(0).save(folder / "0.png")
    row = '{"id": "q%d", "image": "0.png", "question": "what is the color ?", "answer": "red"}\n'
    (folder / "q.jsonl").write_text("".join(row % n for n in range(3)))
    quick = {"repeats": 1, "overlays": 1, "batch_size": 2, "progress": False, "max_new_tokens": 2}
    data = JSONL(data=folder / "q.jsonl")
    found = evaluate(tiny_llava(), tiny_processor(), data, ["random"], [0.5], folder / "run", **quick)
    assert found.measured["random@0.5"]["memory"]["peak_bytes"] == "unavailable"
    assert found.measured["random@0.5"]["energy"]["joules"] == "unavailable"


def checkpoints(folder: Path) -> None:
    """A checkpoint that takes another's place, and an archive that comes back into an empty folder."""
    import vtc
    from tests import zoo
    from vtc.weights.lossless.archive import archive, unarchive

    saved, back = folder / "saved", folder / "back"
    for seed in (0, 1):
        model = zoo.build("llava", seed=seed)
        vtc.patch(model, "random", budget=4)
        vtc.save(model, saved)
    assert vtc.patch_of(vtc.load(saved)).method.name == "random"
    archive(saved, folder / "model.vtcz")
    back.mkdir()
    unarchive(folder / "model.vtcz", back)
    assert (back / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


if __name__ == "__main__":
    pretend()
    refuses(Path(sys.argv[1]))
    print(import_all())
    runs(Path(sys.argv[1]))
    checkpoints(Path(sys.argv[1]))
