"""``model.vtcz``: a checkpoint folder or file, bit for bit, in fewer bytes.

Layout: magic (8 bytes), offset and length of the index (uint64 each), its sha256 (32 bytes); the stored parts without
gaps; the index (JSON) at the end. Parts are written and read in chunks of 1 MiB, so memory does not grow with the
tensors. Nothing is published before it is whole: what is written has another name until it is synced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vtc.errors import CheckpointError
from vtc.files.atomic import FULL
from vtc.files.folders import cannot_write, refusals, safe_path
from vtc.files.sync import WINDOWS, sync, sync_all
from vtc.weights.lossless.differences import decode_beside, encode_beside
from vtc.weights.lossless.index import File, Index, Part
from vtc.weights.lossless.planes import Bytes, chunks, decode, encode
from vtc.weights.lossless.tensorfile import Place, read_head

MAGIC = b"VTCZ\x01\r\n\x1a"  # as in PNG: line ends and Ctrl-Z show a transfer that altered them
PREFIX = struct.Struct("<8sQQ32s")
LONGEST = 100_000_000  # bytes of an index

Terms = tuple[Any, ...]
Guess = Callable[[Place], tuple[Terms, Bytes] | None]  # what a tensor is about: terms, and the bytes they make
Approximation = Callable[[Place, Terms], Bytes | None]  # those bytes again, from the terms


def archive(source: str | os.PathLike, path: str | os.PathLike) -> Index:
    """Store the file or folder ``source`` as the archive ``path``; what stood there is replaced at the end.

    Raises ``CheckpointError`` for a source that is missing, empty or damaged, a path inside it, or a full disk.
    """
    return store(Path(source), Path(path))


def unarchive(path: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Write the files of the archive ``path`` to ``folder``, which must not hold anything yet.

    Raises ``CheckpointError`` for an archive that is damaged, lies about its sizes or was stored beside an
    approximation, and for a disk without room; ``folder`` is then as it was.
    """
    index, _ = read_index(Path(path))
    if index.beside:
        raise CheckpointError(
            f"{path} holds differences from another checkpoint; use vtc restore on the folder it is in"
        )
    return extract(Path(path), Path(folder))


def store(source: Path, path: Path, guess: Guess | None = None, beside: str | None = None) -> Index:
    """``archive``; a tensor is stored as its difference from ``guess`` where that is shorter. ``beside``: the hash of
    the weights that ``guess`` is made of."""
    files = listing(source)
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{path} is inside {source}, which it would hold; write the archive beside the folder")
    with published(path) as temporary, temporary.open("wb") as out:
        out.write(bytes(PREFIX.size))
        weights = hashlib.sha256()
        stored = tuple(_store_file(name, file, out, weights, guess) for name, file in files)
        used = any(part.beside is not None for file in stored for part in file.parts)
        index = Index(stored, weights.hexdigest(), beside if used else None)
        text, end = index.written(), out.tell()
        if len(text) > LONGEST:
            raise CheckpointError(f"{source}: an index of {len(text)} bytes is above {LONGEST}; archive it in pieces")
        out.write(text)
        out.seek(0)
        out.write(PREFIX.pack(MAGIC, end, len(text), hashlib.sha256(text).digest()))
    return index


def listing(source: Path) -> list[tuple[str, Path]]:
    """The files of a folder (or the one file) by their path in the archive. Raises ``CheckpointError``."""
    if source.is_file():
        return [(safe_path(source.name, str(source)), source)]
    if not source.is_dir():
        raise CheckpointError(f"{source} is neither a file nor a folder")
    found = sorted(path for path in source.rglob("*") if path.is_symlink() or not path.is_dir())
    strange = [str(path) for path in found if not path.is_file()]  # links to folders among them
    if strange or not found:
        reason = (
            f"{strange[0]} is neither a file nor a folder of its own; take it out" if strange else "it holds no file"
        )
        raise CheckpointError(f"{source} cannot be archived: {reason}")
    return [(safe_path(path.relative_to(source).as_posix(), str(source)), path) for path in found]


def read_index(path: Path) -> tuple[Index, int]:
    """What the archive ``path`` says it holds, checked, and where its parts end. Raises ``CheckpointError``."""
    try:
        found = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(PREFIX.size)
            if len(head) < PREFIX.size or not head.startswith(MAGIC):
                raise CheckpointError(f"{path} is no archive of vtc ({found} bytes), or not one that this vtc reads")
            _, end, length, digest = PREFIX.unpack(head)
            if length > LONGEST or end < PREFIX.size or end + length != found:
                raise CheckpointError(
                    f"{path} has {found} bytes and its index {length} from {end}; the archive is cut off or damaged"
                )
            stream.seek(end)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if hashlib.sha256(text).digest() != digest:
        raise CheckpointError(f"{path}: the index is not the one that was written; the archive is damaged")
    index = Index.read(text, str(path))
    if PREFIX.size + index.stored != end:
        raise CheckpointError(f"{path}: the parts take {index.stored} bytes and there are {end - PREFIX.size}")
    return index, end


