"""Methods as people spell them: ``name[:option=value ...][+flag ...]``, several one after the other with a slash.

``visionzip``, ``divprune+share``, ``fastv:layer=3``, ``divprune+share/fastv:layer=2``, ``my_module:MyMethod:part=0.5``.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
from dataclasses import fields, replace
from typing import Any

from vtc.budget.spend import Spend
from vtc.errors import UnknownName, VTCError
from vtc.methods import registry
from vtc.methods.base import Method


def build(spec: str, **options: Any) -> Method:
    """The method that ``spec`` spells; ``options`` go to it, too. Raises ``VTCError``, ``UnknownName``."""
    if "/" in spec:
        return make(registry["combined"], spec, {"methods": tuple(build(part) for part in spec.split("/")), **options})
    head, *flags = spec.strip().split("+")
    name, *pairs = head.split(":")
    if pairs and "=" not in pairs[0] and pairs[0].isidentifier() and not ours(name):
        kind = imported(name, pairs.pop(0))
    else:
        kind = registry[name]
    spelled: dict[str, Any] = dict.fromkeys(flags, True)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise VTCError(f"method {spec!r}: {pair!r} is not option=value; write {name}:option=value, or {name}+flag")
        spelled[key] = literal(value)
    return make(kind, spec, {**spelled, **options})


def make(kind: type[Method], spec: str, options: dict[str, Any]) -> Method:
    """A method of ``kind``, spelled ``spec``; errors name what a user may set."""
    known = [f.name for f in fields(kind) if f.init]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise UnknownName(f"method {kind.name or kind.__name__!r} has no option {key!r}; {hint}")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise VTCError(f"method {spec!r}: {error}; see vtc methods") from None


def spell(method: Method) -> str:
    """The text that ``build`` makes such a method of, without options that are at their defaults."""
    parts = getattr(method, "methods", None)
    if isinstance(parts, tuple):
        first, *others = parts  # what is given to all of them together, the first may be given
        own = {f.name: getattr(method, f.name) for f in fields(Method) if getattr(method, f.name) != f.default}
        return "/".join(map(spell, (replace(first, **own), *others)))
    changed = [(f.name, getattr(method, f.name)) for f in fields(method) if getattr(method, f.name) != f.default]
    options = [f"{name}={shown(value)}" for name, value in changed if value is not True]
    flags = [name for name, value in changed if value is True]
    return "+".join([":".join([method.name or type(method).__name__, *options]), *flags])


def shown(value: Any) -> str:
    """An option's value, as ``literal`` reads it where it can be typed."""
    if isinstance(value, Spend):
        return "by need"
    try:
        return json.dumps(value, separators=(",", ":"))
    except TypeError:
        return str(value)


def literal(text: str) -> Any:
    """``3``, ``0.5``, ``true`` as JSON reads them; anything else is a text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text


def ours(name: str) -> bool:
    """Whether a method is registered by this name, and not by a module of the same name that a spec may mean."""
    return name in registry and registry[name].__module__.partition(".")[0] != name


def imported(module: str, name: str) -> type[Method]:
    """A method of somebody's own, ``module:Class``, from what is installed or the present folder."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UnknownName(
            f"module {module!r} cannot be imported ({error}); install it, or start where it lies"
        ) from None
    finally:
        sys.path.remove(here)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UnknownName(f"{module}:{name} is no class of a method; give a subclass of vtc.methods.Method")
    return found
