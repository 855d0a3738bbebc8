"""``vtc demo``: the built-in testbed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import Debug, tell, user_errors


@user_errors
def demo(
    output: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    questions: Annotated[int, typer.Option(min=9, help="Questions a cell.")] = 207,
    methods: Annotated[str, typer.Option(help="As in vtc eval; empty: a dozen worth seeing.")] = "",
    budgets: Annotated[str, typer.Option(help="As in vtc eval.")] = "0.5,0.25,0.125,0.0625",
    debug: Debug = False,
) -> None:
    """Every method at 50, 25, 12.5 and 6.25 % of the tokens on the built-in testbed: minutes on a CPU, no downloads."""
    from vtc.eval import cells
    from vtc.eval.studies.demo import run

    tell(run(output, questions, cells.parse_specs(methods), cells.parse_budgets(budgets)))
