"""``vtc archive``, ``vtc unarchive`` and ``vtc restore``: checkpoints in fewer bytes, and exactly as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import Debug, user_errors


@user_errors
def archive(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder, or a file.")],
    path: Annotated[Path, typer.Argument(help="The archive to write, like model.vtcz.")],
    debug: Debug = False,
) -> None:
    """Store a checkpoint in fewer bytes, bit for bit: about a third less for bf16 weights.

    vtc archive ./my-vlm my-vlm.vtcz
    """
    from vtc.weights.lossless.archive import archive as run

    index = run(source, path)
    size = path.stat().st_size
    typer.echo(f"{path}: {size} bytes, {100 * size / max(1, index.raw):.1f} % of the {index.raw} in {source}")


@user_errors
def unarchive(
    path: Annotated[Path, typer.Argument(help="An archive of vtc archive.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything yet.")],
    debug: Debug = False,
) -> None:
    """Write the files of an archive, every bit as it was stored, or nothing.

    vtc unarchive my-vlm.vtcz ./my-vlm
    """
    from vtc.weights.lossless.archive import unarchive as run

    typer.echo(f"{run(path, folder)}: all files are as they were stored")


@user_errors
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder of compressed weights that keeps its original.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything yet.")],
    debug: Debug = False,
) -> None:
    """Go back from compressed weights to the exact original, where it was kept beside them.

    vtc restore ./my-vlm-int4 ./my-vlm
    """
    from vtc.checkpoint.restore import restore as run

    typer.echo(f"{run(folder, out)}: all files are as they were before the weights were compressed")
