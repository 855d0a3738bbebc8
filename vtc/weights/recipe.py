"""What to do to the weights: a list of passes, which layers, and how vision and text tokens are weighed.

As a name (``"int4"``), as text (``"sparsegpt:pattern=2:4|gptq:bits=4"``), as a dict, or as a JSON or YAML file::

    passes:
      - {pass: gptq, bits: 4, group: 128}
      - {pass: svdllm, rank: 8}
    include: [decoder]
    skip: ['layers\\.0\\.']
    buckets: balanced
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vtc.errors import VTCError, WeightsError
from vtc.files.strict import read_json, read_yaml
from vtc.weights.calibration.token_weighting import WAYS
from vtc.weights.passes import registry
from vtc.weights.passes._structure import StructuredPass
from vtc.weights.passes.base import Pass
from vtc.weights.select import PARTS

NAMED = {
    "int8": "rtn:bits=8:group=128",
    "int4": "gptq:bits=4:group=128",
    "int3": "gptq:bits=3:group=128",
    "2:4": "sparsegpt:pattern=2/4",
    "2:4-int4": "sparsegpt:pattern=2/4:bits=4",
}


@dataclass(frozen=True)
class Recipe:
    """passes: in order, each fits its term to what the ones before left; include: parts of the model; skip: regular
    expressions on layers' names; buckets: how vision and text tokens are weighed in the calibration, see
    ``vtc.weights.balance.weigher``; by_layer: other passes for
    the layers named here (what an allocation chose); where ``passes`` is empty the others stay as they are; source: the
    file it was read from, for errors."""

    passes: tuple[Pass, ...]
    include: tuple[str, ...] = ("decoder",)
    skip: tuple[str, ...] = ()
    buckets: str | tuple[float, float] = "balanced"
    by_layer: tuple[tuple[str, tuple[Pass, ...]], ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.every:
            raise WeightsError("a recipe needs at least one pass, like gptq:bits=4")
        if self.structured != self.passes[: len(self.structured)]:
            raise WeightsError(f"{self.structured[-1].name} changes the structure; write it before the other passes")
        if any(isinstance(p, StructuredPass) for _, chain in self.by_layer for p in chain):
            raise WeightsError("by_layer holds a pass over the structure of the decoder; write it under passes")
        if self.structured and "decoder" not in self.include:
            raise WeightsError(f"{self.structured[0].name} changes the decoder; add decoder to include")
        for part in self.include:
            if part not in PARTS:
                raise WeightsError(f"include: there is no part {part!r}; there are: {', '.join(PARTS)}")
        for pattern in self.skip:
            try:
                re.compile(pattern)
            except re.error as error:
                raise WeightsError(f"skip: {pattern!r} is no regular expression ({error})") from None
        if isinstance(self.buckets, str):
            if self.buckets not in WAYS:
                raise WeightsError(f"buckets is one of {', '.join(WAYS)} or two weights, not {self.buckets!r}")
        elif len(self.buckets) != 2 or min(self.buckets) < 0 or not sum(self.buckets) > 0:
            raise WeightsError(f"buckets needs two weights, vision and text, not both 0; it is {self.buckets!r}")

    @property
    def structured(self) -> tuple[StructuredPass, ...]:
        """The passes over the structure of the decoder; they come first."""
        return tuple(p for p in self.passes if isinstance(p, StructuredPass))

    @property
    def fitted(self) -> tuple[Pass, ...]:
        """The passes that are fitted to one layer after the other."""
        return self.passes[len(self.structured) :]

    @property
    def every(self) -> tuple[Pass, ...]:
        """The passes for all layers and those for some."""
        return (*self.passes, *(p for _, chain in self.by_layer for p in chain))

    @property
    def needs_gram(self) -> bool:
        return any(p.needs_gram for p in self.every)

    def told(self, error: Exception) -> WeightsError:
        """``error``, which a model brought out, with the file of the recipe."""
        return WeightsError(f"{self.source}: {error}" if self.source else str(error))

    def passes_for(self, name: str) -> tuple[Pass, ...]:
        """The passes that are fitted to the layer called ``name``."""
        return dict(self.by_layer).get(name, self.fitted)

    @classmethod
    def of(cls, given: Any) -> Recipe:
        """A recipe from what a user writes. Raises ``WeightsError`` (or ``UnknownName`` for a pass)."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Pass):
            return cls((given,))
        if isinstance(given, dict):
            return cls(**_checked(given))
        if isinstance(given, (list, tuple)):
            return cls(tuple(_pass(entry) for entry in given))
        if isinstance(given, os.PathLike) or str(given).endswith((".yaml", ".yml", ".json")):
            return cls.in_file(Path(given))
        if isinstance(given, str):
            return cls(chain(given))
        raise WeightsError(f"a recipe is a name, a text, a dict, a file or passes; got a {type(given).__name__}")

    @classmethod
    def in_file(cls, path: Path) -> Recipe:
        """The recipe in a YAML or JSON file. Raises ``WeightsError``, with the file's name."""
        try:
            found = read_json(path) if path.suffix == ".json" else read_yaml(path)
            return replace(cls(chain(found)) if isinstance(found, str) else cls.of(found), source=str(path))
        except FileNotFoundError:
            raise WeightsError(f"recipe {path} is not there; give a YAML or JSON file, or a name like int4") from None
        except VTCError as error:
            where = "" if str(path) in str(error) else f"{path}: "
            raise WeightsError(f"recipe {where}{error}") from error

    def written(self) -> dict[str, Any]:
        """As JSON holds it; ``Recipe.of`` reads it back."""
        passes = [_written(p) for p in self.passes]
        buckets = self.buckets if isinstance(self.buckets, str) else list(self.buckets)
        found = {"passes": passes, "include": list(self.include), "skip": list(self.skip), "buckets": buckets}
        return found | (
            {"by_layer": {name: [_written(p) for p in c] for name, c in self.by_layer}} if self.by_layer else {}
        )


