"""``vtc compress``: a model's weights made smaller, and what each kind of layer lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.commands.common import (
    Attn,
    Calibration,
    Data,
    DataDir,
    Debug,
    Device,
    Model,
    Seed,
    batches,
    calibration_set,
    one_budget,
    user_errors,
)
from vtc.errors import VTCError


@user_errors
def compress(
    model: Model,
    output: Annotated[Path, typer.Option(help="The folder to write; an older one of vtc is replaced.")],
    recipe: Annotated[
        str, typer.Option(help="int8, int4, int3, 2:4, 2:4-int4; passes like gptq:bits=3:group=64; a YAML file.")
    ] = "int4",
    calibration: Calibration = "",
    data: Data = None,
    examples: Annotated[int, typer.Option(min=1, help="Prompts of the calibration; a few dozen do.")] = 32,
    target: Annotated[str, typer.Option(help="The weights' size, like 2.5GB: each layer gets its own candidate.")] = "",
    target_bits: Annotated[float, typer.Option(help="The same as bits a weight on average, like 3.5.")] = 0.0,
    candidates: Annotated[
        str, typer.Option(help="What a target chooses from, comma separated.")
    ] = "gptq:bits=2,gptq:bits=3,gptq:bits=4,gptq:bits=5,gptq:bits=6,gptq:bits=8",
    data_dir: DataDir = None,
    method: Annotated[
        str, typer.Option("--method", "--methods", help="Compress under this token method, which is saved too.")
    ] = "",
    budget: Annotated[
        str, typer.Option("--budget", "--budgets", help="Its tokens a picture (64) or share (25%).")
    ] = "",
    format: Annotated[
        str, typer.Option(help="vtc: every recipe; compressed-tensors: plain 4 and 8 bits, loads without vtc.")
    ] = "vtc",
    verify: Annotated[bool, typer.Option(help="Load and compare what was written before it is published.")] = True,
    keep_original: Annotated[
        bool, typer.Option(help="Keep MODEL, a folder, in the output, bit for bit, for vtc restore.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration prompts at once.")] = 8,
    dtype: Annotated[
        str,
        typer.Option(help="float32, float16, bfloat16, or auto: as saved, in which all stays that is not compressed."),
    ] = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    r"""Quantize, prune or factorise the decoder's weights and save the model.

    Recipes are names, or passes joined by a bar, each fitted to what the ones before left:

    * `int8`: rounding to nearest in groups of 128; needs no calibration

    * `int4`, `int3`: GPTQ in groups of 128

    * `2:4`, `2:4-int4`: SparseGPT, two of every four weights; with 4 bits for the others

    * `sparsegpt:sparsity=0.5|gptq:bits=4`: your own

    Examples:

        vtc compress ./my-vlm --recipe int8 --output ./my-vlm-int8

        vtc compress ./my-vlm --recipe int4 --data questions.jsonl \
            --output ./my-vlm-int4

        vtc compress ./my-vlm --recipe int4 --calibration scenes:dev \
            --method divprune --budget 25% --output ./small

        vtc compress ./my-vlm --recipe int8 --format compressed-tensors \
            --output ./for-vllm

        vtc compress ./my-vlm --recipe int8 --keep-original --output ./small

        vtc restore ./small ./again

        vtc compress ./my-vlm --target-bits 3.5 --calibration scenes:dev \
            --examples 512 --output ./planned

    With a target a quarter of the examples fit every candidate on every layer, half say what its errors would do to the
    next token, and a quarter compare the plan with one candidate for all layers. Give hundreds. plan.md, plan.json and
    plan.png show what was chosen and why. Minutes on a small model, hours on 7B. Of a recipe file include, skip and
    buckets count then, not its passes.

    Load it with vtc.load(FOLDER), or with from_pretrained after `import vtc.weights` (docs/weights.md). What is not
    compressed keeps its dtype, and scales and factors have that of the weight they stand for, on every device; a model
    of several dtypes is loaded in one, with a warning. To
    calibrate float16 is slow on a CPU; --dtype bfloat16 or float32 is faster, and stored so. Bits count scales and
    masks. The error of a layer is the squared error of its outputs over their square, on the calibration. Stopped or
    killed, the output folder is as it was.
    """
    from vtc.checkpoint.config import CONFIG
    from vtc.checkpoint.save_load import save
    from vtc.eval import cells
    from vtc.eval.asking.load import folder_of, load
    from vtc.files import folders
    from vtc.files.digest import weights_sha256
    from vtc.weights import formats
    from vtc.weights.lossless.planes import coders
    from vtc.weights.pipeline import compress as run
    from vtc.weights.recipe import Recipe

    if format not in formats.registry:
        raise VTCError(f"there is no format {format!r}; there are: {', '.join(formats.registry)}")
    if bool(method) != bool(budget):
        raise VTCError("give --method and --budget together, or neither")
    folders.check_replaceable(output, CONFIG)
    if keep_original:
        weights_sha256(folder_of(model))  # no folder, no weights: told before hours of work, as is a missing package
        coders()
    if target and target_bits:
        raise VTCError("give --target or --target-bits, not both")
    size, chosen = parse_size(target), Recipe.of(recipe)
    fitted = calibration or data
    if (chosen.needs_gram or size or target_bits) and not fitted:
        what = f"recipe {recipe}" if chosen.needs_gram else "a target"
        raise VTCError(f"{what} is fitted to prompts; give --data questions.jsonl, or --calibration scenes:dev")
    patch = (cells.build(method), one_budget(budget)) if method else None
    source = calibration_set(calibration, data, examples, data_dir, seed) if fitted else None
    samples = [] if source is None else list(source.samples())
    vlm, processor = load(model, "saved" if dtype == "auto" else dtype, device, attn)
    if dtype == "auto":
        tell_dtypes(folder_of(model), vlm)
    if patch:
        import vtc

        vtc.patch(vlm, patch[0], budget=patch[1])
    prompts = None if source is None else batches(vlm, processor, source, samples, batch_size)
    plan = checked = None
    if prompts and (size or target_bits):
        plan, checked = planned(vlm, prompts, chosen, candidates, target_bits, size)
        chosen = plan.recipe(chosen)
        typer.echo(checked)
    run(vlm, chosen, calibration=prompts)
    show(vlm)
    save(
        vlm, output, processor, format=format, verify=verify, keep_original=folder_of(model) if keep_original else None
    )
    if plan is not None:
        write_plan(plan, checked, output)
    tell_size(output, bytes_of(folder_of(model)), format)


def bytes_of(model: str | Path) -> int | None:
    """Of the files that hold a model's weights; None where there are none."""
    return sum(path.stat().st_size for path in weights_of(model)) or None


