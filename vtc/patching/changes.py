"""What is changed on a model's modules, and how each change is undone."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from vtc.errors import VTCError


class Borrowed:
    """In place of ``call``, which it does not keep alive: a module that held its patch would hold itself, and its
    weights would outlast the last reference to the model until the garbage collector runs."""

    def __init__(self, call: Callable[..., Any]):
        self._call = weakref.ref(call)
        self.__name__ = getattr(call, "__name__", type(call).__name__)
        self.__doc__ = call.__doc__
        self.__signature__ = inspect.signature(call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._call()
        if call is None:
            raise VTCError(f"this {self.__name__} belongs to a patch that is gone; take it from the model again")
        return call(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_copies(protocol)


def refuse_copies(protocol: Any) -> None:
    """In place of ``__reduce_ex__``, which copies and pickles ask for."""
    raise VTCError(
        "a patched model can be neither copied nor pickled (torch.save, multiprocessing), as its layers call what one "
        "patch of one model owns; keep it with vtc.save(model, folder), or vtc.unpatch it and patch the copy"
    )


class Changes:
    """Changes to modules, undone the latest first. Owns every call that it lends to a module."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._lent: list[Callable[..., Any]] = []

    def lend(self, call: Callable[..., Any]) -> Borrowed:
        """``call`` for a module to hold while the changes last."""
        self._lent.append(call)
        return Borrowed(call)

    def replace(self, module: nn.Module, name: str, call: Callable[..., Any]) -> None:
        """Shadow a method of one module; undone by taking the shadow away (or putting an older one back)."""
        older, of = module.__dict__.get(name), weakref.ref(module)
        object.__setattr__(module, name, self.lend(call))

        def undo() -> None:
            if older is None:
                of().__dict__.pop(name, None)
            else:
                object.__setattr__(of(), name, older)

        self.undone_by(undo)

    def undone_by(self, undo: Callable[[], Any]) -> None:
        """Something else was changed; ``undo`` must not hold the model whose patch these changes are."""
        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._lent.clear()


def method_of(module: nn.Module, name: str) -> Callable[..., Any]:
    """``module.name``, to be called in its place by what shadows it; does not keep the module alive."""
    older = module.__dict__.get(name)
    if older is not None:
        return older
    of, function = weakref.ref(module), getattr(type(module), name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(of(), *args, **kwargs)

    del call.__wrapped__  # type: ignore[attr-defined]  # it names ``self``, too
    call.__signature__ = inspect.signature(getattr(module, name))  # type: ignore[attr-defined]
    return call
