"""How far an error in a layer's weights moves the answer: read off gradients, instead of one trial a candidate.

Between the two likeliest next tokens, of probabilities p and q, a small change of the weights makes a divergence of
``½ pq/(p + q) (Σ_t δ_tᵀ ΔW x_t)²``: x_t are the layer's inputs in row t and δ_t the gradient of the two tokens' margin
at its outputs. Rounding errors of different rows and outputs are taken as uncorrelated (as in K-FAC, arXiv 1503.05671),
so that sums of squares are left. Rows weigh their own inputs: a token of huge inputs that nobody reads counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.weights.calibration.block_walk import Walk

SHARE = 0.99  # of the doubt in all prompts


@dataclass
class Sensitivity:
    """Sums over the rows t of some prompts: moment ``[D, D]`` of ``|δ_t|² x_t x_tᵀ``, outputs ``[O]`` of ``δ_t²``; δ_t
    holds ``√(pq/(p + q))``."""

    moment: Tensor
    outputs: Tensor

    @classmethod
    def empty(cls, layer: nn.Linear) -> Sensitivity:
        zeros = layer.weight.new_zeros
        width, out = layer.in_features, layer.out_features
        return cls(zeros(width, width, dtype=torch.float32), zeros(out, dtype=torch.float32))

    def add(self, x: Tensor, gradient: Tensor) -> None:
        """Count the rows of ``x [T, D]`` with their ``gradient [T, O]``, in place."""
        x, square = x.float(), gradient.float().square()
        self.moment += x.T @ (x * square.sum(1, keepdim=True))
        self.outputs += square.sum(0)

    def divergence(self, change: Tensor) -> float:
        """What ``change [O, D]`` of the weights does to the next token, summed over the prompts, in nats."""
        total = float(self.outputs.sum())
        if not total:  # nothing that the answer depends on
            return 0.0
        by_output = ((change.double() @ self.moment.double()) * change).sum(1)
        return max(float(by_output @ self.outputs.double()), 0.0) / total / 2


@torch.enable_grad()
def sensitivities(walk: Walk, layers: dict[str, Any]) -> dict[str, Sensitivity]:
    """Of each of the ``layers`` on the walk's prompts. Raises ``WeightsError`` for a layer that is not linear, and for
    a gradient that is not finite."""
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise WeightsError(
                f"{name} is no linear layer, so nothing is known of what it costs; leave it out of the plan"
            )
    found = {name: Sensitivity.empty(layer) for name, layer in layers.items()}
    for n in range(len(walk.examples)):
        with _captured(layers) as captured:
            margins = weighed_margins(walk.forward(n).logits[:, -1])
        gradients = torch.autograd.grad(margins.sum(), [output for _, _, output in captured], allow_unused=True)
        for (name, x, _), gradient in zip(captured, gradients, strict=True):
            if gradient is None:
                continue
            if not bool(torch.isfinite(gradient).all()):
                raise WeightsError(f"a prompt gives {name} gradients that are not finite; run the model in bfloat16")
            found[name].add(x.flatten(0, -2), gradient.flatten(0, -2))
    return found


def doubtful(walk: Walk, share: float = SHARE) -> tuple[Walk, int]:
    """A walk over the fewest examples that hold ``share`` of all the doubt, and how many prompts there were: where the
    model is sure, no small error changes the answer, and most prompts are such."""
    doubts = [doubt(logits) for logits in walk.next_logits()]
    sums = torch.stack([each.sum() for each in doubts]).double().cpu()
    order = sums.argsort(descending=True)
    enough = int((sums[order].cumsum(0) < share * sums.sum()).sum()) + 1
    kept = [walk.examples[n] for n in sorted(order[:enough].tolist())]
    return Walk(walk.model, kept), sum(map(len, doubts))


def doubt(logits: Tensor) -> Tensor:
    """``[B]``: ``pq/(p + q)`` of the two likeliest of the tokens that ``logits [B, V]`` are of."""
    p, q = logits.detach().float().softmax(dim=-1).topk(2, dim=-1).values.unbind(-1)
    return p * q / (p + q)


def weighed_margins(logits: Tensor) -> Tensor:
    """``[B]``: how far the likeliest token leads the next, times the root of the doubt, which counts as constant."""
    first, second = logits.topk(2, dim=-1).values.unbind(-1)
    return (first - second) * doubt(logits).sqrt()


@contextmanager
def _captured(layers: dict[str, Any]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Name, input and output of every call of the ``layers``, in order; the outputs carry gradients."""
    captured: list[tuple[str, Tensor, Tensor]] = []

    def capture(name: str, x: Tensor, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()
        captured.append((name, x.detach(), output))

    hooks = [
        layer.register_forward_hook(lambda module, args, output, name=name: capture(name, args[0], output))
        for name, layer in layers.items()
    ]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