def extract(
    path: Path, folder: Path, approximation: Approximation | None = None, check: Callable[[Path], None] | None = None
) -> Path:
    """``unarchive``, with the approximation that parts were stored beside. ``check`` may refuse the files, by raising,
    before they are published."""
    index, _ = read_index(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} holds something already; give a folder that is empty or not there")
    above = next(each for each in folder.resolve().parents if each.is_dir())
    free = shutil.disk_usage(above).free
    if index.raw > free:
        raise CheckpointError(f"{path} holds {index.raw} bytes and {above} has room for {free}; make room")
    with published(folder, is_folder=True) as temporary, path.open("rb") as stream:
        stream.seek(PREFIX.size)
        for file in index.files:
            _extract_file(file, stream, temporary / file.path, approximation)
        if check:
            check(temporary)
    return folder


@contextmanager
def published(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """A temporary file (or folder) beside ``path`` to fill; it is synced and gets that name when all went well.

    A process that is killed leaves it behind, hidden, and ``path`` as it was. A full disk is a ``CheckpointError``.
    """
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = f".{path.name[:100]}.tmp-"
        if is_folder:
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=hidden))
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=hidden)
            os.close(handle)
            temporary = Path(name)
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno not in FULL and not str(error.filename).startswith(str(temporary)):
                raise  # of what is read
            raise cannot_write(path, error) from error
        with refusals(path):
            temporary.chmod(0o755 if is_folder else 0o644)
            sync_all(temporary)
            if WINDOWS and path.is_dir():
                path.rmdir()  # it is empty, and Windows renames no folder onto another
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _store_file(name: str, file: Path, out: BinaryIO, weights: Any, guess: Guess | None) -> File:
    tensors = name.endswith(".safetensors")
    head, places = read_head(file) if tensors else (b"", [])
    weights = weights if tensors and "/" not in name else hashlib.sha256()  # those below are not hashed
    weights.update(name.encode())
    size = len(head) or file.stat().st_size
    parts = [Place("", "U8", (size,), size), *places]
    with file.open("rb") as stream:
        stored = tuple(_store_part(part, stream, out, weights, guess) for part in parts)
        if stream.read(1):
            raise CheckpointError(f"{file} grew while it was read; archive it when nothing writes to it")
    return File(name, tensors, stored)


def _store_part(place: Place, stream: BinaryIO, out: BinaryIO, weights: Any, guess: Guess | None) -> Part:
    """Code one part; beside a guess, both ways."""
    digest = hashlib.sha256()
    terms, about = (guess(place) if guess and place.name else None) or (None, None)
    start, plain, beside = out.tell(), 0, list[bytes]()
    for at, size in chunks(place.size):
        content = stream.read(size)
        if len(content) != size:
            raise CheckpointError(f"{stream.name} shrank while it was read; archive it when nothing writes to it")
        digest.update(content)
        weights.update(content)
        raw = np.frombuffer(content, np.uint8)
        plain += out.write(encode(raw, place.dtype))
        if about is not None:
            beside.append(encode_beside(raw, about[at : at + size], place.dtype))
    if sum(map(len, beside)) < plain and about is not None:
        out.seek(start)
        out.truncate()
        stored = sum(out.write(chunk) for chunk in beside)
    else:
        terms, stored = None, plain
    return Part(place.name, place.dtype, place.shape, place.size, stored, digest.hexdigest(), terms)


def _extract_file(file: File, stream: BinaryIO, target: Path, approximation: Approximation | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        for part in file.parts:
            _extract_part(part, stream, out, approximation)
    if file.tensors:
        _, places = read_head(target)
        said = [Place(part.name, part.dtype, part.shape, part.raw) for part in file.parts[1:]]
        if places != said:
            raise CheckpointError(f"{file.path}: the index describes other tensors than the file has; do not trust it")


def _extract_part(part: Part, stream: BinaryIO, out: BinaryIO, approximation: Approximation | None) -> None:
    digest = hashlib.sha256()
    about = None
    if part.beside is not None:
        place = Place(part.name, part.dtype, part.shape, part.raw)
        about = approximation(place, part.beside) if approximation else None
        if about is None or len(about) != part.raw:
            raise CheckpointError(f"{part.name} is stored as a difference from a tensor that is not there")
    start = stream.tell()
    for at, size in chunks(part.raw):
        if about is None:
            raw = decode(stream, size, part.dtype)
        else:
            raw = decode_beside(stream, about[at : at + size], part.dtype)
        digest.update(raw.data)
        out.write(raw.data)
    if stream.tell() - start != part.stored:
        raise CheckpointError(f"{part.name or out.name} ends elsewhere than the index says; the archive is damaged")
    if digest.hexdigest() != part.sha256:
        raise CheckpointError(f"{part.name or out.name} is not what was stored; the archive is damaged")
