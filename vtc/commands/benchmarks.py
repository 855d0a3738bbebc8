"""``vtc benchmarks``: what can be asked."""

from __future__ import annotations

import typer

from vtc.commands.common import Debug, user_errors


@user_errors
def list_benchmarks(debug: Debug = False) -> None:
    """The benchmarks there are: their data sets, splits and figures, in Markdown."""
    from vtc.eval.report.catalogue import benchmark_table

    typer.echo(benchmark_table())
