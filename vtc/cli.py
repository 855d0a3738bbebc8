"""The command ``vtc``: its commands (``vtc.commands``) in the order of ``vtc --help``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vtc.commands.archive import archive, restore, unarchive
from vtc.commands.benchmarks import list_benchmarks
from vtc.commands.calibrate import calibrate
from vtc.commands.common import TakesModel
from vtc.commands.compress import compress
from vtc.commands.demo import demo
from vtc.commands.doctor import doctor
from vtc.commands.evaluate import evaluate
from vtc.commands.export import export
from vtc.commands.methods import list_methods
from vtc.commands.sensitivity import sensitivity
from vtc.commands.serve import serve
from vtc.commands.show import show
from vtc.commands.training import finetune, heal
from vtc.version import __version__

app = typer.Typer(
    name="vtc",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def tell_version(wanted: bool) -> None:
    """``vtc 0.1.0`` and nothing else."""
    if wanted:
        typer.echo(f"vtc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Fewer vision tokens for vision-language models, and what that costs.

    First steps:

    * `vtc demo`: a dozen methods on the built-in testbed: a table, a plot, pictures (minutes on a CPU)

    * `vtc methods`: what there is to choose from

    * `vtc eval --help`: the same on your model and your pictures

    * `vtc sensitivity --help`: which decoder layers need the picture

    * `vtc compress --help`: smaller weights

    * `vtc serve --help`: the model over HTTP, by vLLM

    * `vtc finetune --help`: a model that learns to live with fewer tokens

    * `vtc doctor`: when something is off
    """


app.command("eval", cls=TakesModel)(evaluate)
app.command()(demo)
app.command("methods")(list_methods)
app.command("benchmarks")(list_benchmarks)
app.command(cls=TakesModel)(show)
app.command(cls=TakesModel)(sensitivity)
app.command(cls=TakesModel)(calibrate)
app.command(cls=TakesModel)(compress)
app.command(cls=TakesModel, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command(cls=TakesModel)(finetune)
app.command(cls=TakesModel)(heal)
app.command()(export)
app.command()(archive)
app.command()(unarchive)
app.command()(restore)
app.command()(doctor)


def main() -> None:
    """The entry point."""
    # Threads that spin while they wait made a run 17 times slower on cores that others used too (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, which comes later
    app(prog_name="vtc")


if __name__ == "__main__":
    main()
