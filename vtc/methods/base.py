"""What a reduction method is: stages, the signals they need, and one pure function ``reduce``."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor, nn

from vtc.budget.spend import EQUAL, Spend
from vtc.signals.base import Signal
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import Reduction, VisionTokens


@dataclass(frozen=True)
class Stage:
    """One cut. ``layer`` is where it happens: an int is a decoder layer (0 = the decoder's input, before the first
    layer), a float a fraction of depth. With several stages, stage s keeps ``factor * count * ratio ** power`` tokens,
    one ``ratio`` for all of them, solved from the budget.

    ``freezes`` (the last stage alone): no token is dropped. Every decoder layer chooses anew by the question which of
    the tokens that are there are keys, as many as the budget says, and from ``layer`` on only the part ``running`` of
    them runs that ``reduce`` keeps. The stages before keep ``candidates`` times the budget. ``memory``: those that are
    no keys stay in the cache, and each turn chooses anew."""

    layer: int | float = 0
    power: int = 1
    factor: float = 1.0
    freezes: bool = False
    candidates: float = 1.0
    running: float = 0.0
    memory: bool = False

    def __post_init__(self) -> None:
        layer = self.layer
        number = isinstance(layer, (int, float)) and not isinstance(layer, bool)
        if not number or not layer >= 0 or (isinstance(layer, float) and layer >= 1):
            raise ValueError(
                f"layer {layer!r} is not a decoder layer; give an int >= 0 or a fraction of depth in [0, 1), like 0.25"
            )

    def index(self, layers: int) -> int:
        """The decoder layer this stage stands before, of ``layers``. A fraction above 0 is at least layer 1."""
        if isinstance(self.layer, float):
            return max(1, int(self.layer * layers + 0.5)) if self.layer > 0 else 0
        return self.layer


def depths(name: str, layers: object) -> tuple[int | float, ...]:
    """The option ``layers`` of a method with several stages; each stage checks its own."""
    if not isinstance(layers, (tuple, list)) or not layers:
        raise ValueError(f"{name}: layers={layers!r} is not a tuple of layers; give one like (8, 16, 24)")
    kinds = {isinstance(layer, float) for layer in layers}
    for layer in layers:
        Stage(layer)
    if len(kinds) > 1 or any(a >= b for a, b in zip(layers, layers[1:], strict=False)):
        raise ValueError(
            f"{name}: layers={layers!r} must increase and be all ints or all fractions of depth, like (8, 16, 24) or "
            "(0.25, 0.5, 0.75)"
        )
    return tuple(layers)


@dataclass(frozen=True)
class Method:
    """A reduction method: a frozen dataclass whose fields are its options. It never sees masks, caches or positions.

    ``reduces_keys``: rows stay, and in every layer from its one stage on the method is asked anew which keys and values
    go; the features of the tokens it sees are that layer's keys, heads side by side.

    ``share=True`` (methods at the decoder's input): each dropped token is assigned to its nearest kept one, merged by
    mean, and a row that stands for s tokens weighs s in every softmax of the decoder layers it lives in.

    ``rest``: decoder layers, counted from 0, in which its tokens rest: text runs there alone, they are no keys, come
    out as they went in, and what that saves of the budget buys more tokens for the other layers. For any method that
    drops rows.

    ``spend`` (the same methods): ``"equal"``, every picture gets the budget, or what ``vtc.calibrate_spend`` returned,
    a busy picture gets more of it than an easy one.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""  # title, arXiv id
    variants: ClassVar[str] = ""  # documented variants, e.g. what is used where a tower has no CLS token
    trains: ClassVar[bool] = False  # gradients flow through merged values
    gridded: ClassVar[bool] = False  # must know where tokens stand in their picture
    compares_frames: ClassVar[bool] = False  # and nothing else: of a still picture it keeps the first tokens
    learns: ClassVar[bool] = False  # it has parameters, made by ``build``
    skips_layers: ClassVar[bool] = False  # from its stage on some rows skip a layer, and are back in the next
    reduces_keys: ClassVar[bool] = False  # of every layer from its stage on, inside attention; all rows stay queries

    share: bool = field(default=False, kw_only=True)
    spend: str | Spend = field(default=EQUAL, kw_only=True)
    rest: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.share, bool):
            raise ValueError(f"share={self.share!r} is not a bool; give True or False")
        stages = self.stages()  # each checks its layer
        if self.share and all(stage.layer != 0 or stage.freezes for stage in stages):
            raise ValueError(
                f"{self.name}: share=True needs a stage at the decoder's input, and this method cuts only inside the "
                "decoder, where handing a cut token's share to its neighbours was measured worse than letting it go"
            )
        if self.spend != EQUAL:
            self._check_spend()
        self._check_rest()

    def _check_spend(self) -> None:
        if not isinstance(self.spend, Spend):
            raise ValueError(
                f"{self.name}: spend={self.spend!r} is not calibrated; find how much a picture needs on a few dozen "
                "prompts: spend = vtc.calibrate_spend(model, prompts, budget), and give that spend with that budget, "
                'or "equal"'
            )
        if self.stages()[0].layer != 0 or any(isinstance(signal, TowerGroups) for signal in self.signals(0)):
            raise ValueError(
                f"{self.name}: spend needs a first cut at the decoder's input, where the need of a picture is known, "
                'and this method cuts elsewhere; leave it at "equal", or use a method such as divprune'
            )

    def _check_rest(self) -> None:
        given = self.rest
        layers = isinstance(given, (tuple, list)) and all(type(n) is int and n >= 0 for n in given)
        if not layers or list(given) != sorted(set(given)):
            raise ValueError(f"{self.name}: rest={given!r} are not decoder layers in order; give some like (1, 2)")
        if given and (self.reduces_keys or self.skips_layers):
            raise ValueError(f"{self.name}: rest={given!r} is for methods that drop rows, and all of its rows stay")
        object.__setattr__(self, "rest", tuple(given))

    @property
    def module(self) -> nn.Module | None:
        """What ``build`` made for the model that is patched; None before, and of a method that learns nothing."""
        return self.__dict__.get("_module")

    def build(self, model: nn.Module) -> nn.Module | None:
        """A learned method's parameters for this model, which the patch owns, or None. Of the method itself: until
        they are trained it does something that works."""
        return None

    def bound(self, module: nn.Module | None) -> Self:
        """This method with ``module`` as its learned part: the same options, equal to it."""
        out = copy.copy(self)
        object.__setattr__(out, "_module", module)
        return out

    def stages(self) -> tuple[Stage, ...]:
        """Where it cuts, in order of depth."""
        return (Stage(0),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        """What ``reduce`` must see at that stage; each is one value (or vector) per token."""
        return ()

    @property
    def freezes(self) -> bool:
        """Whether every layer chooses its keys anew, of tokens that stop running in some layer."""
        return any(stage.freezes for stage in self.stages())

    def need(self, tokens: VisionTokens, signals: dict[Signal, Tensor]) -> Tensor:
        """``[I]``: how many keys each picture needs in this layer, in any unit: layers share the budget by it. Asked
        of methods that reduce keys."""
        return tokens.valid.any(dim=1).float()

    def in_layer(self, layer: int) -> Self:
        """This method as it works in the n-th of the layers from its stage on. Asked of methods that reduce keys or
        skip layers, as the next two are."""
        return self

    def weights(self, layers: int) -> list[float]:
        """The shares of the budget that those layers start from, in any unit."""
        return [1.0] * layers

    def gates(self, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Tensor:
        """``[I, N]``, differentiable: how much each key is meant to stay, where that is learned."""
        raise TypeError(f"{type(self).__name__} does not define gates(tokens, signals, keep)")

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        """Reduce each picture i to exactly ``keep[i] <= tokens.count[i]`` slots.

        Called only when some picture must shrink, and without gradients: those of a learned method flow through
        ``Reduction.refine``. Pure, deterministic, batched over the pictures.
        """
        raise TypeError(f"{type(self).__name__} does not define reduce(stage, tokens, signals, keep)")
