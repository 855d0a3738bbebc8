"""A tiny model, and questions about small pictures, for the tests of the runner."""

from __future__ import annotations

import json

import pytest

from tests.eval.tiny import picture, tiny_llava, tiny_processor


@pytest.fixture(scope="session")
def vlm():
    """(model, processor), random."""
    return tiny_llava(), tiny_processor()


@pytest.fixture
def rows():
    """Twelve rows of a jsonl file, with pictures 0.png to 2.png."""
    return [
        {
            "id": f"q{n}",
            "image": f"{n % 3}.png",
            "question": ("what is the color ?", "is the shape left ?")[n % 2],
            "answer": ["red", "yes"] if n % 4 else "blue",
            "type": ("color", "place")[n % 2],
        }
        for n in range(12)
    ]


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows (dicts, or lines as bytes) beside three pictures; returns the file."""

    def write(rows):
        for n in range(3):
            picture(n).save(tmp_path / f"{n}.png")
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "q.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return tmp_path / "q.jsonl"

    return write
