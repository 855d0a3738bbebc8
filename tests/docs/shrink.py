"""The mark ``long``, as data: with which options a command that takes minutes is run here, instead of its own."""

from __future__ import annotations

KEEP = 2  # methods of a ``vtc eval``; that all of them and all budgets are right is checked before

# Words that a command holds, and the options that replace those it gives. The first line that fits counts.
SHRINK: list[tuple[tuple[str, ...], dict[str, str]]] = [
    (("vtc", "eval"), {"--limit": "1", "--timing-repeats": "0", "--overlays": "0", "--device": "cpu"}),
    (("vtc", "calibrate"), {"--examples": "2"}),
    (("vtc", "compress", "--target-bits"), {"--examples": "24"}),
    (("vtc", "compress", "--calibration"), {"--examples": "8"}),
    (("vtc", "export", "--benchmarks"), {"--limit": "9"}),
    (("vtc", "serve"), {"--dry-run": ""}),  # vLLM is elsewhere: tests/integrations/vllm/test_engine_page.py starts it
    (("scripts/bench_plan.py",), {
        "--model": "my-vlm", "--bits": "3", "--examples": "16", "--foresee": "2", "--heldout": "2", "--questions": "2",
    }),
    (("scripts/bench_prefill.py",), {
        "--shape": "tiny", "--methods": "divprune+share", "--budgets": "64", "--repeats": "2",
    }),
    (("scripts/bench_decoder.py",), {
        "--shape": "tiny", "--methods": "frozen,divprune+share", "--budgets": "144", "--repeats": "2",
    }),
    (("scripts/bench_serving.py",), {"--batches": "1", "--shares": "1.0,0.33", "--repeats": "1"}),
    (("scripts/bench_sizes.py",), {"--rows": "128", "--repeats": "1"}),
    (("scripts/bench_tome.py",), {"--model": "vit_tiny_patch16_224", "--batch": "1", "--repeats": "1"}),
    (("scripts/bench_training.py",), {"--shape": "tiny", "--repeats": "1"}),
    (("scripts/bench_weights.py",), {
        "--model": "my-vlm", "--recipes": "rtn:bits=8", "--questions": "2", "--examples": "16", "--heldout": "2",
        "--turns": "2",
    }),
    (("scripts/check_kernels.py", "--amd"), {"--arch": "80", "--only": "merge_gradient"}),
    (("scripts/check_kernels.py",), {"--small": "", "--arch": "80", "--only": "merge_gradient"}),
    (("vtc", "finetune"), {"--steps": "2", "--batch": "2"}),
    (("scripts/measure_spend.py",), {"--budgets": "12", "--limit": "9", "--calibration": "9"}),
    (("scripts/measure_second_turn.py",), {"--pairs": "1"}),
    (("scripts/simulate_keys.py",), {"--questions": "2"}),
    # A budget of minutes is spent after a step or none: nothing here depends on how many there were.
    (("scripts/train_easy_vqa.py",), {"--minutes": "0.0001", "--output": "runs/trained"}),
    (("scripts/train_learned.py", "--evaluate"), {
        "--questions": "9", "--against": "divprune+share", "--budgets": "12",
    }),
    (("scripts/train_learned.py",), {"--minutes": "0.0001", "--pictures": "16", "--dev-questions": "9"}),
    (("scripts/train_scenes.py", "--measure"), {"--questions": "9"}),
    # Without --out it would write into the package.
    (("scripts/train_scenes.py",), {
        "--minutes": "0.0001", "--pictures": "32", "--threads": "1", "--questions": "9", "--dev-questions": "9",
        "--work": "runs/train", "--out": "runs/scenes-again",
    }),
]  # fmt: skip


def entry(words: list[str]) -> int | None:
    """The line of the table that a command is run by."""
    return next((n for n, (needed, _) in enumerate(SHRINK) if set(needed) <= set(words)), None)


def replaced(words: list[str], options: dict[str, str]) -> list[str]:
    """The command with these options instead of its own."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.partition("=")[0] in options
        if not dropping:
            kept.append(word)
    return kept + [word for option, value in options.items() for word in (option, *value.split())]
