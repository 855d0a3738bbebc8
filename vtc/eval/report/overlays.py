"""What a method looked at: the picture with dropped patches dimmed and merged groups coloured, a column a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

import vtc
from vtc.errors import BudgetError, UnsupportedModel
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Sample
from vtc.eval.cells import UNPATCHED, Cell
from vtc.eval.costs.measure import entered
from vtc.eval.report.overlay_paint import fit, paint
from vtc.eval.report.overlay_sheet import Panel, sheet

Score = Callable[[str, Sample], float]


def draw(answerer: Answerer, asked: Asked, cells: list[Cell], score: Score | None = None) -> Image.Image:
    """One sheet: the question, the unpatched answer, then each cell's answer and what it kept. ``score`` tells right
    answers from wrong ones, where some are expected."""
    inputs = answerer.inputs([asked])
    seen = what_the_tower_saw(inputs, answerer.processor, asked.pictures[0])
    with entered(answerer.model, Cell()):
        panels = [Panel(UNPATCHED, answerer.answers(inputs)[0], fit(seen))]
    for cell in cells:
        try:
            with entered(answerer.model, cell) as model:
                answer = answerer.answers(inputs)[0]
                picture = vtc.report(model).pictures[0]
        except (BudgetError, UnsupportedModel):
            continue
        title = f"{cell.spec}: {picture.average:.0f} of {picture.tokens_in}"
        layers = len(picture.chosen)
        shares = [n / layers for n in picture.layers_as_key] if layers else None
        panels.append(Panel(title, answer, paint(seen, picture.grid, picture.slot, shares)))
    expected = asked.sample.answers
    if score and expected:
        panels = [replace(panel, score=score(panel.answer, asked.sample)) for panel in panels]
    return sheet(asked.sample.question + (f" (expected: {' / '.join(expected)})" if expected else ""), panels)


def what_the_tower_saw(inputs: Any, processor: Any, picture: Image.Image) -> Image.Image:
    """The picture after resizing and cropping where the processor makes one plain square of it, else as it came."""
    pixels, image = inputs.get("pixel_values"), getattr(processor, "image_processor", None)
    if pixels is None or pixels.dim() != 4 or pixels.shape[0] != 1 or pixels.shape[1] != 3 or image is None:
        return picture
    values = pixels[0].float().cpu().numpy().transpose(1, 2, 0)
    if getattr(image, "do_normalize", False):
        values = values * np.asarray(image.image_std) + np.asarray(image.image_mean)
    return Image.fromarray((values.clip(0, 1) * 255 + 0.5).astype(np.uint8))
