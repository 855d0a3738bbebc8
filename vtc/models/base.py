"""What the engine must know of a VLM family, and the default answers found by inspection (see ``generic.py``)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vtc.signals.base import Signal
from vtc.towers.blocks import Block
from vtc.towers.units import Units


@dataclass
class TowerRun:
    """One call of ``get_image_features`` or ``get_video_features``: what went in, how long each entry came out, and
    the raw signals captured from the tower's attention while it ran.

    ``arguments``: the call's bound arguments (``pixel_values``, ``image_sizes``, ``image_grid_thw``, ...);
    ``counts``: language-model tokens of each entry, in order; ``captured``: for each signal the raw tensors, in order,
    one per attention call or, where one call serves several windows by ``cu_seq_lens``, one per window
    (``[T, n]`` or ``[T, n, d]``, CLS column still in place). Mean received attention is a mean over the rows that see
    the token: those of its window.
    """

    modality: str  # "image" | "video"
    arguments: dict[str, Any]
    counts: list[int] = field(default_factory=list)
    captured: dict[Signal, list[Tensor]] = field(default_factory=dict)
    output: Any = None  # weak references to what the call returned, to know it again
    rows: Tensor | None = None  # the first columns of every feature row, to know it in a prompt of embeddings
    used: bool = False  # a forward has used it


@dataclass
class Place:
    """Where the tokens of one entry stand, in the order of its placeholders.

    grid ``[n, 3]`` int (t, y, x), all -1 where unknown. t is the frame of a video; of an AnyRes picture t = 0 is the
    small whole picture, t = 1 the high-resolution grid. A picture of several entries counts t on from entry to entry.
    newline ``[n]`` bool: tokens that carry no pixels; they hold their row's (t, y) and x = the row's width.
    """

    grid: Tensor
    newline: Tensor


class Weakly:
    """An attribute that holds a module without keeping it alive."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = f"_{name}"  # another name: torch.compile takes the descriptor's own for the descriptor

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        module = instance.__dict__[self.key]()
        if module is None:
            raise ReferenceError(f"the model that this {type(instance).__name__} was made for is gone; hold on to it")
        return module

    def __set__(self, instance: Any, module: Any) -> None:
        instance.__dict__[self.key] = weakref.ref(module)


class Family:
    """One VLM family: found by inspection, stated only where inspection fails. Never changes the model."""

    # Both may own a patch that holds this family.
    model = Weakly()  # the whole model, as the user holds it
    base = Weakly()  # the module whose forward places features into placeholders (``model.base_model``)
    decoder: Any  # the text model: has ``.layers``
    layers: nn.ModuleList  # its decoder layers
    token_ids: dict[str, int]  # modality -> placeholder id (both modalities may share one)
    hybrid: bool  # some decoder layers are recurrent: they have no mask, so only k = 0 can be reduced
    tower_cls: int  # leading special tokens of the tower (CLS first), 0 where there are none
    tower_layers: int  # attention layers of the tower, 0 where it gives no signals

    def __init__(self, model: nn.Module):
        self.model = model

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer (calls transformers' attention interface)."""
        raise NotImplementedError

    def attends(self, layer: int) -> bool:
        """Whether a decoder layer has attention: a recurrent one has no keys that could weigh more."""
        return True

    def tower_attention(self, layer: int | float, modality: str = "image") -> nn.Module:
        """The attention module of a tower layer (negative: from the end; float: fraction of depth); raises
        ``UnsupportedModel`` where signals cannot be had. ``modality`` matters only where videos have a tower of their
        own."""
        raise NotImplementedError

    def tower_blocks(self, modality: str = "image") -> list[Block]:
        """The tower's blocks, whose tokens can merge; raises ``UnsupportedModel`` where they cannot."""
        raise NotImplementedError

    def read_blocks(self, run: TowerRun, blocks: int) -> int:
        """After how many of the tower's ``blocks`` the last features are read."""
        return blocks

    def tower_units(self, run: TowerRun) -> Units:
        """What merges in the tower that is about to run: tokens, or the units of patches that become one."""
        raise NotImplementedError

    def tower_tokens(self, run: TowerRun, sequences: int, length: int) -> list[tuple[int, int]]:
        """(sequences, language-model tokens) of each entry, before the tower has run on ``sequences`` of ``length``
        units (the longest)."""
        raise NotImplementedError

    def entries(self, output: Any) -> list[int]:
        """Language-model tokens of every entry in what ``get_image_features`` or ``get_video_features`` returned."""
        raise NotImplementedError

    def pictures(self, run: TowerRun, ids: Tensor | None) -> list[int]:
        """How many of the run's consecutive entries form each picture; ``ids [B, N]``: the prompts, on the CPU."""
        return [1] * len(run.counts)

    def places(self, run: TowerRun) -> list[Place]:
        """Grid and newline flags for each of the run's entries (``len(run.counts)``), on the CPU."""
        raise NotImplementedError

    def align(self, run: TowerRun, signal: Signal) -> list[Tensor]:
        """The captured signal on language-model tokens: for each entry ``[n]`` or ``[n, d]`` (newlines: any value).

        Raises ``UnsupportedModel`` when tower tokens have no map to language-model tokens (Q-formers).
        """
        raise NotImplementedError

    @property
    def deepstack(self) -> int:
        """After how many of the first decoder layers features of the tower are added to vision tokens (DeepStack)."""
        return len(getattr(getattr(self.base.config, "vision_config", None), "deepstack_visual_indexes", None) or ())

    @property
    def reads_ahead(self) -> bool:
        """Whether vision tokens see the words behind them: a prompt is a bidirectional prefix."""
        return self.base.config.model_type == "paligemma"

    def reads_between(self, kwargs: dict[str, Any]) -> int:
        """After how many of the first decoder layers something reads or writes full-length states (DeepStack), from
        the keyword arguments of the text model's forward."""
        return len(kwargs.get("deepstack_visual_embeds") or ())
