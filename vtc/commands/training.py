"""``vtc finetune`` and ``vtc heal``: a model learns to answer from fewer vision tokens, or what compression took."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from vtc.commands.common import Debug, Model, one_budget, user_errors
from vtc.errors import VTCError
from vtc.files.escape import visible
from vtc.training.settings import Settings

NEEDED = inspect.Parameter.empty
BOTH = {"method": ("--method", "--methods"), "budget": ("--budget", "--budgets")}


def start(
    output: Annotated[Path, typer.Option(help="The folder of the run. Give it again to go on.")],
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines of the log.")] = 10,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data; 0: this one.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over in a folder that holds another run.")
    ] = False,
    debug: Debug = False,
    **settings: Any,
) -> None:
    """Train, and tell where the result is."""
    chosen = Settings(**settings | {"budget": one_budget(settings["budget"])})
    if find_spec("accelerate") is None:
        raise VTCError("training needs the library accelerate; pip install 'vtc-vlm[train]'")
    from vtc.training.run import run

    result = run(chosen, output, save_every, log_every, workers, overwrite)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(visible(str(result)))


def trains(**defaults: Any) -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Makes a command of a name and its help: ``start``, with an option for each of ``Settings``.

    defaults: those that differ; ``NEEDED`` must be given.
    """

    def made(named: Callable[[], None]) -> Callable[..., None]:
        @functools.wraps(named)
        def command(**given: Any) -> None:
            start(**given)

        mine = [p for p in inspect.signature(start, eval_str=True).parameters.values() if p.name != "settings"]
        parameters = [*options(defaults), *mine]
        # What typer reads: a parameter is an option. ``wraps`` shows those of ``named``, which has none.
        setattr(command, "__signature__", inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters]))  # noqa: B010
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return user_errors(command)

    return made


def options(defaults: dict[str, Any]) -> list[inspect.Parameter]:
    """The model and an option for each other setting, with the type and the words that stand there."""
    hints = get_type_hints(Settings, include_extras=True)
    found = []
    for field in fields(Settings):
        kind, told = get_args(hints[field.name])
        default = defaults.get(field.name, NEEDED if field.default is MISSING else field.default)
        names = BOTH.get(field.name, ("--" + field.name.replace("_", "-"),))
        if field.name == "budget":
            kind, default = str, str(default)
        shown = Model if field.name == "model" else Annotated[kind, typer.Option(*names, help=told)]
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=shown,
                default=default,
            )
        )
    return found


@trains()
def finetune() -> None:
    r"""Train a model through a patch, so that it answers from fewer vision tokens.

    --data is a file with one conversation a line (broken here to fit); pictures are paths beside it:

        {"id": "1", "image": "1.png", "messages": [
         {"role": "user", "content": "<image> what is it ?"},
         {"role": "assistant", "content": "a ring"}]}

    Examples:

        vtc finetune scenes --method perceiver --budget 12 --distill 2 \
            --train compressor --steps 100 --output runs/first

        vtc finetune ./my-vlm --data conversations.jsonl --train lora \
            --method divprune+share --budget 64 --output runs/mine

        vtc finetune ./my-vlm --data conversations.jsonl --train all \
            --method divprune --elastic 128,64,32 --budget 64 \
            --bf16 --gradient-checkpointing --output runs/elastic

        torchrun --nproc_per_node 2 -m vtc.cli finetune ./my-vlm \
            --data conversations.jsonl --method divprune+share \
            --budget 64 --output runs/two

    With --distill the model itself teaches, unpatched, or the one of --teacher. torchrun has the losses of one process
    with twice the --batch. The result is OUTPUT/model, for vtc.load and vtc eval; log.jsonl and loss.png tell how it
    went. Stopped or killed, the same command goes on from its last checkpoint, with the numbers of a run that was never
    stopped; a finished run is not trained further. Exit code 1: a bad file, model or setting, or a loss that is not
    finite; 2: a run folder with other settings or another writer. Needs pip install 'vtc-vlm[train]'; more in
    docs/training.md.
    """


@trains(train="all", distill=1.0, weight=1.0, teacher=NEEDED)
def heal() -> None:
    r"""Train a compressed model to answer as its original, the teacher, does.

    After structured pruning, low rank, borrowed blocks or at a small budget it learns the original's logits. As in
    Minitron (arXiv 2407.14679) the loss is distillation alone, unless --weight leaves the answers a part. Low-rank
    factors learn as factors; integers stay what they are.

    Examples:

        vtc compress ./my-vlm --recipe svd:rank=64 --output ./small

        vtc heal ./small --teacher ./my-vlm --data conversations.jsonl \
            --output runs/healed

    Data, files, going on after a stop and exit codes are those of vtc finetune --help.
    """
