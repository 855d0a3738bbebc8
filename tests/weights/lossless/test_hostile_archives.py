"""Archives that are damaged or lie: refused before anything is believed, never a crash or another checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.lossless.test_archive import contents, write_checkpoint
from vtc.errors import CheckpointError
from vtc.weights.lossless import archive as lossless
from vtc.weights.lossless import planes
from vtc.weights.lossless.archive import PREFIX, archive, unarchive


@pytest.fixture
def tiny(tmp_path) -> Path:
    archive(write_checkpoint(tmp_path / "in"), tmp_path / "m.vtcz")
    return tmp_path


def outcome(folder: Path, content: bytes) -> dict[str, bytes] | None:
    """What an archive of that content unpacks to; None where it is refused, and then nothing is left."""
    (folder / "bad.vtcz").write_bytes(content)
    try:
        found = contents(unarchive(folder / "bad.vtcz", folder / "out"))
    except CheckpointError:
        assert sorted(p.name for p in folder.iterdir()) == ["bad.vtcz", "in", "m.vtcz"]
        return None
    shutil.rmtree(folder / "out")
    return found


def flipped(folder: Path, count: int) -> None:
    content, want = (folder / "m.vtcz").read_bytes(), contents(folder / "in")
    draw = random.Random(0)
    refused = 0
    for _ in range(count):
        at, bits = draw.randrange(len(content)), draw.randrange(1, 256)
        changed = bytearray(content)
        changed[at] ^= bits
        found = outcome(folder, bytes(changed))
        assert found in (None, want), f"byte {at} changed by {bits} makes another checkpoint"
        refused += found is None
    assert refused > 0.95 * count  # most bytes matter: the test would see a reader that checks nothing


def test_300_flipped_bytes(tiny):
    flipped(tiny, 300)


@pytest.mark.slow
def test_10000_flipped_bytes(tiny):
    flipped(tiny, 10_000)


def test_cut_at_every_length(tiny):
    (tiny / "in" / "config.json").unlink()
    (tiny / "in" / "empty.txt").unlink()
    shutil.rmtree(tiny / "in" / "more")
    save_file({"a": torch.randn(3, 4)}, tiny / "in" / "model.safetensors")
    archive(tiny / "in", tiny / "m.vtcz")
    content = (tiny / "m.vtcz").read_bytes()
    assert outcome(tiny, content) == contents(tiny / "in")
    (tiny / "bad.vtcz").write_bytes(content)
    for length in reversed(range(len(content))):
        os.truncate(tiny / "bad.vtcz", length)
        with pytest.raises(CheckpointError):
            unarchive(tiny / "bad.vtcz", tiny / "out")
    assert outcome(tiny, content + b"\0") is None


def forge(content: bytes, edit) -> bytes:
    """The archive with its index edited, and all its hashes and lengths right again."""
    _, end, _, _ = PREFIX.unpack(content[: PREFIX.size])
    index = json.loads(content[end:])
    edited = edit(index)
    text = edited if isinstance(edited, bytes) else json.dumps(edited if edited is not None else index).encode()
    return resealed(content[PREFIX.size : end], text)


def resealed(stored: bytes, text: bytes) -> bytes:
    end = PREFIX.size + len(stored)
    return PREFIX.pack(lossless.MAGIC, end, len(text), hashlib.sha256(text).digest()) + stored + text


def weights(index):
    return next(file for file in index["files"] if file["tensors"])


def part(index, name="layers.0.weight"):
    return next(p for p in weights(index)["parts"] if p["name"] == name)


def other(index, name="config.json"):
    return next(file for file in index["files"] if file["path"] == name)


LIES = {
    "a size that shape and dtype do not make": lambda i: part(i).update(raw=1 << 40),
    "a huge tensor in few bytes": lambda i: part(i).update(raw=1 << 50, shape=[1 << 49]),
    "a tensor beyond all sizes": lambda i: part(i).update(raw=1 << 100, shape=[1 << 62, 1 << 38]),
    "a twice as large tensor": lambda i: part(i).update(raw=240, shape=[12, 10]),
    "a smaller tensor": lambda i: part(i).update(raw=60, shape=[3, 10]),
    "a negative size": lambda i: part(i).update(raw=-120, shape=[-6, 10]),
    "a size that is a float": lambda i: part(i).update(raw=120.0),
    "a shape that is true": lambda i: part(i, "scalar").update(shape=[True]),
    "a shape that is text": lambda i: part(i).update(shape="60"),
    "a thousand dimensions": lambda i: part(i, "scalar").update(shape=[1] * 1000),
    "another shape": lambda i: part(i).update(shape=[10, 6]),
    "another dtype of that size": lambda i: part(i).update(dtype="F16"),
    "an unknown dtype": lambda i: part(i).update(dtype="BF17"),
    "a dtype that is a list": lambda i: part(i).update(dtype=["BF16"]),
    "half a byte": lambda i: part(i, "codes").update(dtype="F4", shape=[79]),
    "more stored bytes": lambda i: part(i).update(stored=part(i)["stored"] + 1),
    "negative stored bytes": lambda i: part(i).update(stored=-1),
    "stored bytes moved between parts": lambda i: (
        part(i).update(stored=part(i)["stored"] + 1),
        part(i, "codes").update(stored=part(i, "codes")["stored"] - 1),
    ),
    "another name": lambda i: part(i).update(name="layers.1.weight"),
    "a name that is a number": lambda i: part(i).update(name=3),
    "another hash": lambda i: part(i).update(sha256="0" * 64),
    "a hash that is none": lambda i: part(i).update(sha256="Z" * 64),
    "a difference from nothing": lambda i: part(i).update(beside=[]),
    "a difference from a folder that is not there": lambda i: (part(i).update(beside=[]), i.update(beside="0" * 64)),
    "a difference from a number": lambda i: (part(i).update(beside=[7]), i.update(beside="0" * 64)),
    "a difference that is said, and none there": lambda i: i.update(beside="0" * 64),
    "a tensor left out": lambda i: weights(i)["parts"].remove(part(i)),
    "tensors in another order": lambda i: weights(i)["parts"].insert(1, weights(i)["parts"].pop(2)),
    "no parts": lambda i: other(i).update(parts=[]),
    "a plain file in two parts": lambda i: other(i).update(parts=other(i)["parts"] * 2),
    "a plain file that is said to hold tensors": lambda i: other(i).update(tensors=True),
    "an absolute path": lambda i: other(i).update(path="/tmp/out.json"),
    "a path out of the folder": lambda i: other(i).update(path="../out.json"),
    "a path out and in": lambda i: other(i).update(path="more/../../out.json"),
    "a path of Windows": lambda i: other(i).update(path="..\\out.json"),
    "a drive": lambda i: other(i).update(path="C:out.json"),
    "an empty path": lambda i: other(i).update(path=""),
    "the folder itself": lambda i: other(i).update(path="."),
    "a path with a zero byte": lambda i: other(i).update(path="a\0b"),
    "a path that is too long": lambda i: other(i).update(path="a" * 300),
    "a thousand folders": lambda i: other(i).update(path="a/" * 1000 + "b"),
    "a path longer than a system takes": lambda i: other(i).update(path="/".join(["a" * 250] * 20)),
    "a path that is no text": lambda i: other(i).update(path="\ud800"),
    "a path that is a number": lambda i: other(i).update(path=7),
    "the same path twice": lambda i: other(i).update(path="model.safetensors"),
    "a file that is a folder, too": lambda i: other(i).update(path="more"),
    "an unknown field": lambda i: part(i).update(surprise=1),
    "a missing field": lambda i: part(i).pop("sha256"),
    "an unknown field of the index": lambda i: i.update(surprise=1),
    "another schema": lambda i: i.update(schema=2),
    "files that are no list": lambda i: i.update(files={}),
    "a file that is no object": lambda i: i.update(files=[1]),
    "parts that are no objects": lambda i: other(i).update(parts=[[]]),
    "an index that is a list": lambda i: [i],
    "an index that is no JSON": lambda i: b"{",
    "an index that is no UTF-8": lambda i: b"\xff{}",
    "an index nested too deep": lambda i: b"[" * 100_000,
    "a number of ten thousand digits": lambda i: b'{"schema": ' + b"1" * 10_000 + b"}",
    "a name twice": lambda i: b'{"schema": 1, "schema": 1}',
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(tiny, lie):
    content = (tiny / "m.vtcz").read_bytes()
    edit = copy.copy(LIES[lie])

    def edited(index):
        found = edit(index)
        return found if isinstance(found, list | bytes) else index

    assert outcome(tiny, forge(content, edited)) is None


def test_forging_alone_changes_nothing(tiny):
    """The negative control: an index that was written again, unedited, is accepted."""
    content = (tiny / "m.vtcz").read_bytes()
    assert outcome(tiny, forge(content, lambda index: None)) == contents(tiny / "in")


def bomb(declared: int, frame: bytes) -> bytes:
    """An archive of one file of ``declared`` bytes whose only frame is ``frame``."""
    stored = planes.LENGTH.pack(len(frame)) + frame
    piece = dict(name="", dtype="U8", shape=[declared], raw=declared, stored=len(stored), sha256="0" * 64, beside=None)
    index = dict(schema=1, files=[dict(path="a", tensors=False, parts=[piece])], weights_sha256="0" * 64, beside=None)
    return resealed(stored, json.dumps(index).encode())


def frames() -> dict[str, bytes]:
    import zstandard

    large = bytes(1 << 26)
    open_ended = zstandard.ZstdCompressor(write_content_size=False)
    twice = zstandard.ZstdCompressor().compress(bytes(100))
    return {
        "says more than belongs": zstandard.ZstdCompressor().compress(large),
        "does not say its size": open_ended.compress(large),
        "holds more than it says": b"\x28\xb5\x2f\xfd\x60\x00\x00" + open_ended.compress(large)[6:],
        "is two frames": twice + twice,
        "is none": b"\0" * 50,
        "is empty": b"",
    }


@pytest.mark.parametrize("kind", frames())
def test_bombs_are_refused_without_their_memory(tiny, kind):
    import tracemalloc

    tracemalloc.start()
    try:
        frame = frames()[kind]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert outcome(tiny, bomb(100, frame)) is None
        assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_says_it_is_huge_is_not_read(tiny):
    content = bytearray(bomb(100, b"x" * 50))
    content[PREFIX.size : PREFIX.size + 4] = (0xFFFFFFFF).to_bytes(4, "little")
    assert outcome(tiny, bytes(content)) is None


def test_no_room_is_told_before_anything_is_written(tiny, monkeypatch):
    monkeypatch.setattr(lossless.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(CheckpointError, match="has room for 10; make room"):
        unarchive(tiny / "m.vtcz", tiny / "out")
    assert not (tiny / "out").exists()
