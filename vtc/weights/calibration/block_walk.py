"""Block by block through the decoder: what its linear layers see, with the errors of the blocks before carried along.

The model's own forward runs every time, so whatever patch it carries runs too; decoder layers that are done give back
what they gave before, and the forward stops after the block that is asked for. Only one block's statistics and one set
of states ``[B, N, D]`` an example are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.patching.api import patch_of
from vtc.weights.fitting.gram import Gram

Example = dict[str, Any]
Buckets = dict[str, Gram]  # "vision" and "text"


class _Stop(Exception):
    """The block that was asked for has run."""


class Walk:
    """The decoder blocks of ``model`` on calibration ``examples`` as the processor makes them; padding is left out."""

    def __init__(self, model: nn.Module, examples: Iterable[Example]):
        self.model, self.examples = model, list(examples)
        if not self.examples:
            raise WeightsError(
                "calibration is empty; give a few dozen prompts with pictures, as the processor makes them"
            )
        self.family, self.patch = family_of(model), patch_of(model)
        self.outputs: list[Any] = [None] * len(self.examples)
        self.done = 0  # blocks whose outputs are held

    @property
    def depth(self) -> int:
        return len(self.family.layers)

    @torch.no_grad()
    def see(self, block: int | str, linears: dict[str, nn.Module]) -> dict[str, Buckets]:
        """What each of the ``linears`` sees, vision and text tokens apart; layers with one input share it. block: the
        decoder layer they stand in, or "before" (all that a vision tower and projector see is vision) or "after"."""
        if isinstance(block, str):
            return self._see_outside(0 if block == "before" else self.depth - 1, block == "after", linears)
        recorder = Recorder(linears)
        for n in range(len(self.examples)):
            with recorder.on():
                recorder.labels = partial(self.labels, n, block)  # known once the block's forward has begun
                self._run(n, block)
        return recorder.found()

    def _see_outside(self, block: int, to_the_end: bool, linears: dict[str, nn.Module]) -> dict[str, Buckets]:
        found: dict[str, Buckets] = {}
        for some in portions(linears):
            recorder = Recorder(some)
            for n in range(len(self.examples)):
                with recorder.on():
                    recorder.labels = partial(self.rows, n) if to_the_end else None
                    self._run(n, None if to_the_end else block)
            found |= recorder.found()
        return found

    @torch.no_grad()
    def next_logits(self) -> list[Tensor]:
        """``[B, V]`` of each example: the next token's. Those of all rows are freed before the next example runs."""
        return [self.forward(n).logits[:, -1].clone() for n in range(len(self.examples))]

    @torch.no_grad()
    def step(self, block: int) -> None:
        """Hold what ``block`` gives now; the blocks after it will see that."""
        self.outputs = [self._run(n, block) for n in range(len(self.examples))]
        self.done = block + 1

    def forward(self, n: int) -> Any:
        """Run example ``n`` to the end; the model's output."""
        return self._run(n, None)

    def _run(self, n: int, block: int | None) -> Any:
        """Run example ``n`` until ``block`` has run (None: to the end); its output."""
        got: list[Any] = []
        with self._shadowed(n, block, got):
            try:
                got.append(self.model(**{**self.examples[n], "use_cache": False}))
            except _Stop:
                pass
        return got[0]

    @contextmanager
    def _shadowed(self, n: int, block: int | None, got: list[Any]):
        """Blocks that are done replay, ``block`` runs and stops the forward."""
        changed: list[tuple[nn.Module, Any]] = []

        def shadow(layer: nn.Module, forward: Callable) -> None:
            changed.append((layer, layer.__dict__.get("forward")))
            object.__setattr__(layer, "forward", forward)

        first = self._first_replayed()
        try:
            for index in range(first, self.done):
                last = index == self.done - 1
                shadow(
                    self.family.layers[index], lambda *args, last=last, **kwargs: self._replay(n, last, args, kwargs)
                )
            if block is not None:
                run = self.family.layers[block].forward

                def stop(*args: Any, **kwargs: Any) -> None:
                    got.append(run(*args, **kwargs))
                    raise _Stop

                shadow(self.family.layers[block], stop)
            yield
        finally:
            for layer, older in reversed(changed):
                if older is None:
                    layer.__dict__.pop("forward", None)
                else:
                    object.__setattr__(layer, "forward", older)

    def _replay(self, n: int, last: bool, args: tuple, kwargs: dict[str, Any]) -> Any:
        held = self.outputs[n]
        if last:
            return held
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *held[1:]) if isinstance(held, tuple) else states

    def _first_replayed(self) -> int:
        """Layers before this one run every time: there a patch makes its cuts from what they compute, and leaves and
        takes up full-length states."""
        if self.patch is None:
            return 0
        engine = self.patch.engine
        between = 0 if engine.current is None else engine.current.between
        return self.depth if engine.keys or engine.router or engine.method.rest else 1 + max(*engine.stage_at, between)

    def rows(self, n: int) -> Tensor:
        """``[B, N]`` int8 of the rows of example n: 0 padding, 1 text, 2 vision."""
        ids = self.examples[n].get("input_ids")
        if ids is None:
            raise WeightsError("a calibration example has no input_ids; give what the processor makes")
        label = torch.ones_like(ids, dtype=torch.int8)
        for token in self.family.token_ids.values():
            label[ids == token] = 2
        mask = self.examples[n].get("attention_mask")
        return label if mask is None else label * mask.to(torch.int8)

    def labels(self, n: int, block: int) -> Tensor:
        """``[B, N']`` int8: the same of the rows the block runs on, which a patch may have made fewer."""
        label = self.rows(n)
        current = None if self.patch is None else self.patch.engine.current
        plan = None if current is None else current.plans.get(block)
        cut = plan and (plan.runs or plan.rows)
        if not cut:
            return label
        label = label.gather(1, cut.rows.to(label.device))
        return label if cut.valid is None else label * cut.valid.to(label)