def weights_of(model: str | Path) -> list[Path]:
    """The files that hold a model's weights, in a folder or in the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(model)
    if not folder.is_dir():
        cached = try_to_load_from_cache(str(model), "config.json")
        folder = Path(cached).parent if isinstance(cached, str) else folder
    return sorted(folder.glob("model*.safetensors"))


FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors names them


def tell_dtypes(model: str | Path, loaded: Any) -> None:
    """Warn where the files hold other dtypes than the loaded model: transformers loads a model in one."""
    from vtc.weights.lossless.tensorfile import read_head

    held = {FLOATS[p.dtype] for path in weights_of(model) for p in read_head(path)[1] if p.dtype in FLOATS}
    got = {str(p.dtype).removeprefix("torch.") for p in loaded.parameters() if p.is_floating_point()}
    if held and (len(held) > 1 or held != got):
        typer.echo(
            f"warning: {model} holds tensors in {' and '.join(sorted(held))}, and transformers loads them in "
            f"{' and '.join(sorted(got))}, as what is not compressed will be saved; choose by --dtype.",
            err=True,
        )


def tell_size(output: Path, before: int | None, format: str) -> None:
    """Print the bytes before and after, and warn where they did not become fewer."""
    after = bytes_of(output) or 0
    told = "" if before is None else f", {100 * after / before:.1f} % of the {before:,} before"
    typer.echo(f"{output}: {after:,} bytes of weights{told}, format {format}")
    if before is not None and after >= before:
        typer.echo(
            "warning: this is not smaller than the original. What is not compressed keeps its dtype (--dtype changes "
            "it), and a recipe of more bits than the original has, or of pruning without rounding, saves little.",
            err=True,
        )


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> float:
    """``2.5GB`` in bytes; 0 where nothing is given."""
    number = text.strip().upper().rstrip("BGIKM")
    unit = text.strip().upper()[len(number) :].strip()
    try:
        return float(number) * UNITS[unit] if text else 0.0
    except (ValueError, KeyError):
        raise VTCError(f"size {text!r} is not a number of bytes; write it like 900MB or 2.5GB") from None


def planned(model: Any, prompts: list[Any], recipe: Any, candidates: str, bits: float, size: float) -> tuple[Any, Any]:
    """The plan for the layers of ``recipe`` whose weights take ``bits`` a weight, or with all other tensors ``size``
    bytes, and its check."""
    from vtc.weights.planning.check import check
    from vtc.weights.planning.plan import allocate, trials

    if len(prompts) < 3:
        raise VTCError("a target needs three batches of prompts: to fit, to foresee, to compare; give more --examples")
    part = max(1, len(prompts) // 4)
    fit, foresee, compare = prompts[:part], prompts[part:-part], prompts[-part:]
    tried = trials(model, fit, foresee, [text.strip() for text in candidates.split(",") if text.strip()], recipe)
    plan = allocate(tried, bits=bits) if bits else allocate(tried, limit=size - beside(model, tried))
    return plan, check(model, plan, fit, compare, recipe)


def beside(model: Any, tried: list[Any]) -> int:
    """Bytes of the tensors that no trial is about."""
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    names = {trial.layer for trial in tried}
    planned_for = sum(
        model.get_submodule(n).weight.numel() * model.get_submodule(n).weight.element_size() for n in names
    )
    return sum(tensors.values()) - planned_for


def write_plan(plan: Any, checked: Any, folder: Path) -> None:
    """plan.md, plan.json and, where matplotlib is, plan.png."""
    import dataclasses

    from vtc.eval.report import plots
    from vtc.files.atomic import write_atomic, write_json, write_text
    from vtc.weights.planning import report as plan_report

    write_text(folder / "plan.md", plan_report.table(plan, checked))
    write_json(folder / "plan.json", plan.written() | {"check": dataclasses.asdict(checked)})
    if plots.available():
        write_atomic(folder / "plan.png", lambda path: plan_report.plot(plan, path))


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
    from vtc.weights.formats import hf

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
