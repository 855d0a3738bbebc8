"""What vLLM trips over on a machine without a GPU: ``python -m vtc.integrations.vllm.environment`` mends it, once.

Package indexes offer one torchvision, built for CUDA, beside vLLM's CPU torch. It can be imported if the operators that
it describes at import are declared before, in each of vLLM's processes: by a line in the environment's site-packages.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
LINE = "import vtc.integrations.vllm.environment as e; e.Declaring.put()\n"
kept: list[Any] = []  # a declaration lasts as long as its library


class Declaring:
    """Looks for no module: declares the operators when torchvision is looked for, and is gone."""

    @classmethod
    def put(cls) -> None:
        sys.meta_path.insert(0, cls())  # type: ignore[arg-type]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            declare()


def declare() -> None:
    if kept:  # Python may read the line twice, through lib and lib64
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS:
        library.define(schema)
    kept.append(library)


def installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def broken() -> bool:
    """Whether torchvision is linked against another torch than the one here."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        return "torchvision::nms" in str(error)
    return False


def mend() -> str:
    """Mend this environment if it needs it; what was done, in words."""
    if not broken():
        return "torchvision can be imported; nothing was changed"
    file = Path(sysconfig.get_path("purelib")) / "vtc_torchvision.pth"
    file.write_text(LINE, encoding="utf-8")
    return f"{file} declares torchvision's operators before it is imported; remove it with this environment's vLLM"


if __name__ == "__main__":
    print(mend())
