"""A fourth model, for the rule that the third one corrected: the same LLaVA, its decoder twice as deep."""

from typing import ClassVar

from vtc.eval.scenes.train.architectures import register
from vtc.eval.scenes.train.architectures.llava import Llava


@register("llava-deeper")
class LlavaDeeper(Llava):
    name: ClassVar[str] = "llava-deeper"
    layers: ClassVar[int] = 16
