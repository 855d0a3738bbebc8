"""What an archive says it holds: every file and tensor, checked field by field before a byte is believed or allocated.

The sizes come from outside: a tensor's must be that of its dtype and shape, and no smaller number of stored bytes than
its frames need may hold it. Paths stay inside the folder that they are written to.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.folders import safe_path
from vtc.files.strict import parse_json
from vtc.weights.lossless.planes import least_stored
from vtc.weights.lossless.tensorfile import is_size, tensor_bytes

SCHEMA = 1
HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """Bytes of a file: a tensor, or (without a name) the head of a safetensors file or all of another file.

    ``raw`` bytes are stored in ``stored``; ``sha256`` is of the raw ones. ``beside``: they are stored as the difference
    from what these terms (as JSON holds them; none: the tensor of the same name) make in another checkpoint.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: int
    stored: int
    sha256: str
    beside: tuple[Any, ...] | None

    @classmethod
    def read(cls, written: Any, where: str) -> Part:
        fields = _fields(written, cls, where)
        for key in ("shape", "beside"):
            fields[key] = tuple(fields[key]) if isinstance(fields[key], list) else fields[key]
        part = cls(**fields)
        where = f"{where}: {str(part.name)[:200]!r}"
        size = tensor_bytes(part.dtype, part.shape, where)
        if not isinstance(part.name, str) or not is_size(part.stored):
            raise CheckpointError(f"{where} has a name or a size of the wrong type")
        if part.beside is not None and not _are_objects(part.beside):
            raise CheckpointError(f"{where} is stored beside something that is no list of terms")
        if part.raw != size or not is_size(part.raw):
            raise CheckpointError(f"{where} declares {part.raw} bytes, its dtype and shape make {size}")
        if part.stored < least_stored(size, part.dtype) or (size == 0) != (part.stored == 0):
            raise CheckpointError(f"{where} declares {size} bytes, which {part.stored} stored ones cannot hold")
        if not isinstance(part.sha256, str) or not HASH.fullmatch(part.sha256):
            raise CheckpointError(f"{where} has no sha256")
        return part


@dataclass(frozen=True)
class File:
    """A file as its parts one after the other. ``tensors``: a safetensors file, whose first part is its head."""

    path: str
    tensors: bool
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, written: Any, where: str) -> File:
        fields = _fields(written, cls, where)
        path = safe_path(fields["path"], where)
        if type(fields["tensors"]) is not bool or not isinstance(fields["parts"], list):
            raise CheckpointError(f"{where}: {path} has fields of the wrong type")
        parts = tuple(Part.read(part, f"{where}: {path}") for part in fields["parts"])
        if not parts or (len(parts) > 1 and not fields["tensors"]):
            raise CheckpointError(f"{where}: {path} has {len(parts)} parts")
        if parts[0].name or parts[0].dtype != "U8" or parts[0].beside is not None:
            raise CheckpointError(f"{where}: the first part of {path} is not plain bytes")
        return cls(path, fields["tensors"], parts)


@dataclass(frozen=True)
class Index:
    """The files of an archive. ``weights_sha256``: of the safetensors files together, as ``vtc.checkpoint`` hashes a
    folder; ``beside``: the same of the folder whose weights approximate them, where a part needs it."""

    files: tuple[File, ...]
    weights_sha256: str
    beside: str | None

    @property
    def parts(self) -> list[Part]:
        return [part for file in self.files for part in file.parts]

    @property
    def raw(self) -> int:
        return sum(part.raw for part in self.parts)

    @property
    def stored(self) -> int:
        return sum(part.stored for part in self.parts)

    def written(self) -> bytes:
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, sort_keys=True).encode()

    @classmethod
    def read(cls, text: bytes, where: str) -> Index:
        """What ``written`` wrote. Raises ``CheckpointError`` for anything that it would not have written."""
        fields = parse_json(text, where)
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise CheckpointError(
                f"{where} has the schema {schema!r}, this vtc reads {SCHEMA}; use the vtc that wrote it"
            )
        fields = _fields(fields, cls, where)
        for key in ("weights_sha256", "beside"):
            value = fields[key]
            if not (isinstance(value, str) and HASH.fullmatch(value) or key == "beside" and value is None):
                raise CheckpointError(f"{where}: {key} is {str(value)[:80]!r}, no sha256")
        if not isinstance(fields["files"], list):
            raise CheckpointError(f"{where}: files is no list")
        files = tuple(File.read(file, where) for file in fields["files"])
        _apart([file.path for file in files], where)
        index = cls(files, fields["weights_sha256"], fields["beside"])
        if any(part.beside is not None for part in index.parts) != (index.beside is not None):
            raise CheckpointError(f"{where}: the approximation that parts are stored beside is not named, or needless")
        return index


def _apart(paths: list[str], where: str) -> None:
    """Raises where a path occurs twice, or is a folder of another."""
    taken = set(paths)
    folders = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
    if len(taken) != len(paths) or taken & folders:
        raise CheckpointError(f"{where}: two files are called {sorted(taken & folders)[:1] or 'the same'}")


def _are_objects(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, dict) for each in value)


def _fields(written: Any, kind: Any, where: str) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(written, dict) or set(written) != known:
        found = sorted(map(str, written)) if isinstance(written, dict) else written
        raise CheckpointError(f"{where}: fields {str(found)[:200]} where {sorted(known)} belong")
    return dict(written)
