"""Run by ``test_checkpoint``: saves over an older checkpoint that are killed before their n-th step on the file system.

``python -m tests.checkpoint.killed_saving FOLDER EXCHANGE``: forks before any thread exists, so one start of Python
serves all points; the last run goes through. Prints ``[[exit code, "old" or "new"], ...]``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

import vtc  # noqa: E402
from tests import zoo  # noqa: E402
from vtc.checkpoint import config as checkpoint  # noqa: E402
from vtc.files import folders  # noqa: E402

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "ctypes.dlopen")


def patched(seed: int):
    model = zoo.build("llava", seed=seed)
    vtc.patch(model, "random", budget=4)
    return model


def save_until(model, folder: Path, step: int) -> int:
    """Exit code of a fork that saves and dies before that step (negative: of a signal)."""
    pid = os.fork()
    if pid == 0:
        left = step

        def hook(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            vtc.save(model, folder)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(work: Path, exchange: bool) -> None:
    if not exchange:
        folders.exchange = lambda one, other: False
    old, new = patched(0), patched(1)
    vtc.save(new, work / "new")
    vtc.save(old, work / "old")
    hashes = {checkpoint.contents_sha256(work / name): name for name in ("old", "new")}
    found, step, code = [], 1, -signal.SIGKILL
    while code == -signal.SIGKILL:
        folder = work / "runs" / "model"
        shutil.rmtree(work / "runs", ignore_errors=True)
        shutil.copytree(work / "old", folder)
        code = save_until(new, folder, step)
        folders.recover(folder)  # what vtc.load does first
        config = checkpoint.read_config(folder)
        same = checkpoint.contents_sha256(folder) == config["weights_sha256"]
        found.append((code, hashes[config["weights_sha256"]] if same else "torn"))
        step += 1
    vtc.load(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), bool(int(sys.argv[2])))
