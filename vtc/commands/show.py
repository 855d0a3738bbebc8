"""``vtc show``: one picture, one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import Attn, Budgets, Debug, Device, DType, Methods, Model, user_errors


@user_errors
def show(
    model: Model,
    image: Annotated[Path, typer.Option(help="A picture.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    methods: Methods = "visionzip",
    budgets: Budgets = "25%",
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("overlay.png"),
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    debug: Debug = False,
) -> None:
    r"""One picture, one question: the answers, and a picture of the patches that were kept or merged.

    Example:

        vtc show ./my-vlm --image cat.png --question "What is this?" \
            --methods visionzip,divprune --budgets 64
    """
    from vtc.eval.studies.show import run

    for line in run(model, image, question, methods, budgets, output, dtype, device, attn):
        typer.echo(line)
