"""``vtc show``: one picture, one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import Attn, Debug, Device, DType, Model, user_errors


@user_errors
def show(
    model: Model,
    image: Annotated[Path, typer.Option(help="A picture.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    method: Annotated[str, typer.Option(help="One or more methods, as in vtc eval.")] = "visionzip",
    budget: Annotated[str, typer.Option(help="Tokens (64) or a share (25%).")] = "25%",
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("overlay.png"),
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    debug: Debug = False,
) -> None:
    """One picture, one question: the answers, and a picture of the patches that were kept or merged.

    Example:

        vtc show --model ./my-vlm --image cat.png --question "What is this?" --method visionzip,divprune --budget 64
    """
    from vtc.eval.studies.show import run

    for line in run(model, image, question, method, budget, output, dtype, device, attn):
        typer.echo(line)
