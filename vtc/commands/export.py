"""``vtc export``: questions and pictures in a file that VLMEvalKit reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import Benchmarks, Data, DataDir, Debug, Seed, sources, user_errors
from vtc.errors import VTCError


@user_errors
def export(
    output: Annotated[Path, typer.Option(help="The TSV file to write; with open answers name it ..._openended.tsv.")],
    data: Data = None,
    benchmarks: Benchmarks = "",
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="The benchmark's split; default: its usual one.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Questions and pictures as one TSV file that VLMEvalKit reads (docs/lmms_eval.md).

    Example:

        vtc export --data questions.jsonl --output $LMUData/mine_openended.tsv
    """
    if output.suffix != ".tsv":
        raise VTCError(f"output {output} does not end in .tsv, and VLMEvalKit looks for NAME.tsv; name it so")
    asked = sources(data, benchmarks, data_dir, split=split, seed=seed, limit=limit)
    if len(asked) > 1:
        raise VTCError(f"--benchmarks names {len(asked)}, and a file holds one; run vtc export for each")
    from vtc.integrations.vlmevalkit import export as run

    typer.echo(f"{output}: {run(asked[0], output):,} questions")
