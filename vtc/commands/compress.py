"""``vtc compress``: a model's weights made smaller, and what each kind of layer lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.commands.common import Attn, DataDir, Debug, Device, DType, Seed, user_errors
from vtc.errors import VTCError


@user_errors
def compress(
    model: Annotated[str, typer.Argument(help="A model folder, or a model id of the hub.")],
    output: Annotated[Path, typer.Option(help="The folder to write; an older one of vtc is replaced.")],
    recipe: Annotated[
        str, typer.Option(help="int8, int4, int3, 2:4, 2:4-int4; passes like gptq:bits=3:group=64; a YAML file.")
    ] = "int4",
    calibration: Annotated[
        str, typer.Option(help="BENCHMARK or BENCHMARK:SPLIT that the weights are fitted to; see vtc benchmarks.")
    ] = "",
    examples: Annotated[int, typer.Option(min=1, help="Prompts of the calibration; a few dozen do.")] = 32,
    data_dir: DataDir = None,
    method: Annotated[str, typer.Option(help="Compress under this token method, which is saved too.")] = "",
    budget: Annotated[str, typer.Option(help="Its tokens a picture (64) or share (25%).")] = "",
    format: Annotated[
        str, typer.Option(help="vtc: every recipe; compressed-tensors: plain 4 and 8 bits, loads without vtc.")
    ] = "vtc",
    verify: Annotated[bool, typer.Option(help="Load and compare what was written before it is published.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration prompts at once.")] = 8,
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Quantize, prune or factorise the decoder's weights and save the model.

    Recipes are names, or passes joined by a bar, each fitted to what the ones before left:

    * `int8`: rounding to nearest in groups of 128; needs no calibration

    * `int4`, `int3`: GPTQ in groups of 128

    * `2:4`, `2:4-int4`: SparseGPT, two of every four weights; with 4 bits for the others

    * `sparsegpt:sparsity=0.5|gptq:bits=4`: your own

    Examples:

        vtc compress ./my-vlm --recipe int8 --output ./my-vlm-int8

        vtc compress ./my-vlm --recipe int4 --calibration scenes:dev --output ./my-vlm-int4

        vtc compress ./my-vlm --recipe int4 --calibration scenes:dev --method divprune --budget 25%
            --output ./small

        vtc compress ./my-vlm --recipe int8 --format compressed-tensors --output ./for-vllm

    Load it with vtc.load(FOLDER), or with from_pretrained after `import vtc.weights` (docs/weights.md). Bits count
    scales and masks. The error of a layer is the squared error of its outputs over their square, on the calibration.
    Stopped or killed, the output folder is as it was.
    """
    from vtc import folders
    from vtc.checkpoint import CONFIG, FORMATS, save
    from vtc.eval import cells
    from vtc.eval.load import load
    from vtc.weights import Recipe
    from vtc.weights import compress as run

    if format not in FORMATS:
        raise VTCError(f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    if bool(method) != bool(budget):
        raise VTCError("give --method and --budget together, or neither")
    folders.check_replaceable(output, CONFIG)
    plan = Recipe.of(recipe)
    if plan.needs_gram and not calibration:
        raise VTCError(f"recipe {recipe} is fitted to prompts; give --calibration, like --calibration scenes:dev")
    patch = (cells.build(method), cells.parse_budget(budget)) if method else None
    source = benchmark(calibration, examples, data_dir, seed) if calibration else None
    samples = [] if source is None else list(source.samples())  # a wrong split is told before a model is loaded
    vlm, processor = load(model, dtype, device, attn)
    if patch:
        import vtc

        vtc.patch(vlm, patch[0], budget=patch[1])
    prompts = None if source is None else batches(vlm, processor, source, samples, batch_size)
    run(vlm, plan, calibration=prompts)
    show(vlm)
    save(vlm, output, processor, format=format, verify=verify)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    typer.echo(f"{output}: {size:,} bytes of weights, format {format}")


def benchmark(named: str, examples: int, data_dir: Path | None, seed: int) -> Any:
    """The benchmark that ``NAME`` or ``NAME:SPLIT`` means; without a split its dev split, where it has one."""
    from vtc.eval import suite

    name, _, split = named.partition(":")
    found = suite.parse(name, data_dir, split=split, prefer="dev", seed=seed, limit=examples)
    if len(found) != 1:
        raise VTCError(f"--calibration {named!r} names {len(found)} benchmarks; give one")
    return found[0]


def batches(model: Any, processor: Any, source: Any, samples: list[Any], size: int) -> list[Any]:
    """The samples' prompts as the processor makes them."""
    from vtc.eval.generate import Answerer

    answerer = Answerer(model, processor, source.frame)
    asked = [answerer.ready(sample, source) for sample in samples]
    return [answerer.inputs(asked[n : n + size]) for n in range(0, len(asked), size)]


def show(model: Any) -> None:
    """Print bits, bytes and error by kind of layer."""
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "number", "bits", "bytes", "mean error", "worst error")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in by_kind(model):
        table.add_row(*row)
    Console().print(table)


def by_kind(model: Any) -> list[tuple[str, ...]]:
    """A row for each last part of the layers' names, and one for all."""
    from vtc.weights import hf

    config = hf.config_of(model)
    layers = {} if config is None else config.manifest["layers"]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, told in layers.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(told)
    return [summed(kind, told) for kind, told in (*kinds.items(), ("all", list(layers.values())))]


def summed(kind: str, told: list[dict[str, Any]]) -> tuple[str, ...]:
    size = sum(layer["bytes"] for layer in told)
    weights = sum(8 * layer["bytes"] / layer["bits"] for layer in told)
    errors = [layer["error"] for layer in told if layer["error"] is not None]
    mean, worst = (f"{sum(errors) / len(errors):.2e}", f"{max(errors):.2e}") if errors else ("–", "–")
    return kind, str(len(told)), f"{8 * size / weights:.2f}", f"{size:,}", mean, worst
