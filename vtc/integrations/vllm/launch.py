"""What starts vLLM's server for one model, method and budget. Needs no vLLM itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from vtc.errors import UnsupportedModel
from vtc.integrations.vllm import ARCHITECTURES
from vtc.integrations.vllm.served import served
from vtc.integrations.vllm.settings import KEY, Settings
from vtc.methods._spelling import spell
from vtc.methods.base import Method
from vtc.tokens import Budget

ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}


def overrides(names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """What the config of a model of these ``architectures`` must say. Raises ``UnsupportedModel`` for a model that is
    not served reduced, and ``ValueError`` for a method or budget that cannot be."""
    known = [name.removeprefix("Vtc") for name in names if name.removeprefix("Vtc") in ARCHITECTURES]
    if not known:
        raise UnsupportedModel(
            f"{', '.join(names) or 'this model'} is not served with fewer tokens yet; there are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    budget = Budget.of(settings.budget).value
    return {"architectures": [f"Vtc{known[0]}"], KEY: {"method": spell(settings.build()), "budget": budget}}


def in_config(architecture: str, method: Method, budget: Budget) -> dict[str, Any]:
    """The same for ``vtc.save(..., serve="vllm")``."""
    return overrides([architecture], Settings(spell(served(method)), budget.value))


def command(model: str, said: dict[str, Any], options: Sequence[str]) -> list[str]:
    """The process that serves. vLLM's own command asks for a distribution that builds for the CPU are not."""
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", model, "--hf-overrides", json.dumps(said), *options]
