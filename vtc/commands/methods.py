"""``vtc methods``: what there is to choose from."""

from __future__ import annotations

from vtc.commands.common import Debug, user_errors


@user_errors
def list_methods(debug: Debug = False) -> None:
    """The methods there are: where they cut, what they look at, and the paper."""
    from rich.console import Console

    from vtc.eval.report.catalogue import papers, table

    console = Console()
    console.print(table())
    console.print(papers())
