"""VLM families, one a file. ``family_of(model)`` finds a model's family; most need no file (see ``generic.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtc.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from vtc.models.base import Family

registry: Registry[type[Family]] = Registry("model family", "vtc.models", group="vtc.models")
register = registry.register


def family_of(model: nn.Module) -> Family:
    """The family of a transformers VLM: the model itself, compiled by ``torch.compile``, or inside a PEFT model.

    Raises ``UnsupportedModel`` when its pictures can never be reduced, naming what can be used instead.
    """
    from vtc.models.generic import Generic
    from vtc.models.inspection import unwrapped
    from vtc.models.refused import refuse

    config = getattr(unwrapped(model), "config", None)
    name = getattr(config, "model_type", "")
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    refuse(name)
    for key in (f"{name}:{tower}", name):  # a family may have one entry more for an unusual tower
        if key in registry:
            return registry[key](model)
    return Generic(model)
