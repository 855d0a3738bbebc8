"""Named things found lazily: one file and one decorator make an entry, no list elsewhere."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from vtc.errors import UnknownName

T = TypeVar("T")


def handed_on(package: str, names: dict[str, str], modules: dict[str, str]) -> tuple[Callable, Callable]:
    """``__getattr__`` and ``__dir__`` of a package's face: ``names`` (name -> module that defines it) and ``modules``
    (name -> module), relative to ``package``, are imported on first use."""

    def __getattr__(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{modules[name]}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join([*names, *modules])}")

    return __getattr__, lambda: sorted({*vars(sys.modules[package]), *names, *modules})


class Registry(Generic[T]):
    """Entries registered by decorator in the modules of ``package``, imported on first use.

    ``kind`` is the word for error messages; ``group`` names an entry-point group for third parties (an entry point
    loads a module whose import registers the entry).
    """

    def __init__(self, kind: str, package: str, group: str | None = None):
        self.kind, self.package, self.group = kind, package, group
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: ``@registry.register("name")``. Raises ``ValueError`` when another entry has the name."""

        def add(entry: T) -> T:
            taken = self._entries.get(name)
            same = getattr(taken, "__qualname__", None) == getattr(entry, "__qualname__", object())
            if taken is not None and not same:
                raise ValueError(f"{self.kind} {name!r} is already registered by {taken!r}; choose another name")
            self._entries[name] = entry
            return entry

        return add

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            if not module.startswith("_"):
                importlib.import_module(f"{self.package}.{module}")
        if self.group:
            for point in entry_points(group=self.group):
                point.load()

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"there are: {', '.join(sorted(self._entries))}"
        )
        raise UnknownName(f"no {self.kind} is called {name!r}; {hint}")

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)

    def by_class(self) -> tuple[Callable, Callable]:
        """``__getattr__`` and ``__dir__`` of the entries' package: each class under its own name, ``FastV``."""

        def classes() -> dict[str, T]:
            return {getattr(entry, "__name__", name): entry for name, entry in self.items()}

        def __getattr__(name: str) -> T:
            found = {} if name.startswith("_") else classes()  # private names are asked for while entries are imported
            if name not in found:
                raise AttributeError(f"{self.package} has no {name!r}; there are {', '.join(found)}")
            return found[name]

        return __getattr__, lambda: sorted({*vars(sys.modules[self.package]), *classes()})

    def items(self) -> list[tuple[str, T]]:
        self._discover()
        return sorted(self._entries.items())
