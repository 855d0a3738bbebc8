"""Plans for several sizes, made once from the same trials; at run time the best one that fits is picked.

After RAP (arXiv 2505.17138), which prunes under what weights and cache may take at the moment; without its
reinforcement learning: every plan is solved beforehand, and picking one is a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vtc.errors import WeightsError
from vtc.weights.planning.plan import Plan, Trial, allocate


def ladder(trials: Sequence[Trial], bits: Iterable[float], by: str = "divergence") -> list[Plan]:
    """A plan for each average of ``bits`` a weight, the smallest first."""
    wanted = sorted(set(bits))
    if not wanted:
        raise WeightsError("a ladder needs sizes, like bits=[3, 4, 6]")
    return [allocate(trials, bits=each, by=by) for each in wanted]


def pick(plans: Sequence[Plan], free: float) -> Plan:
    """The plan of the least damage among those whose weights take at most ``free`` bytes: what is free now, less what
    the other tensors, the cache and the activations will take.

    Raises ``WeightsError`` where none fits.
    """
    if not plans:
        raise WeightsError("there is no plan to pick from; make some with ladder")
    fitting = [plan for plan in plans if plan.bytes <= free]
    if not fitting:
        raise WeightsError(
            f"{free:.0f} bytes are free for weights and the smallest plan takes {min(p.bytes for p in plans)}; free "
            "memory, keep fewer tokens, or plan for fewer bits"
        )
    return min(fitting, key=lambda plan: (plan.damage, plan.bytes))
