"""Which texts were seen before, for millions of them: 8 bytes a text, where a set of Python takes 100."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

RECENT = 1 << 17  # texts in a plain set before they are sorted in with the others


class Seen:
    """A growing set of texts by 64-bit hashes: 5 million texts collide with probability 7e-7."""

    def __init__(self) -> None:
        self.recent: set[int] = set()
        self.sorted = np.empty(0, np.uint64)

    def add(self, text: str) -> bool:
        """True when the text is new."""
        key = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        if key in self.recent or self._is_sorted_in(np.uint64(key)):
            return False
        self.recent.add(key)
        if len(self.recent) >= RECENT:
            fresh = np.fromiter(self.recent, np.uint64, len(self.recent))
            self.sorted = np.concatenate([self.sorted, np.sort(fresh)])
            self.sorted.sort(kind="stable")  # merges two sorted runs
            self.recent.clear()
        return True

    def _is_sorted_in(self, key: np.uint64) -> bool:
        place = self.sorted.searchsorted(key)
        return bool(place < len(self.sorted) and self.sorted[place] == key)
