"""Sets of rows and what a row is known by, a few bytes a row: millions of questions fit."""

from __future__ import annotations

from array import array
from zlib import crc32


class Rows:
    """A set of row numbers from 0 on, a byte each."""

    def __init__(self) -> None:
        self.bits = bytearray()

    def add(self, row: int) -> None:
        if row >= len(self.bits):
            self.bits.extend(bytes(row + 1 - len(self.bits)))
        self.bits[row] = 1

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and row < len(self.bits) and self.bits[row] == 1

    def __len__(self) -> int:
        return sum(self.bits)

    @property
    def end(self) -> int:
        """One beyond the last row."""
        return len(self.bits)

    def __bool__(self) -> bool:
        return bool(self.bits)


class Ids:
    """Which question a row is, as a hash of its id; 0 where that is not known."""

    def __init__(self) -> None:
        self.hashes = array("I")

    def agree(self, row: int, identity: str) -> bool:
        """Whether the row is the question ``identity``, or nothing was known of it until now."""
        mark = crc32(identity.encode("utf-8", "surrogatepass")) or 1
        if row >= len(self.hashes):
            self.hashes.extend(bytes(row + 1 - len(self.hashes)))
        if not self.hashes[row]:
            self.hashes[row] = mark
        return self.hashes[row] == mark
