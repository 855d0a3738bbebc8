"""What the commands share: options, errors as one line, the table of a run."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vtc.errors import VTCError
from vtc.files.escape import visible

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A model folder, a model id of the hub, or scenes: the built-in testbed. Also as --model MODEL.",
        show_default=False,
        metavar="MODEL",
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        "--method",
        help="name, name+share, name:option=value, package.module:Class; comma separated, or all.",
    ),
]
Budgets = Annotated[
    str,
    typer.Option("--budgets", "--budget", help="Tokens a picture (64) or shares (0.5, 25%), comma separated."),
]
DType = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: as saved (float32 on a CPU).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")]
Attn = Annotated[str, typer.Option(help="Attention implementation: sdpa, eager, flash_attention_2, or auto.")]
Data = Annotated[Path | None, typer.Option(help="Your questions: .jsonl, .tsv or .parquet.")]
Calibration = Annotated[
    str, typer.Option(help="BENCHMARK or BENCHMARK:SPLIT to calibrate on, or --data; answers are not looked at.")
]
Benchmarks = Annotated[
    str, typer.Option(help="Named benchmarks, comma separated: scenes, pope, ...; see vtc benchmarks.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="The folder that pictures are in and never leave; several benchmarks: holds a folder each."),
]
Seed = Annotated[int, typer.Option(help="Seed of benchmarks that draw their questions.")]


class TakesModel(TyperCommand):
    """A command whose first argument is a model, which may also be given as ``--model MODEL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named, others = model_option(args)
        return super().parse_args(ctx, [*named, *others])


def model_option(args: list[str]) -> tuple[list[str], list[str]]:
    """The value of the last ``--model`` (none: an empty list), and the other arguments."""
    named: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--model":
            named = [value] if (value := next(rest, None)) is not None else named
        elif arg.startswith("--model="):
            named = [arg.removeprefix("--model=")]
        else:
            others.append(arg)
    return named, others


def one_budget(text: str) -> Any:
    """The budget of a command that works at one. Raises ``VTCError`` for none or several."""
    from vtc.eval.cells import parse_budgets

    budgets = parse_budgets(text)
    if len(budgets) != 1:
        raise VTCError(f"--budget {text!r} names {len(budgets)} budgets, and this command works at one; give one")
    return budgets[0]


def user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as one line and an exit code: 1 for data and models, 2 for a refused run folder, 130 for Ctrl-C."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; what was finished is kept. To go on: {resume_command()}", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError) as error:
            if options.get("debug"):
                raise
            hint = "" if isinstance(error, VTCError) else " (--debug shows where)"
            typer.echo(f"error: {visible(' '.join(str(error).split()))}{hint}", err=True)
            raise typer.Exit(2 if type(error).__name__ == "RunRefused" else 1) from None

    return run


def resume_command() -> str:
    """The command that was given, without ``--overwrite``, which would start over."""
    ranks = os.environ.get("WORLD_SIZE")
    start = ["torchrun", "--nproc_per_node", ranks, "-m", "vtc.cli"] if ranks else ["vtc"]
    return shlex.join([*start, *(a for a in sys.argv[1:] if a != "--overwrite")])


def sources(data: Path | None, benchmarks: str, data_dir: Path | None, model: str = "", **options: Any) -> list[Any]:
    """The benchmarks that are asked: your own file, or those that are named; of the testbed's model, the testbed."""
    from vtc.eval import scenes
    from vtc.eval.benchmarks import reader
    from vtc.eval.running import suite

    if not data and not benchmarks and model in scenes.NAMES:
        benchmarks = "scenes"
    if bool(data) == bool(benchmarks):
        raise VTCError("give either --data questions.jsonl or --benchmarks NAMES")
    return suite.parse(reader(data) if data else benchmarks, data_dir, data=data, **options)


def calibration_set(named: str, data: Path | None, examples: int, data_dir: Path | None, seed: int) -> Any:
    """What to calibrate on: the benchmark that ``NAME`` or ``NAME:SPLIT`` means, without a split its dev split where it
    has one; or the questions of a file of your own. Its rows are read, and bad ones told, before a model is loaded."""
    from vtc.eval.benchmarks import reader
    from vtc.eval.benchmarks.base import check_rows
    from vtc.eval.running import suite

    if bool(data) == bool(named):
        raise VTCError("give either --data questions.jsonl or --calibration BENCHMARK, like --calibration scenes:dev")
    name, _, split = (reader(data), "", "") if data else named.partition(":")
    found = suite.parse(name, data_dir, data=data, split=split, prefer="dev", seed=seed, limit=examples)
    if len(found) != 1:
        raise VTCError(f"--calibration {named!r} names {len(found)} benchmarks; give one")
    check_rows(found[0])
    return found[0]


def batches(model: Any, processor: Any, source: Any, samples: list[Any], size: int) -> list[Any]:
    """The samples' prompts as the processor makes them."""
    from vtc.eval.asking.generate import Answerer

    answerer = Answerer(model, processor, source.frame)
    asked = [answerer.ready(sample, source) for sample in samples]
    return [answerer.inputs(asked[n : n + size]) for n in range(0, len(asked), size)]


def tell(results: Any) -> None:
    """The table, and where everything is."""
    from rich.console import Console

    from vtc.eval.report import terminal

    terminal.show(Console(), results.summary, results.measured)
    made = sorted(p.name for p in results.folder.iterdir() if not p.name.startswith("."))
    typer.echo(visible(f"{results.folder}: {', '.join(made)}"))
