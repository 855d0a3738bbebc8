"""The built-in testbed: pictures drawn from a seed, one-hop and two-hop questions about small objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.benchmarks import register
from vtc.eval.benchmarks.base import Benchmark, Sample


@register("scenes")
@dataclass(frozen=True)
class Scenes(Benchmark):
    """``limit`` questions (1,000 unless told otherwise) of a split, all types."""

    name: ClassVar[str] = "scenes"
    max_new_tokens: ClassVar[int] = 4
    splits: ClassVar[tuple[str, ...]] = ("test", "dev")

    def count(self) -> int:
        return 1000 if self.limit is None else self.limit

    def samples(self) -> Iterator[Sample]:
        from vtc.eval import scenes

        for s in scenes.samples(self.split, self.count(), seed=self.seed):
            group = "two-hop" if s.hops > 1 else "one-hop"
            where = f"scenes:{self.split}:{s.id}"
            yield Sample(str(s.id), s.question, (s.answer,), (s.image,), s.type, group, where)
