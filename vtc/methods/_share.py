"""Give dropped tokens' attention back: each joins its nearest kept token, which then weighs for them all."""

from __future__ import annotations

import torch

from vtc.kernels.match import match
from vtc.tokens import Reduction, VisionTokens


def share(tokens: VisionTokens, reduction: Reduction) -> Reduction:
    """``reduction`` with every dropped token in the slot of its nearest anchor (largest cosine of the features, lower
    index on ties), so that sizes by slot add up to the tokens there were.

    Slots become size-weighted means. Where the method has its own weights, its values stay as they are and only the
    sizes grow. A token with a NaN has no nearest anchor and stays dropped.
    """
    dropped = tokens.valid & (reduction.slot < 0)
    index = reduction.anchor.clamp(min=0)[..., None].expand(-1, -1, tokens.features.shape[2])
    slot, _ = match(tokens.features, tokens.features.gather(1, index), reduction.anchor >= 0)
    weight = reduction.weight
    if weight is not None:
        weight = torch.where(dropped, torch.zeros_like(weight), weight)
    slot = slot.where(dropped, reduction.slot)
    return Reduction(slot, reduction.anchor, weight, reduction.refine, also=reduction.also)
