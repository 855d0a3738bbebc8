"""``scripts/bench_vllm.py`` draws what it measured, without vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_vllm.py"


def test_the_plot_of_what_was_measured(tmp_path):
    kinds = ("kv_blocks", "kv_megabytes", "first_cpu", "first_wall", "cold_cpu", "cold_wall", "warm_cpu", "warm_wall")
    rows = {name: dict.fromkeys(kinds, cost) for name, cost in (("unpruned", 4.0), ("divprune", 1.0))}
    (tmp_path / "bench.json").write_text(json.dumps({"about": "a shape", "rows": rows}))
    command = [sys.executable, str(SCRIPT), "--plot", str(tmp_path / "bench.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as drawn:
        assert min(drawn.size) > 100 and len(drawn.convert("RGB").getcolors(1 << 16)) > 3
