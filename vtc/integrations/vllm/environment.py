"""What vLLM trips over on a machine without a GPU, and the remedies."""

from __future__ import annotations

import importlib.util
from typing import Any

OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def mend_torchvision() -> Any:
    """Let torchvision be imported where its binary is linked against another torch (a CUDA build beside a CPU torch):
    declare the operators that it describes at import and never finds. The library must be held on to; None where
    nothing had to be mended."""
    import torch

    if importlib.util.find_spec("torchvision") is None or torch.cuda.is_available():
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS.values():
        library.define(schema)
    return library
