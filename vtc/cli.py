"""The command ``vtc``. Nothing heavy is imported before a command runs: ``vtc --help`` needs no torch."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.errors import VTCError

app = typer.Typer(
    name="vtc",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
Model = Annotated[str, typer.Option(help="A model folder, or a model id of the hub.")]
DType = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: as saved (float32 on a CPU).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")]
Attn = Annotated[str, typer.Option(help="Attention implementation: sdpa, eager, flash_attention_2, or auto.")]


@app.callback()
def root() -> None:
    """Fewer vision tokens for vision-language models, and what that costs.

    First steps:

    * `vtc demo`: a dozen methods on the built-in testbed: a table, a plot, pictures (minutes on a CPU)

    * `vtc methods`: what there is to choose from

    * `vtc eval --help`: the same on your model and your pictures

    * `vtc sensitivity --help`: which decoder layers need the picture

    * `vtc doctor`: when something is off
    """


def user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as one line and an exit code: 1 for data and models, 2 for a refused run folder, 130 for Ctrl-C."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; nothing is lost. To go on: {resume_command()}", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError) as error:
            if options.get("debug"):
                raise
            hint = "" if isinstance(error, VTCError) else " (--debug shows where)"
            typer.echo(f"error: {' '.join(str(error).split())}{hint}", err=True)
            raise typer.Exit(2 if type(error).__name__ == "RunRefused" else 1) from None

    return run


def resume_command() -> str:
    """The command that was given, without ``--overwrite``, which would start over."""
    ranks = os.environ.get("WORLD_SIZE")
    start = ["torchrun", "--nproc_per_node", ranks, "-m", "vtc.cli"] if ranks else ["vtc"]
    return shlex.join([*start, *(a for a in sys.argv[1:] if a != "--overwrite")])


@app.command("eval")
@user_errors
def evaluate(
    model: Model,
    output: Annotated[
        Path, typer.Option(help="The run folder (several benchmarks: a folder each inside). Give it again to go on.")
    ],
    data: Annotated[Path | None, typer.Option(help="Your questions, a JSON object a line.")] = None,
    benchmarks: Annotated[str, typer.Option(help="Named benchmarks, comma separated: scenes, easy_vqa.")] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The folder that pictures are in and never leave; several benchmarks: holds a folder each."),
    ] = None,
    split: Annotated[str, typer.Option(help="The benchmarks' split.")] = "test",
    methods: Annotated[str, typer.Option(help="name, name+share, name:option=value; comma separated, or all.")] = "",
    budgets: Annotated[
        str, typer.Option(help="Tokens a picture (64) or shares (0.5, 25%), comma separated.")
    ] = "0.5,0.25,0.125",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    prompt: Annotated[str, typer.Option(help="Frames each question; must hold {question}.")] = "{question}",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: the benchmark's.")] = None,
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Annotated[int, typer.Option(help="Seed of benchmarks that draw their questions.")] = 0,
    timing_repeats: Annotated[
        int, typer.Option(min=0, help="Timed prefills a cell, in turns with the unpatched model; 0: none.")
    ] = 9,
    timing_batch: Annotated[int, typer.Option(min=1, help="Questions in a timed prefill.")] = 1,
    overlays: Annotated[int, typer.Option(min=0, help="Pictures to draw with the patches each method kept.")] = 4,
    allow_errors: Annotated[bool, typer.Option("--allow-errors", help="Exit code 0 although samples failed.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over in a folder that holds another run.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Accuracy, tokens, time and memory of a model, unpatched and with fewer vision tokens.

    Your own questions are a file with one JSON object a line; pictures are paths beside it:

        {"id": "1", "image": "cat.png", "question": "What is on the mat?", "answer": ["cat", "a cat"]}

    Examples:

        vtc eval --model llava-hf/llava-1.5-7b-hf --data questions.jsonl
            --methods visionzip,divprune+share --budgets 64,128 --output runs/mine

        vtc eval --model ./my-vlm --benchmarks easy_vqa --data-dir easy_vqa
            --methods all --budgets 0.5,0.25 --output runs/easy

        vtc eval --model ./my-vlm --benchmarks scenes,easy_vqa --data-dir data
            --methods visionzip,divprune --budgets 64 --output runs/both

        vtc eval --model ./my-vlm --data q.jsonl --methods fastv:layer=2 --budgets 50%
            --prompt "{question} Answer in one word." --output runs/fastv

        torchrun --nproc_per_node 4 -m vtc.cli eval --model ./my-vlm --data q.jsonl
            --methods divprune --budgets 64 --output runs/four

    torchrun deals the batches to its processes, a GPU each; the results are those of one process.
    Killed at any moment, the same command goes on where it stopped. A sample that cannot be read, or fits no memory
    even alone, is recorded as an error, counted and not scored; it is not tried again unless --overwrite starts over.
    The run goes on, unless the first 20 samples all fail. Exit code 1: such errors without --allow-errors, a bad file
    or model; 2: a run folder with other settings or another writer.
    """
    if bool(data) == bool(benchmarks):
        raise VTCError("give either --data questions.jsonl or --benchmarks NAMES")
    from vtc.eval import cells, ranks, suite
    from vtc.eval.generate import check_template
    from vtc.eval.load import load

    sources = suite.parse(benchmarks or "jsonl", data_dir, data=data, split=split, seed=seed, limit=limit)
    specs, values = cells.parse_specs(methods), cells.parse_budgets(budgets)
    cells.plan(specs, values)  # typos are told before a model is loaded
    check_template(prompt)
    world = ranks.join()
    vlm, processor = load(model, dtype, device, attn)
    runs = suite.evaluate_all(
        vlm,
        processor,
        sources,
        specs,
        values,
        output,
        world=world,
        batch_size=batch_size,
        template=prompt,
        max_new_tokens=max_new_tokens,
        overwrite=overwrite,
        timing_batch=timing_batch,
        repeats=timing_repeats,
        overlays=overlays,
        name=model,
    )
    if not world.first:
        return
    for results in runs:
        tell(results)
    if len(runs) > 1:
        typer.echo(f"all benchmarks: {output / 'table.md'}")
    check_errors(runs, allow_errors)


