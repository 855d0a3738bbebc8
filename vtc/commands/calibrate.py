"""``vtc calibrate``: where in a model's decoder vision tokens may stop and rest, and of how many to choose."""

from __future__ import annotations

from typing import Annotated

import typer

from vtc.commands.common import (
    Attn,
    Calibration,
    Data,
    DataDir,
    Debug,
    Device,
    DType,
    Model,
    Seed,
    batches,
    calibration_set,
    one_budget,
    user_errors,
)


@user_errors
def calibrate(
    model: Model,
    calibration: Calibration = "",
    data: Data = None,
    examples: Annotated[int, typer.Option(min=1, help="Prompts; a few dozen do.")] = 48,
    budget: Annotated[
        str, typer.Option("--budget", "--budgets", help="The least that matters: tokens a picture, or a share.")
    ] = "3.125%",
    data_dir: DataDir = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    dtype: DType = "auto",
    device: Device = "auto",
    attn: Attn = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    r"""Find in which layer of a model vision tokens may stop, how many its layers need to choose from, which part goes
    on and the layers in which they may rest; print it as vtc eval takes it, or plain "adaptive" where nothing is
    clearly better. What holds at other budgets goes to the terminal.

        vtc calibrate ./my-vlm --data questions.jsonl

        vtc eval ./my-vlm --data questions.jsonl --budgets 3% \
            --methods "$(vtc calibrate ./my-vlm --data questions.jsonl)" \
            --output runs/mine

    In Python: vtc.patch(model, vtc.calibrate(model, prompts), budget).
    """
    from vtc.eval.asking.load import load
    from vtc.methods._spelling import spell
    from vtc.patching.calibration import calibrate as run

    least = one_budget(budget)
    source = calibration_set(calibration, data, examples, data_dir, seed)
    samples = list(source.samples())
    vlm, processor = load(model, dtype, device, attn)
    typer.echo(spell(run(vlm, batches(vlm, processor, source, samples, batch_size), least)))
