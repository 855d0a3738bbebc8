"""The authors' results on weights, where ``shared/golden/weights`` stands beside the repository."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[3] / "shared" / "golden" / "weights"


def arrays(name: str | None) -> dict[str, Tensor]:
    """The arrays of one file, as tensors; none where an item has no such file."""
    if name is None:
        return {}
    with np.load(FOLDER / name) as found:
        return {key: torch.from_numpy(found[key]) for key in found.files}


def cases(item: str, *configurations: str) -> list[Any]:
    """``(case, inputs, wanted)`` of each case of the item's configurations (default: all), as pytest parameters; a
    single skipped one where the folder is not there."""
    path = FOLDER / f"{item}.json"
    if not path.exists():
        return [pytest.param({}, {}, {}, marks=pytest.mark.skip(reason="shared/golden/weights is not here"))]
    told = json.loads(path.read_text())["configurations"]
    return [
        pytest.param(
            {**case, "configuration": name}, arrays(case["inputs"]), arrays(case["file"]), id=f"{name}-{case['case']}"
        )
        for name in configurations or told
        for case in told[name]
    ]


def output_error(weight: Tensor, got: Tensor, x: Tensor) -> float:
    """``||X (W - V)T|| / ||X WT||`` in float64, as the golden files state it."""
    x, weight, got = x.double(), weight.double(), got.double()
    return float((x @ (weight - got).T).norm() / (x @ weight.T).norm())
