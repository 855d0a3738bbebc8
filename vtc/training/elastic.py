"""Elastic budgets: each training step runs at a budget drawn anew, so that one model learns to serve them all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback

from vtc.errors import BudgetError, VTCError
from vtc.patching.api import patch_of
from vtc.tokens import Budget


class Elastic(TrainerCallback):
    """Draws the budget of every optimizer step of ``model`` from ``budgets``, each as likely as the others.

    The draw depends on seed and step alone: the same on every process, in every micro-batch of a step, and after a
    resumed run. As a callback of a Trainer it needs nothing else; between steps, and so in evaluations, the patch has
    the budget it had. In a loop of your own call ``begin(step)`` before each step and ``end()`` after it.

    Raises ``VTCError`` for a model without a patch, ``BudgetError`` for no budgets, malformed ones, and numbers of
    tokens above the latents of the patch's method.
    """

    def __init__(self, model: nn.Module, budgets: Sequence[int | float | Budget], seed: int = 0):
        patch = patch_of(model)
        if patch is None:
            raise VTCError("elastic budgets need a patched model; call vtc.patch(model, 'perceiver', ...) first")
        self.patch, self.seed, self.usual = patch, seed, patch.budget
        self.budgets = tuple(Budget.of(budget) for budget in budgets)
        if not self.budgets:
            raise BudgetError("there are no budgets to draw from; give at least one, like (0.25, 0.0625)")
        most = getattr(patch.method, "latents", None)
        tokens = [budget.value for budget in self.budgets if isinstance(budget.value, int)]
        if most is not None and tokens and max(tokens) > most:
            raise BudgetError(
                f"budget {max(tokens)} is above the {most} latents of {patch.method.name}; draw at most {most}, or "
                f"patch with latents={max(tokens)}"
            )

    def budget(self, step: int) -> Budget:
        """The budget of optimizer step ``step``."""
        return random.Random(f"{self.seed} {step}").choice(self.budgets)

    def begin(self, step: int) -> None:
        """Before step ``step``: spend its budget."""
        self.patch.set_budget(self.budget(step))

    def end(self) -> None:
        """After a step: spend what the patch spent before."""
        self.patch.set_budget(self.usual)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end()
