"""``vtc show``: one picture and one question, the answers and an overlay."""

from __future__ import annotations

from pathlib import Path

from vtc.errors import DataError
from vtc.eval import cells
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.asking.limits import check_pictures, check_texts
from vtc.eval.asking.load import load
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.cells import Cell
from vtc.eval.costs.measure import entered
from vtc.eval.data.images import load_image
from vtc.eval.report import overlays
from vtc.files.atomic import write_atomic
from vtc.files.escape import visible


def run(
    model: str, image: Path, question: str, methods: str, budgets: str, output: Path, dtype: str, device: str, attn: str
) -> list[str]:
    """Write the overlay; the lines to print."""
    if not image.is_file():
        raise DataError(f"{image} is no file; give the path of a picture")
    picture = load_image(image.name, image.parent)
    chosen = cells.plan(cells.parse_specs(methods), cells.parse_budgets(budgets))[1:]
    vlm, processor = load(model, dtype, device, attn, learned=True)
    answerer = Answerer(vlm, processor, Benchmark.frame, max_new_tokens=32)
    sample = Sample("show", question, images=(image.name,), where=str(image))
    check_texts(sample)
    check_pictures([picture.size], processor, sample.where)
    asked = Asked(sample, [picture], answerer.prompt(question, 1))
    inputs = answerer.inputs([asked])
    with entered(vlm, Cell()):
        lines = [f"unpatched: {visible(answerer.answers(inputs)[0])}"]
    import vtc

    for cell in chosen:
        with entered(vlm, cell):
            lines += [f"{visible(cell.name)}: {visible(answerer.answers(inputs)[0])}", f"  {vtc.report(vlm)}"]
    sheet = overlays.draw(answerer, asked, chosen)
    write_atomic(output, lambda path: sheet.save(path, format="PNG"))
    return [*lines, f"overlay: {visible(str(output))}"]
