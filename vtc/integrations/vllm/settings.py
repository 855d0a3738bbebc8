"""What is asked for in vLLM: the key ``vtc`` of the model's config, so that every process and every cache knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.methods.base import Method
    from vtc.tokens import Budget

KEY = "vtc"
REQUEST = "vtc_budget"  # of one request: mm_processor_kwargs={"vtc_budget": 24}


@dataclass(frozen=True)
class Settings:
    """``method`` as ``vtc eval`` spells it, ``budget`` as it is typed."""

    method: str = "divprune+share"
    budget: int | float | str = 0.25

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Of a model's config. Raises ``ValueError``."""
        given = getattr(config, KEY, None)
        if not isinstance(given, Mapping):
            raise ValueError(
                f'the model\'s config has no "{KEY}"; serve it with vtc serve, or give --hf-overrides '
                f'\'{{"{KEY}": {{"method": "divprune+share", "budget": 0.25}}}}\''
            )
        if unknown := sorted(set(given) - {"method", "budget"}):
            raise ValueError(f'the config\'s "{KEY}" has {unknown}; it takes method and budget')
        return cls(**given)

    def build(self) -> Method:
        """The method. Raises ``ValueError`` for one that cannot be served."""
        from vtc.integrations.vllm.served import served
        from vtc.methods._spelling import build

        return served(build(self.method))

    def slots(self, count: int, budget: Any = None) -> int:
        """How many rows a picture of ``count`` tokens keeps, at a request's own ``budget``. Raises ``BudgetError``,
        here and not in the engine, where it would end every request."""
        from vtc.errors import BudgetError
        from vtc.tokens import Budget

        limit: Budget = Budget.of(self.budget if budget is None else budget)
        rows, most = int(limit.tokens(count)), getattr(self.build(), "latents", None)
        if most is not None and rows > most:
            raise BudgetError(f"a picture would keep {rows} rows and {self.method} learned {most}; lower the budget")
        return rows


class TableOfPositions:
    """For ``MODELS_CONFIG_MAP``: rows keep the positions they had in the whole picture. vLLM keeps a table of them for
    each request where the top config has an ``mrope_section``; the decoder's own rotary embedding stays as it is."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        model_config.hf_config.mrope_section = [1, 0, 0]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        return
