"""What one training needs to know of the model it trains; each kind of model is one file in ``architectures``."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from vtc.eval.scenes.train.labels import COLOR_NAMES, GRID, KINDS, PICTURE_LABELS

WIDTH = 128
DECODER_LAYERS = 8
TOKENS = GRID**2
START = 2
"""Row of the first vision token of every prompt."""


class Architecture(ABC):
    """A kind of model that turns a picture into 196 vision tokens of width 128."""

    name: ClassVar[str]
    placed: ClassVar[bool] = True
    """Whether the tower can know where in the picture a patch is: not from rotations, which only tell distances."""

    @abstractmethod
    def build(self) -> PreTrainedModel:
        """The model, untrained."""

    @abstractmethod
    def tower(self, model: Any) -> nn.Module:
        """What stage 1 trains, and what is frozen in stage 2 but for the projector."""

    @abstractmethod
    def projector(self, model: Any) -> nn.Module:
        """What stands between the tower and the decoder."""

    @abstractmethod
    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """uint8 [I, H, W, 3] -> what the projector reads, [I, 196, F]."""

    @abstractmethod
    def project(self, model: Any, features: Tensor) -> Tensor:
        """[I, 196, F] -> vision tokens [I, 196, WIDTH]."""

    @abstractmethod
    def described(self, model: Any, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What stage 1 labels: states of the patches [I, 196, WIDTH], and states of whole pictures [I, WIDTH]."""

    @abstractmethod
    def positions(self, order: Tensor) -> Tensor:
        """Rows' places in their own prompt, [B, L] -> the position ids the decoder gets for them."""

    @abstractmethod
    def processor(self, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        """What a user loads beside the model."""


class TowerHeads(nn.Module):
    """Reads the dense labels off the tower's features; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Linear(WIDTH, len(KINDS))
        self.color = nn.Linear(WIDTH, len(COLOR_NAMES))
        self.middle = nn.Linear(WIDTH, 1)
        self.place = nn.Linear(WIDTH, 2)
        self.present = nn.Linear(WIDTH, len(PICTURE_LABELS))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [I, H, W, 3] -> float [I, 3, H, W] in [-1, 1], as the image processor does."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def parameter_count(module: nn.Module) -> float:
    """Parameters, in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def autocast() -> torch.autocast:
    """bfloat16 for the matrix products."""
    return torch.autocast("cpu", torch.bfloat16)
