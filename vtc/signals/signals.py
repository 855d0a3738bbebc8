"""What a method may look at: mostly one value (or vector) per vision token, never taken from eager attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TowerAttention:
    """``[I, N]``: attention each token receives from the CLS row of the tower's layer ``layer``, summed over heads.

    Where the tower has no CLS token: the mean over all rows of the attention received. A token made of several patches
    gets their mean. Negative layers count from the end (-2: the one whose output LLaVA reads), a float is a fraction of
    the tower's depth. ``rows="all"``: that mean in every tower. ``joined``: q and k of all heads joined into those of
    one (PruMerge), which is the attention of no head.
    """

    layer: int | float = -2
    rows: Literal["cls", "all"] = "cls"
    joined: bool = False

    def __post_init__(self) -> None:
        layer = self.layer
        if isinstance(layer, bool) or not (isinstance(layer, int) or (isinstance(layer, float) and 0 <= layer < 1)):
            raise ValueError(
                f"layer {layer!r} is not a tower layer; give an int (negative: from the end) or a fraction of depth in "
                "[0, 1), like 0.25"
            )


@dataclass(frozen=True)
class TowerKeys:
    """``[I, N, d]``: the tower's keys at layer ``layer``, mean over heads and a token's patches, not normalised.

    ``joined``: the heads side by side, not their mean.
    """

    layer: int | float = -2
    joined: bool = False


@dataclass(frozen=True)
class TowerGroups:
    """``[I, N]`` int: the group each token is in after tokens merged inside the tower . Those of one
    group came out of the tower alike."""


@dataclass(frozen=True)
class TextAttention:
    """``[I, N]``: attention from the prompt's last row to each token, mean over heads (``by_head``: ``[I, N, H]``).
    Where labels are given, the prompt ends before the first one that is learned.

    ``of="previous"``: in the decoder layer before the stage, as it ran (FastV); ``of="next"``: in the layer the stage
    stands before, recomputed from the states at its entry (PyramidDrop).
    """

    of: Literal["previous", "next"] = "previous"
    by_head: bool = False


@dataclass(frozen=True)
class TokenStates:
    """``[I, N, D]``: the tokens' own hidden states as they enter the layer whose keys are reduced."""


@dataclass(frozen=True)
class QuestionState:
    """``[I, D]``, a picture's and not its tokens': the hidden state of the prompt's last row as it enters the layer
    whose keys are reduced."""


@dataclass(frozen=True)
class TextRelevance:
    """``[I, N]``: mean cosine of each token with the text of its own prompt (every real row that is no vision token),
    both as they stand at the stage's entry: at the decoder's input, projected features and input embeddings."""


@dataclass(frozen=True)
class RaterAttention:
    """``[I, N, H]``: attention from the prompt's raters to each token in the decoder layer before the stage, as it ran,
    by head, mean over the raters.

    Raters are the text rows behind the prompt's pictures that get more than these rows' mean in softmax(V T^T), V and T
    being vision and text rows of the decoder's input (all of them where none gets more than another, and the prompt's
    last row where there are none). ``gravity``: the attention of each pair of rows is divided by the cosine that rotary
    positions give them at their distance, whatever they hold.
    """

    gravity: bool = False


@dataclass(frozen=True)
class KeyNorm:
    """``[I, N]``: L1 norm of each token's key, over all heads, in the decoder layer before the stage, as it ran; at the
    decoder's input, where none has run, of its input embedding."""


@dataclass(frozen=True)
class TextPivots:
    """``[I, count, D]``, a picture's and not its tokens': the states, at the stage's entry, of the text rows behind it
    that have the largest ``KeyNorm``, largest first; NaN where there are fewer."""

    count: int = 4


Signal = (
    TowerAttention
    | TowerKeys
    | TowerGroups
    | TextAttention
    | TokenStates
    | QuestionState
    | TextRelevance
    | RaterAttention
    | KeyNorm
    | TextPivots
)


def heard_in(signal: Signal, layer: int) -> int | None:
    """The decoder layer in whose attention ``signal`` is heard, for a stage before ``layer``; None for the others."""
    if isinstance(signal, TextAttention) and signal.of == "next":
        return layer
    if isinstance(signal, TextAttention | RaterAttention) or isinstance(signal, KeyNorm | TextPivots) and layer > 0:
        return layer - 1
    return None
