"""Blocks and commands that do not run as they stand, beside those that are only made short (``shrink.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field

# Names of the hub, and what stands in for them where a block has the mark hub: the testbed's model.
HUB = ("llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct")


@dataclass(frozen=True)
class Mark:
    """``hub``: run with the testbed's model, ``gpu``: run on a CPU with other options, ``absent``: not run, because a
    package is not there."""

    kind: str
    options: dict[str, str] = field(default_factory=dict)


MOST = 9  # It may only shrink.
MARKS = {
    # The model is on the hub; the questions are the reader's own.
    ("README.md", "vtc eval llava-hf/llava-1.5-7b-hf --data questions.jsonl"): Mark("hub"),
    # Model and rows are on the hub; rows of the same schema stand in.
    (
        "docs/benchmarks.md",
        "vtc eval llava-hf/llava-1.5-7b-hf --benchmarks pope --methods visionzip --budgets 64 --output runs/pope",
    ): Mark("hub", {"--data-dir": "rows/pope"}),
    # A model that reads; the testbed's does not, but takes pages.
    ("docs/render_text.md", "import vtc"): Mark("hub"),
    # lmms-eval brings some 95 packages, and POPE is on the hub; where it is installed,
    # tests/integrations/test_lmms_eval.py runs its command on the testbed.
    (
        "docs/lmms_eval.md",
        "lmms-eval eval --model vtc --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=divprune+share,budget=64",
    ): Mark("absent"),
    (
        "docs/lmms_eval.md",
        "torchrun --standalone --nproc_per_node 4 -m lmms_eval eval --model vtc --model_args ...  # a GPU each",
    ): Mark("absent"),
    ("docs/lmms_eval.md", "pytest tests/integrations/test_lmms_eval.py"): Mark("absent"),
    # 7B in bfloat16.
    ("docs/performance.md", "python scripts/bench_prefill.py --shape 7b"): Mark("gpu"),
    # Without a GPU it says so and ends; with one it takes minutes.
    ("docs/performance.md", "python scripts/bench_kernels.py"): Mark("gpu", {"--help": ""}),
    # 7B shapes; it has a tiny one for CPUs.
    ("docs/performance.md", "python scripts/bench_serving.py"): Mark("gpu", {"--shapes": "tiny"}),
}
