"""What starts vLLM's server for one model, method and budget. Needs no vLLM itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from vtc.errors import UnsupportedModel
from vtc.integrations.vllm import ARCHITECTURES, NOT_SERVED, ONLY_OURS, own, plain
from vtc.integrations.vllm.served import served
from vtc.integrations.vllm.settings import KEY, Settings
from vtc.methods._spelling import spell
from vtc.methods.base import Method
from vtc.tokens import Budget

ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}


def overrides(names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """What the config of a model of these ``architectures`` must say. Raises ``UnsupportedModel`` for a model that is
    not served reduced, and ``ValueError`` for a method or budget that cannot be."""
    known = [plain(name) for name in names if plain(name) in ARCHITECTURES]
    if not known:
        why = "".join(f" ({NOT_SERVED[plain(name)]})" for name in names if plain(name) in NOT_SERVED)
        raise UnsupportedModel(
            f"{', '.join(names) or 'this model'} is not served with fewer tokens{why}; there are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    name, method = known[0], settings.build()
    if (signals := method.signals(0)) and name in ONLY_OURS:
        raise UnsupportedModel(
            f"{spell(method)} looks at {signals[0].words()}, which vLLM's own {name} does not show, and transformers' "
            f"code does not serve it: {ONLY_OURS[name]}; use a method that looks at features, such as divprune+share"
        )
    own_name = own(name, tower=bool(signals))
    # Transformers' code finds the weights of older checkpoints by its own name.
    architectures = [own_name] if own_name == f"Vtc{name}" else [own_name, name]
    return {"architectures": architectures, KEY: {"method": spell(method), "budget": Budget.of(settings.budget).value}}


def in_config(architecture: str, method: Method, budget: Budget) -> dict[str, Any]:
    """The same for ``vtc.save(..., serve="vllm")``."""
    return overrides([architecture], Settings(spell(served(method)), budget.value))


def command(model: str, said: dict[str, Any], options: Sequence[str]) -> list[str]:
    """The process that serves. vLLM's own command asks for a distribution that builds for the CPU are not."""
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", model, "--hf-overrides", json.dumps(said), *options]
