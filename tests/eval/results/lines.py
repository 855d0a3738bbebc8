"""Lines of results files for tests."""

from __future__ import annotations

from typing import Any


def answer(cell: str, row: int, batch: int = 0, **more: Any) -> dict[str, Any]:
    """A whole line of an answered question."""
    said = {"answer": "red", "expected": ["red"], "score": 1.0, "tokens": 4.0, "confidence": 0.5}
    place = {"cell": cell, "batch": batch, "row": row, "id": str(row), "type": "color", "group": ""}
    return place | said | more


def error(cell: str, row: int, batch: int = 0, **more: Any) -> dict[str, Any]:
    """A whole line of a question that failed."""
    place = {"cell": cell, "batch": batch, "row": row, "id": str(row), "type": "color", "group": ""}
    return place | {"error": f"q.jsonl:{row + 1}: broken"} | more


def closed(cell: str, batch: int = 0, **more: Any) -> dict[str, Any]:
    """A whole line of a cell that cannot be run."""
    return {"cell": cell, "batch": batch, "closed": "too few tokens", "least": 37} | more