class Recorder:
    """Hooks on linear layers that sum up their inputs; the only owner of those hooks."""

    def __init__(self, linears: dict[str, nn.Module]):
        self.linears = linears
        self.shared: dict[str, str] = {}  # layer -> the layer whose input is the same
        self.grams: dict[str, Buckets] = {}
        self.labels: Callable[[], Tensor] | None = None  # None: all rows are vision
        self._seen: list[tuple[str, Tensor]] = []

    @contextmanager
    def on(self):
        """Hooks are there inside, and gone after."""
        self._seen = []
        handles = [
            module.register_forward_pre_hook(lambda module, args, name=name: self._hear(name, args[0]))
            for name, module in self.linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen = []

    def _hear(self, name: str, x: Tensor) -> None:
        owner = next((other for other, seen in self._seen if seen is x), None)
        if owner is None:
            self._seen.append((name, x))
            owner = name
        if self.shared.setdefault(name, owner) != name:
            return
        buckets = self.grams.setdefault(name, {kind: Gram.empty(x.shape[-1], x.device) for kind in ("vision", "text")})
        rows = x.reshape(-1, x.shape[-1])
        if self.labels is None:
            buckets["vision"].add(rows)
            return
        label = self.labels().flatten().to(x.device)
        if len(rows) != len(label):
            raise WeightsError(
                f"{name} runs on {len(rows)} rows where its decoder layer has {len(label)}, so that vision and text "
                "cannot be told apart; skip it"
            )
        buckets["vision"].add(rows[label == 2])
        buckets["text"].add(rows[label == 1])

    def found(self) -> dict[str, Buckets]:
        """The buckets of every layer. Raises ``WeightsError`` for one that never ran."""
        silent = [name for name in self.linears if name not in self.shared]
        if silent:
            raise WeightsError(
                f"{silent[0]} did not run on any calibration example; skip it, or add examples that reach it"
            )
        return {name: self.grams[self.shared[name]] for name in self.linears}


def portions(linears: dict[str, nn.Module], limit: int = 2**30) -> list[dict[str, nn.Module]]:
    """The layers in portions whose moments take at most ``limit`` bytes together, or one layer."""
    found: list[dict[str, nn.Module]] = [{}]
    held = 0
    for name, linear in linears.items():
        size = 4 * int(linear.in_features) ** 2  # type: ignore[arg-type]
        if found[-1] and held + size > limit:
            found.append({})
            held = 0
        found[-1][name] = linear
        held += size
    return found
