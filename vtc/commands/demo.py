"""``vtc demo``: the built-in testbed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtc.commands.common import Budgets, Debug, Methods, tell, user_errors


@user_errors
def demo(
    output: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    questions: Annotated[int, typer.Option(min=9, help="Questions a cell.")] = 207,
    methods: Methods = "",
    budgets: Budgets = "0.5,0.25,0.125,0.0625",
    debug: Debug = False,
) -> None:
    """A dozen methods at 50, 25, 12.5 and 6.25 % of the tokens on the built-in testbed: minutes on a CPU, no
    downloads."""
    from vtc.eval import cells
    from vtc.eval.studies.demo import run

    tell(run(output, questions, cells.parse_specs(methods), cells.parse_budgets(budgets)))
