"""Changes to a model that can be taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Edits:
    """Attributes and modules that were set anew, and what undoes it. ``resized``: linear layers of another size than
    the model's config says."""

    def __init__(self) -> None:
        self.resized: list[nn.Module] = []
        self._undo: list[Callable[[], Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """``owner.name = value``, for modules, configs and modules inside modules alike."""
        older = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, older))
        setattr(owner, name, value)

    def when_undone(self, call: Callable[[], Any]) -> None:
        """Undo something else by ``call``."""
        self._undo.append(call)

    def undo(self) -> None:
        """Take everything back, the latest first."""
        while self._undo:
            self._undo.pop()()
