"""timm's plain ViTs (AugReg, DeiT, CLIP, DINOv2, ...), their blocks in halves. timm is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vtc.errors import UnsupportedModel
from vtc.towers.blocks import Block


def is_timm(model: nn.Module) -> bool:
    """Whether the model is one of timm's (nothing is imported to find out)."""
    return any(kind.__module__.startswith("timm.models.") for kind in type(model).__mro__)


def blocks_of(model: Any) -> list[Block]:
    """The blocks of a plain ViT, the first first. Raises ``UnsupportedModel`` for any other model of timm."""
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block as Plain
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise refusal(model, "is no plain ViT: its tokens keep their places between blocks")
    for index, block in enumerate(model.blocks):
        if type(block) is not Plain or type(block.attn) is not Attention:
            raise refusal(
                model, f"has a {type(block).__name__} with {type(block.attn).__name__} at depth {index}, unknown here"
            )
    return [halves(block) for block in model.blocks]


def halves(block: Any) -> Block:
    """timm's ``Block.forward``, cut after the first residual."""

    def attend(x: Tensor, bias: Tensor | None) -> Tensor:
        return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), attn_mask=bias)))

    def feed(x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    return Block(block, block.attn, attend, feed)


def hook_keys(attention: Any, hook: Callable[[nn.Module, tuple, Tensor], None]) -> Callable[[], None]:
    """Call ``hook`` with the keys ``[T, heads, t, d]`` of each attention; returns the undo. They pass through
    ``k_norm`` as attention uses them, an identity where they are not normalised."""
    return attention.k_norm.register_forward_hook(hook).remove


def refusal(model: nn.Module, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__} {reason}; tome takes timm's plain ViTs, such as vit_base_patch16_224, "
        "deit_base_distilled_patch16_224 or vit_base_patch14_reg4_dinov2"
    )
