"""A third model, for rules that were settled on the others: the same LLaVA with a decoder half as deep again."""

from typing import ClassVar

from vtc.eval.scenes.train.architectures import register
from vtc.eval.scenes.train.architectures.llava import Llava


@register("llava-deep")
class LlavaDeep(Llava):
    name: ClassVar[str] = "llava-deep"
    layers: ClassVar[int] = 12
