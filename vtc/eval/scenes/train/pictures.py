"""Training pictures, drawn once by a few processes and kept as bytes on disk."""

import json
import multiprocessing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vtc.eval.scenes.draw import SIZE, Object, scene
from vtc.eval.scenes.splits import SPLITS
from vtc.eval.scenes.train.labels import Labels, label

CHUNK = 1000
EASY, CROWDED = 0.2, 0.2
"""Shares of the training pictures; the rest are plain."""


@dataclass
class Pictures:
    """Training pictures in memory order: easy ones first, then the others (crowded and plain)."""

    pixels: np.ndarray
    objects: list[tuple[Object, ...]]
    labels: Labels
    easy: int

    def __len__(self) -> int:
        return len(self.objects)


def _flavour(index: int, count: int) -> dict[str, bool]:
    """Whether picture `index` of `count` is easy, crowded or plain."""
    easy = int(count * EASY)
    return {"easy": index < easy, "crowded": easy <= index < easy + int(count * CROWDED)}


def _draw(job: tuple[Path, int, int, int, int]) -> None:
    """Draws pictures [start, stop) into the shared file, objects and labels beside it."""
    folder, first, start, stop, count = job
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "r+")
    objects, labels = [], []
    for index in range(start, stop):
        drawn = scene(first + index, **_flavour(index, count))
        pixels[index] = np.asarray(drawn.image)
        objects.append(drawn.objects)
        labels.append(label(drawn))
    stacked: dict[str, Any] = {f.name: np.stack([getattr(x, f.name) for x in labels]) for f in fields(Labels)}
    np.savez(folder / f"{start}.npz", **stacked)
    (folder / f"{start}.json").write_text(json.dumps([[astuple(o) for o in picture] for picture in objects]))


def prepare(folder: Path, first: int, count: int, processes: int = 2) -> Pictures:
    """Pictures of the training seeds first .. first + count, drawn unless the folder holds them already."""
    if first < 0 or first + count > (most := len(SPLITS["train"])):
        raise ValueError(f"pictures {first} to {first + count} leave the training seeds: ask for at most {most}")
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, CHUNK)
    if not (folder / "done").exists():
        shape = (count, SIZE, SIZE, 3)
        np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape).flush()
        jobs = [(folder, SPLITS["train"][first], s, min(s + CHUNK, count), count) for s in starts]
        with multiprocessing.Pool(processes) as pool:
            pool.map(_draw, jobs, chunksize=1)
        (folder / "done").touch()
    objects = [
        tuple(Object(kind, name, color, (y0, x0, y1, x1)) for kind, name, color, (y0, x0, y1, x1) in picture)
        for s in starts
        for picture in json.loads((folder / f"{s}.json").read_text())
    ]
    parts = [np.load(folder / f"{s}.npz") for s in starts]
    labels = Labels(**{f.name: np.concatenate([part[f.name] for part in parts]) for f in fields(Labels)})
    return Pictures(np.load(folder / "pixels.npy", mmap_mode="r"), objects, labels, int(count * EASY))
