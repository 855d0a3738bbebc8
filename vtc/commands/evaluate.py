"""``vtc eval``: accuracy and costs of a model, or two finished runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.commands.common import (
    Attn,
    Benchmarks,
    Budgets,
    Data,
    DataDir,
    Debug,
    Device,
    DType,
    Methods,
    Model,
    Seed,
    sources,
    tell,
    user_errors,
)
from vtc.errors import VTCError


@user_errors
def evaluate(
    model: Model = "",
    output: Annotated[
        Path | None,
        typer.Option(help="The run folder (several benchmarks: a folder each inside). Give it again to go on."),
    ] = None,
    data: Data = None,
    benchmarks: Benchmarks = "",
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="The benchmarks' split; default: the usual one of each.")] = "",
    methods: Methods = "",
    budgets: Budgets = "0.5,0.25,0.125",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    prompt: Annotated[str, typer.Option(help="Frames each question; must hold {question}.")] = "{question}",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: the benchmark's.")] = None,
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Seed = 0,
    timing_repeats: Annotated[
        int, typer.Option(min=0, help="Timed prefills a cell, in turns with the unpatched model; 0: none.")
    ] = 9,
    timing_batch: Annotated[int, typer.Option(min=1, help="Questions in a timed prefill.")] = 1,
    overlays: Annotated[int, typer.Option(min=0, help="Pictures to draw with the patches each method kept.")] = 4,
    allow_errors: Annotated[bool, typer.Option("--allow-errors", help="Exit code 0 although samples failed.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over in a folder that holds another run.")
    ] = False,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Ask again under noise, blur, JPEG, low contrast, typos: 6 x as long."),
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two run folders of the same questions: what changed. Alone.")
    ] = None,
    debug: Debug = False,
) -> None:
    r"""Accuracy, tokens, time and memory of a model, unpatched and with fewer vision tokens.

    Your own questions are a file with one JSON object a line; pictures are paths beside it:

        {"id": "1", "image": "cat.png", "question": "What is on the mat?", "answer": ["cat", "a cat"]}

    Examples:

        vtc eval scenes --methods divprune+share,random --budgets 49,24 \
            --limit 90 --output runs/first

        vtc eval llava-hf/llava-1.5-7b-hf --data questions.jsonl \
            --methods visionzip,divprune+share --budgets 64,128 \
            --output runs/mine

        vtc eval ./my-vlm --benchmarks easy_vqa --data-dir easy_vqa \
            --methods all --budgets 0.5,0.25 --output runs/easy

        vtc eval ./my-vlm --benchmarks scenes,easy_vqa --data-dir data \
            --methods visionzip,divprune --budgets 64 --output runs/both

        vtc eval ./my-vlm --data questions.jsonl --methods fastv:layer=2 \
            --budgets 50% --prompt "{question} Answer in one word." \
            --output runs/fastv

        torchrun --nproc_per_node 4 -m vtc.cli eval ./my-vlm \
            --data questions.jsonl --methods divprune --budgets 64 \
            --output runs/four

        vtc eval --compare runs/before runs/after --output runs/drift

    torchrun deals the batches to its processes, a GPU each; the results are those of one process.
    Killed at any moment, the same command goes on where it stopped. All rows of --data are read before anything is
    written, and bad ones end the command unless --allow-errors passes over them. A sample that fails later, since its
    picture cannot be read or fits no memory even alone, is recorded as an error, counted and not scored; it is not
    tried again unless --overwrite starts over. The run goes on, unless the first 20 samples all fail. Exit code 1: such
    errors without --allow-errors, a bad file or model; 2: a run folder with other settings or another writer.
    """
    if compare:
        if model or data or benchmarks:
            raise VTCError("--compare reads two finished runs; leave out MODEL (--model), --data and --benchmarks")
        return tell_changes(*compare, output)
    if not model or output is None:
        raise VTCError("give a MODEL (or --model MODEL) and --output")
    asked = sources(data, benchmarks, data_dir, model, split=split, seed=seed, limit=limit)
    from vtc.eval import cells
    from vtc.eval import distributed as ranks
    from vtc.eval.asking.generate import check_template
    from vtc.eval.asking.load import load
    from vtc.eval.benchmarks.base import check_rows
    from vtc.eval.running import suite

    specs, values = cells.parse_specs(methods), cells.parse_budgets(budgets)
    cells.plan(specs, values)  # typos are told before a model is loaded
    check_template(prompt)
    if not specs:
        typer.echo("no --methods: only the unpatched model is measured; add --methods divprune --budgets 64", err=True)
    for source in asked:
        check_rows(source, allow_errors, remedy=", or pass over them with --allow-errors")
    world = ranks.join()
    vlm, processor = load(model, dtype, device, attn, learned=True)
    runs = suite.evaluate_all(
        vlm,
        processor,
        asked,
        specs,
        values,
        output,
        world=world,
        robustness=robustness,
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
        if robustness:
            typer.echo((results.folder / "robustness.md").read_text("utf-8"))
    if len(runs) > 1:
        typer.echo(f"all benchmarks: {output / 'table.md'}, {output / 'report.html'}")
    check_errors(runs, allow_errors)


def check_errors(runs: list[Any], allow: bool) -> None:
    """Raises when nothing was answered, or when answers are missing and that is not allowed; names the first errors."""
    from vtc.eval.results.json_lines import first_errors

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


def tell_changes(a: Path, b: Path, output: Path | None) -> None:
    """What changed from run ``a`` to run ``b``, also as ``compare.json`` in ``output``."""
    from vtc.eval.studies.compare import compare, markdown
    from vtc.files.atomic import write_json

    found = compare(a, b)
    typer.echo(markdown(found))
    if output is not None:
        write_json(output / "compare.json", found)