@app.command()
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
    from vtc.eval.demo import run

    tell(run(output, questions, cells.parse_specs(methods), cells.parse_budgets(budgets)))


@app.command("methods")
@user_errors
def list_methods(debug: Debug = False) -> None:
    """The methods there are: where they cut, what they look at, and the paper."""
    from rich.console import Console

    from vtc.eval.catalogue import papers, table

    console = Console()
    console.print(table())
    console.print(papers())


@app.command()
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
    from vtc.eval.show import run

    for line in run(model, image, question, method, budget, output, dtype, device, attn):
        typer.echo(line)


@app.command()
@user_errors
def sensitivity(
    model: Model,
    output: Annotated[Path, typer.Option(help="The folder for sensitivity.md, .png and .json.")],
    data: Annotated[Path | None, typer.Option(help="Your questions, a JSON object a line.")] = None,
    benchmark: Annotated[str, typer.Option(help="A named benchmark, as in vtc eval.")] = "",
    data_dir: Annotated[Path | None, typer.Option(help="The folder that pictures are in and never leave.")] = None,
    split: Annotated[str, typer.Option(help="The benchmark's split: choose on dev, report on test.")] = "dev",
    limit: Annotated[int, typer.Option(min=1, help="Questions; a few dozen do.")] = 48,
    keep: Annotated[str, typer.Option(help="Shares of the tokens left after a cut.")] = "50%,25%,12.5%",
    layers: Annotated[str, typer.Option(help="Where to cut, like 0,2,4; default: at most 12, evenly.")] = "",
    tolerance: Annotated[float, typer.Option(help="Nats of divergence a suggested cut may cost.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Annotated[int, typer.Option(help="Seed of benchmarks that draw their questions.")] = 0,
    debug: Debug = False,
) -> None:
    """Where a model needs its pictures: the cost of dropping vision tokens before each decoder layer.

    Cuts before each layer at random and by the question's attention; accuracy and divergence of the next token, the
    attention that goes to vision tokens, and the schedule these suggest. Interrupted, the same command goes on.

        vtc sensitivity --model ./my-vlm --data questions.jsonl --output runs/sensitivity
    """
    if bool(data) == bool(benchmark):
        raise VTCError("give either --data questions.jsonl or --benchmark NAME")
    from vtc.eval import cells
    from vtc.eval.benchmarks import registry
    from vtc.eval.load import load
    from vtc.eval.sensitivity import sensitivity as run

    source = registry["jsonl" if data else benchmark](data=data, data_dir=data_dir, split=split, seed=seed, limit=limit)
    where = [whole_number(part) for part in layers.split(",") if part.strip()] or None
    shares = [float(share) for share in cells.parse_budgets(keep)]
    vlm, processor = load(model, dtype, device, attn)
    run(
        vlm,
        processor,
        source,
        output,
        keeps=shares,
        layers=where,
        tolerance=tolerance,
        batch_size=batch_size,
        name=model,
    )
    typer.echo((output / "sensitivity.md").read_text("utf-8"))


def whole_number(text: str) -> int:
    if not text.strip().isdigit():
        raise VTCError(f"layer {text.strip()!r} is not a whole number; give decoder layers like 0,2,4")
    return int(text)


@app.command()
@user_errors
def doctor(debug: Debug = False) -> None:
    """Check the installation: versions, devices, torchvision, Triton, the other package called vtc, disk."""
    from vtc.doctor import report

    lines, healthy = report()
    for line in lines:
        typer.echo(line)
    if not healthy:
        raise typer.Exit(1)


@app.command()
@user_errors
def archive(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder, or a file.")],
    path: Annotated[Path, typer.Argument(help="The archive to write, like model.vtcz.")],
    debug: Debug = False,
) -> None:
    """Store a checkpoint in fewer bytes, bit for bit: about a third less for bf16 weights.

    vtc archive ./my-vlm my-vlm.vtcz
    """
    from vtc.weights.lossless import archive as run

    index = run(source, path)
    size = path.stat().st_size
    typer.echo(f"{path}: {size} bytes, {100 * size / max(1, index.raw):.1f} % of the {index.raw} in {source}")


@app.command()
@user_errors
def unarchive(
    path: Annotated[Path, typer.Argument(help="An archive of vtc archive.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything yet.")],
    debug: Debug = False,
) -> None:
    """Write the files of an archive, every bit as it was stored, or nothing.

    vtc unarchive my-vlm.vtcz ./my-vlm
    """
    from vtc.weights.lossless import unarchive as run

    typer.echo(f"{run(path, folder)}: all files are as they were stored")


@app.command()
@user_errors
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder of compressed weights that keeps its original.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything yet.")],
    debug: Debug = False,
) -> None:
    """Go back from compressed weights to the exact original, where it was kept beside them.

    vtc restore ./my-vlm-int4 ./my-vlm
    """
    from vtc.weights.restore import restore as run

    typer.echo(f"{run(folder, out)}: all files are as they were before the weights were compressed")


def tell(results: Any) -> None:
    """The table, and where everything is."""
    from rich.console import Console

    from vtc.eval import tables

    wide = Console(width=None if sys.stdout.isatty() else 120)
    wide.print(tables.terminal(results.summary, results.measured))
    for note in tables.notes(results.summary, results.measured):
        wide.print(note, style="dim", markup=False, highlight=False)
    made = sorted(p.name for p in results.folder.iterdir() if not p.name.startswith("."))
    typer.echo(f"{results.folder}: {', '.join(made)}")


def check_errors(runs: list[Any], allow: bool) -> None:
    """Raises when nothing was answered, or when answers are missing and that is not allowed; names the first errors."""
    from vtc.eval.lines import first_errors

    for results in runs:
        cells = results.summary["cells"].values()
        failed, answered = (sum(cell.get(key, 0) for cell in cells) for key in ("errors", "questions"))
        if not failed and answered or answered and allow:
            continue
        first = "; ".join(first_errors(results.folder / "results.jsonl", 3)) or "there are no questions"
        count = f"{failed} answers are missing" if answered else "no question could be answered"
        raise VTCError(
            f"{results.folder}: {count}, first: {first} (kept until --overwrite; --allow-errors passes over some)"
        )


def main() -> None:
    """The entry point."""
    # Threads that spin while they wait made a run 17 times slower on cores that others used too (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, which comes later
    app(prog_name="vtc")


if __name__ == "__main__":
    main()
