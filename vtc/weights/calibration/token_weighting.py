"""How much a vision token counts beside a text token when weights are fitted.

A picture brings hundreds of tokens and a question a few dozen, so in a pooled moment the text hardly counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.weights.calibration.block_walk import Buckets, Walk
from vtc.weights.fitting.gram import Gram

WAYS = ("balanced", "pooled", "gradient")


def weigher(way: str | tuple[float, float], walk: Walk) -> Callable[[int | str, Buckets], Gram]:
    """What makes one Gram of a layer's buckets, given the block it stands in: "balanced" (both count the same in all),
    "pooled" (every token the same), "gradient" (by what the block's errors do to the loss; the model's own next token
    is the label) or (vision, text) weights of a token."""
    gradients = by_gradient(walk) if way == "gradient" else []

    def weigh(block: int | str, buckets: Buckets) -> Gram:
        if way == "pooled" or (way == "gradient" and isinstance(block, str)):
            vision, text = 1.0, 1.0
        elif way == "gradient":
            vision, text = gradients[int(block)]
        elif isinstance(way, str):
            vision, text = balanced(buckets)
        else:
            vision, text = way
        return buckets["vision"].scaled(vision) + buckets["text"].scaled(text)

    return weigh


def balanced(buckets: Buckets) -> tuple[float, float]:
    """Weights (vision, text) that let both count the same in all (1, 1 where there is only one of them)."""
    seen, read = buckets["vision"].count, buckets["text"].count
    return (1.0, 1.0) if not seen or not read else ((seen + read) / (2 * seen), (seen + read) / (2 * read))


@torch.enable_grad()
def by_gradient(walk: Walk) -> list[tuple[float, float]]:
    """For each decoder block the mean |gradient| at its output over vision and over text tokens: how much an error
    there changes the loss (MBQ, arXiv 2412.19509).

    Departs from the paper: the loss is that of the model's own next token after each prompt, so that no answers are
    needed.
    """
    sums = torch.zeros(walk.depth, 2, 2, dtype=torch.float64)  # block, (vision, text), (sum, count)
    for n, example in enumerate(walk.examples):
        outputs: list[Tensor] = []
        labels: list[Tensor] = []

        def keep(block: int, output: Any, outputs=outputs, labels=labels, n=n) -> None:
            states = output[0] if isinstance(output, tuple) else output
            short = walk.labels(n, block)
            outputs.append(states)  # a patch gives full-length states back after the last block
            labels.append((short if short.shape[1] == states.shape[1] else walk.rows(n)).flatten())

        hooks = [
            layer.register_forward_hook(lambda module, args, output, block=block, keep=keep: keep(block, output))
            for block, layer in enumerate(walk.family.layers)
        ]
        try:
            logits = walk.model(**{**example, "use_cache": False}).logits[:, -1].float()
            loss = torch.nn.functional.cross_entropy(logits, logits.argmax(-1))
            found = torch.autograd.grad(loss, outputs)
        finally:
            for hook in hooks:
                hook.remove()
        for block, (gradient, label) in enumerate(zip(found, labels, strict=True)):
            size = gradient.double().abs().mean(-1).flatten()
            for kind, code in enumerate((2, 1)):
                rows = size[label.to(size.device) == code]
                sums[block, kind] += torch.tensor([float(rows.sum()), len(rows)], dtype=torch.float64)
    means = sums[..., 0] / sums[..., 1].clamp_min(1)
    return [(float(v), float(t)) if t > 0 else (1.0, 1.0) for v, t in means]
