"""Several fine-tunings over one model in memory, one of them in use at a time::

    deltas = Deltas(base)
    deltas.add("medical", "out/medical")
    with deltas.using("medical"):
        base.generate(**inputs)

What is not in use costs its packed bytes and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from vtc.errors import UnknownName, WeightsError
from vtc.weights.deltas.delta import Change, Delta, check_base, check_names, parameters_sha256
from vtc.weights.deltas.folder import load


class Deltas:
    """Deltas over one ``model``, at most one of them in use; the only owner of what they change. With none in use the
    model is untouched."""

    def __init__(self, model: nn.Module):
        self.model, self.sha256 = model, parameters_sha256(model)
        self.current: str | None = None
        self._deltas: dict[str, Delta] = {}
        self._undo: list[Callable[[], Any]] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    @property
    def bytes(self) -> int:
        """Held by all deltas together, beside the base."""
        return sum(delta.bytes for delta in self._deltas.values())

    def add(self, name: str, delta: Delta | str | os.PathLike) -> None:
        """Hold a delta, or the one saved in a folder, as ``name``. Raises ``CheckpointError`` for another base."""
        if name in self._deltas:
            raise WeightsError(f"there is a delta {name!r} already; give another name")
        delta = delta if isinstance(delta, Delta) else load(delta)
        check_base(delta, self.sha256)
        check_names(delta, self.model)
        weight_of = lambda layer: self.model.get_parameter(f"{layer}.weight")  # noqa: E731
        layers = {layer: change.to(weight_of(layer).device) for layer, change in delta.layers.items()}
        whole = {key: tensor.to(self.model.get_parameter(key).device) for key, tensor in delta.whole.items()}
        self._deltas[name] = Delta(delta.base, delta.base_sha256, delta.recipe, layers, whole)

    def use(self, name: str | None) -> None:
        """Answer as the delta ``name`` says, None: as the base. Raises ``UnknownName``."""
        if name is not None and name not in self._deltas:
            raise UnknownName(f"no delta is called {name!r}; there are: {', '.join(self._deltas) or 'none'}")
        while self._undo:
            self._undo.pop()()
        self.current = name
        if name is None:
            return
        for layer, change in self._deltas[name].layers.items():
            hook = partial(_add, change)
            self._undo.append(self.model.get_submodule(layer).register_forward_hook(hook, prepend=True).remove)
        for key, tensor in self._deltas[name].whole.items():
            parameter = self.model.get_parameter(key)
            self._undo.append(partial(setattr, parameter, "data", parameter.data))
            parameter.data = tensor

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """``use`` inside, and after it what was in use before."""
        before = self.current
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def remove(self) -> None:
        """Leave the model as it was found, and hold nothing more."""
        self.use(None)
        self._deltas.clear()


def _add(change: Change, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + change.product(args[0])
