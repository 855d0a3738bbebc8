"""vtc in other people's harnesses."""

from __future__ import annotations

from typing import Any


def lmms_eval_manifest() -> Any:
    """What lmms-eval's entry points load: the name ``vtc`` and where its class is (imported when it is asked for)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vtc", chat_class_path="vtc.integrations.lmms_eval.VTC")
