"""The golden figures of this folder, and of ``shared/golden/methods`` where it stands beside the repository."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "golden" / "methods"


def cases(method: str) -> list:
    """``(inputs, outputs, params)`` of each golden case of ``method``, tensors by name, as pytest parameters."""
    import pytest

    own = json.loads((HERE / "cases.json").read_text())
    sources = [("own", HERE / f"{method}.npz", own[method])] if method in own else []
    if (SHARED / f"{method}.json").exists():
        sources.append(
            ("shared", SHARED / f"{method}.npz", json.loads((SHARED / f"{method}.json").read_text())["cases"])
        )
    return [
        pytest.param(*_load(path, case["case"]), case["params"], id=f"{where}-{case['case']}")
        for where, path, listed in sources
        for case in listed
    ]


def _load(path: Path, case: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with np.load(path) as arrays:
        pick = {
            kind: {
                name.removeprefix(f"case{case}_{kind}_"): torch.from_numpy(arrays[name])
                for name in arrays.files
                if name.startswith(f"case{case}_{kind}_")
            }
            for kind in ("in", "out")
        }
    return pick["in"], pick["out"]
