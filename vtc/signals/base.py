"""What a signal is: where the model is hooked, what is kept of it there, and how that becomes a value per token.

A new signal is one file: a frozen dataclass, a subclass of ``Signal``. It never changes the model: ``hook`` names a
place, the engine puts the hook there, hands ``capture`` each attention call and keeps what it returns until ``read``
asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vtc.tokens import VisionTokens


@dataclass(frozen=True)
class TowerHook:
    """The attention of one layer of the vision tower. Negative layers count from the end (-2: the one whose output
    LLaVA reads), a float is a fraction of the tower's depth."""

    layer: int | float

    def __post_init__(self) -> None:
        layer = self.layer
        if isinstance(layer, bool) or not (isinstance(layer, int) or (isinstance(layer, float) and 0 <= layer < 1)):
            raise ValueError(
                f"layer {layer!r} is not a tower layer; give an int (negative: from the end) or a fraction of depth in "
                "[0, 1), like 0.25"
            )


@dataclass(frozen=True)
class DecoderHook:
    """The attention of one decoder layer, counted from 0."""

    layer: int


@dataclass(frozen=True)
class TowerCall:
    """One attention call of a hooked tower layer, of T pictures, tiles or windows (a call that packs several windows
    side by side comes window by window).

    q ``[T, H, n, d]``, k ``[T, Hk, n, d]``; mask: None, or ``[T, 1, n, n]``, bool or additive, where it parts pictures;
    cls: how many special tokens lead each sequence, the CLS token first (0: there is none).
    """

    q: Tensor
    k: Tensor
    mask: Tensor | None
    scale: float
    cls: int


@dataclass(frozen=True)
class DecoderCall:
    """One attention call of a hooked decoder layer, in a forward whose pictures must shrink.

    q ``[B, H, n, d]``: the n rows that run; k ``[B, Hk, m, d]``: cached keys first, then those of the same n rows.
    rows ``[B, n]``: where these rows stand in their prompts; last ``[B]``: which of the n is the prompt's last.
    bias(row ``[B, R]``) -> ``[B, R, m]``: what some of the n rows add to their logits, -inf where they see nothing.
    at_input: what the signal's own ``at_input`` made of this forward (empty where it was not asked).
    """

    q: Tensor
    k: Tensor
    scale: float
    rows: Tensor
    last: Tensor
    length: int  # rows of the whole prompt
    bias: Callable[[Tensor], Tensor]
    at_input: Tensor


@dataclass(frozen=True)
class TextRows:
    """The rows of B prompts that are no vision tokens. row ``[B, T]``: where they stand in their prompts; place ``[B,
    T]``: in the states; valid ``[B, T]`` bool or None (all); count: how many are valid, by prompt."""

    row: Tensor
    place: Tensor
    valid: Tensor | None
    count: list[int]


class View(Protocol):
    """What a stage sees of one forward, before a decoder layer (0: the decoder's input)."""

    layer: int
    tokens: VisionTokens  # the vision tokens that are left, [I, N]; ``tokens.prompt [I]`` is each picture's prompt

    @property
    def states(self) -> Tensor:
        """``[B, n, D]``: the hidden states that enter the layer."""

    @property
    def position(self) -> Tensor:
        """``[I, N]``: where the tokens stand in the states (0 in padding)."""

    @property
    def last(self) -> Tensor:
        """``[B]``: where each prompt's last row stands in the states. A prompt ends before the first label that is
        learned, and before what was drafted for it."""

    @property
    def text(self) -> TextRows:
        """The prompts' text rows that are left (none behind a prompt's end)."""

    @property
    def picture_end(self) -> Tensor:
        """``[I]``: the row of each picture's last token in its prompt, whether it is left or not."""

    def captured(self, signal: Signal) -> Tensor:
        """What ``capture`` kept for ``signal`` at its decoder hook, on the states' device. A hook in the very layer
        that comes is reached by running that layer up to its attention. Raises ``NotReduced`` where nothing was
        kept."""

    def tower(self, signal: Signal) -> Tensor:
        """``[I, N]`` or ``[I, N, d]``: what was kept at a tower hook, brought from patches to tokens, 0 in padding."""


@dataclass(frozen=True)
class Signal:
    """One thing a method can ask to see; equal instances are one signal. A subclass says how ``read`` is shaped."""

    per_picture: ClassVar[bool] = False  # ``read`` gives a picture's value and not its tokens'
    asks: ClassVar[bool] = False  # it depends on the words behind a picture
    sees_input: ClassVar[bool] = False  # ``at_input`` is to be asked
    received: ClassVar[bool] = (
        False  # a mean over the rows of its window: windows of different sizes are made to compare
    )

    def words(self) -> str:
        """The signal in two or three words, for tables."""
        return type(self).__name__

    def hook(self, stage: int) -> TowerHook | DecoderHook | None:
        """Where it is captured for a stage before decoder layer ``stage``; None: ``read`` needs nothing captured."""
        return None

    @property
    def source(self) -> Signal:
        """The signal whose capture this one reads: itself, unless several read the same."""
        return self

    def at_input(self, view: View) -> Tensor:
        """Asked once a forward at the decoder's input, before anything is cut, where ``sees_input``."""
        raise TypeError(f"{type(self).__name__} does not define at_input(view)")

    def capture(self, call: Any) -> Tensor:
        """What is kept of one attention call, a ``TowerCall`` or ``DecoderCall``, without gradients. Of a tower: ``[T,
        n]`` or ``[T, n, d]``, special tokens still in place; of a decoder layer: any tensor."""
        raise TypeError(f"{type(self).__name__} does not define capture(call)")

    def read(self, view: View) -> Tensor:
        """``[I, N]`` or ``[I, N, d]`` on the tokens of the stage (``[I, ...]`` where ``per_picture``)."""
        raise TypeError(f"{type(self).__name__} does not define read(view)")


def on_tokens(values: Tensor, view: View) -> Tensor:
    """``[I, N]`` or ``[I, N, d]``: what the tokens get of ``values [B, n]`` or ``[B, n, d]``, one per row of the
    states; 0 in padding."""
    position, valid = view.position, view.tokens.valid
    own = values[view.tokens.prompt]
    if values.dim() == 2:
        return own.gather(1, position).masked_fill(~valid, 0.0)
    found = own.gather(1, position[..., None].expand(-1, -1, values.shape[2]))
    return found.masked_fill(~valid[..., None], 0.0)