def chain(text: str) -> tuple[Pass, ...]:
    """The passes that a name or text like ``"sparsegpt|gptq:bits=4"`` spells."""
    return tuple(_pass(part) for part in NAMED.get(text, text).split("|"))


def _written(p: Pass) -> dict[str, Any]:
    return {"pass": p.name, **dataclasses.asdict(p)}


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(Recipe) if f.compare]
    _refuse_unknown("recipe", given, known)
    if not isinstance(given.get("passes"), list):
        raise WeightsError("a recipe needs 'passes', a list")
    fields: dict[str, Any] = {"passes": tuple(_pass(entry) for entry in given["passes"])}
    for name in ("include", "skip"):
        if name in given:
            fields[name] = _texts(name, given[name])
    if "buckets" in given:
        value = given["buckets"]
        pair = isinstance(value, list | tuple) and all(type(each) in (int, float) for each in value)
        if not pair and not isinstance(value, str):
            raise WeightsError(f"buckets is one of {', '.join(WAYS)} or two weights, not {value!r}")
        fields["buckets"] = tuple(value) if pair else value
    if "by_layer" in given:
        layers = given["by_layer"]
        if not isinstance(layers, dict) or not all(isinstance(entries, list) for entries in layers.values()):
            raise WeightsError("by_layer gives a list of passes for each layer by its name")
        fields["by_layer"] = tuple((name, tuple(_pass(entry) for entry in chain)) for name, chain in layers.items())
    return fields


def _texts(name: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        raise WeightsError(f"{name} is a list of texts, not {value!r}")
    return tuple(found)


def _pass(entry: Any) -> Pass:
    if isinstance(entry, Pass):
        return entry
    if isinstance(entry, str):
        name, *pairs = entry.strip().split(":")
        options = dict(_pair(entry, pair) for pair in pairs)
    elif isinstance(entry, dict) and isinstance(entry.get("pass"), str):
        options = {key: value for key, value in entry.items() if key != "pass"}
        name = entry["pass"]
    else:
        raise WeightsError(f"a pass is written like gptq:bits=4 or {{pass: gptq, bits: 4}}, not {entry!r}")
    make = registry[name]
    _refuse_unknown(f"pass {name}", options, [f.name for f in dataclasses.fields(make) if f.init])
    try:
        return make(**options)
    except (TypeError, OverflowError) as error:
        raise WeightsError(f"pass {name}: {error}") from None


def _pair(entry: str, pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise WeightsError(f"pass {entry!r}: {pair!r} is not option=value")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value.replace("/", ":")  # a colon separates options, so a pattern is written 2/4


def _refuse_unknown(what: str, given: dict[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise WeightsError(f"{what} has no field {key!r}; {hint}")
