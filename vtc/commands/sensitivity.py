"""``vtc sensitivity``: which decoder layers need the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import (
    Attn,
    Benchmarks,
    Data,
    DataDir,
    Debug,
    Device,
    DType,
    Model,
    Seed,
    sources,
    user_errors,
)
from vtc.errors import VTCError


@user_errors
def sensitivity(
    model: Model,
    output: Annotated[Path, typer.Option(help="The folder for sensitivity.md, .png and .json.")],
    data: Data = None,
    benchmarks: Benchmarks = "",
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="The benchmarks' split; default: dev of those that have one.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Questions; a few dozen do.")] = 48,
    keep: Annotated[str, typer.Option(help="Shares of the tokens left after a cut.")] = "50%,25%,12.5%",
    layers: Annotated[str, typer.Option(help="Where to cut, like 0,2,4; default: at most 12, evenly.")] = "",
    tolerance: Annotated[float, typer.Option(help="Nats of divergence a suggested cut may cost.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Where a model needs its pictures: the cost of dropping vision tokens before each decoder layer.

    Cuts before each layer at random and by the question's attention; accuracy and divergence of the next token, the
    attention that goes to vision tokens, and the schedule these suggest. Interrupted, the same command goes on.

        vtc sensitivity ./my-vlm --data questions.jsonl --output runs/where

        vtc sensitivity ./my-vlm --benchmarks mmbench --output runs/where

    Choose on one split and report on another. Several benchmarks have a folder each.
    """
    asked = sources(data, benchmarks, data_dir, model, split=split, prefer="dev", seed=seed, limit=limit)
    from vtc.eval import cells
    from vtc.eval.asking.load import load
    from vtc.eval.studies.sensitivity import sensitivity as run

    where = [whole_number(part) for part in layers.split(",") if part.strip()] or None
    shares = [float(share) for share in cells.parse_budgets(keep)]
    vlm, processor = load(model, dtype, device, attn)
    for source in asked:
        folder = output if len(asked) == 1 else output / source.name
        run(
            vlm,
            processor,
            source,
            folder,
            keeps=shares,
            layers=where,
            tolerance=tolerance,
            batch_size=batch_size,
            name=model,
        )
        typer.echo((folder / "sensitivity.md").read_text("utf-8"))


def whole_number(text: str) -> int:
    if not text.strip().isdigit():
        raise VTCError(f"layer {text.strip()!r} is not a whole number; give decoder layers like 0,2,4")
    return int(text)
