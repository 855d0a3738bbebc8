"""What a question may be before it is asked: whole characters, pictures a processor can make, a prompt that fits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vtc.errors import DataError, VTCError
from vtc.eval.benchmarks import Sample
from vtc.eval.data.images import MAX_PIXELS

MAX_TEXT = 1_000_000  # characters; a line of a jsonl file has no more
MAX_RATIO = 200  # of a picture's sides; Qwen's own processors refuse beyond it, too
MAX_TOGETHER = 4 * MAX_PIXELS  # of all pictures of one question


def check_texts(sample: Sample) -> None:
    """Raises ``DataError`` for a text beyond ``MAX_TEXT``, and for half a character (a lone surrogate, as JSON's
    ``"\\ud800"``), which no tokenizer takes."""
    texts = {"id": sample.id, "question": sample.question, "type": sample.type, "group": sample.group}
    texts |= {f"answer {n + 1}": text for n, text in enumerate(sample.answers)}
    texts |= {f"option {n + 1}": text for n, text in enumerate(sample.options)}
    for name, text in texts.items():
        if len(text) > MAX_TEXT:
            raise DataError(f"{sample.where}: {name} has {len(text):,} characters, above {MAX_TEXT:,}; shorten it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{sample.where}: {name} holds half a character ({text[error.start]!a} at {error.start}); "
                "write the whole character"
            ) from None


def check_together(pixels: int, where: str) -> None:
    """Raises ``DataError`` where the pictures of one question are too much together."""
    if pixels > MAX_TOGETHER:
        raise DataError(f"{where}: its pictures have {pixels:,} pixels, above {MAX_TOGETHER:,}; scale them down")


def check_pictures(sizes: Iterable[tuple[int, int]], processor: Any, where: str) -> None:
    """Raises ``DataError`` for pictures too thin, or of which the processor would make too many pixels. ``sizes``:
    (width, height) of the question's pictures."""
    image, together = getattr(processor, "image_processor", None), 0
    for width, height in sizes:
        if max(width, height) > MAX_RATIO * min(width, height):
            raise DataError(f"{where}: a picture of {width} x {height} is thinner than 1:{MAX_RATIO}; cut or pad it")
        if (made := pixels_made(width, height, image)) > MAX_PIXELS:
            raise DataError(
                f"{where}: of a picture of {width} x {height} the processor would make {made:,} pixels, "
                f"above {MAX_PIXELS:,}; cut it, or scale it down"
            )
        together += made
    check_together(together, where)


def pixels_made(width: int, height: int, image_processor: Any) -> int:
    """Pixels of the largest picture on a processor's way from one of ``width x height``, by its ``size``.

    Only a shortest edge alone has no bound of its own: the longer side grows with it, and where the processor pads
    first the picture becomes a square of its longer side. The others (height and width, a longest edge, a number of
    pixels, tiles) stay within what their configuration names.
    """
    size = getattr(image_processor, "size", None)
    edge, short, long = side(size, "shortest_edge"), min(width, height), max(width, height)
    if not edge or side(size, "longest_edge"):
        return side(size, "height") * side(size, "width")
    padded = long * long if getattr(image_processor, "do_pad", False) else 0
    return max(edge * edge * long // short, padded)


def side(size: Any, name: str) -> int:
    """One of a processor's sizes, which are a dict or an object; 0 for one it does not name."""
    return (size.get(name) if isinstance(size, dict) else getattr(size, name, None)) or 0


def check_inputs(inputs: Any, new: int, config: Any) -> None:
    """Raises ``DataError`` for a batch ``[B, n]`` that leaves no room for ``new`` tokens in the model's context, and
    for pixels that are no numbers."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if isinstance(context, int) and length + new > context:
        raise DataError(
            f"the prompt has {length:,} tokens, pictures included, and the answer up to {new:,}; the model's context "
            f"has {context:,}: shorten the question, or lower max_new_tokens"
        )
    for name, value in inputs.items():
        odd = name.startswith("pixel_values") and torch.is_floating_point(value) and not torch.isfinite(value).all()
        if odd:
            raise DataError(f"the processor made NaN or infinite pixels ({name}); look at its image_mean and image_std")


def of_the_sample(error: Exception) -> bool:
    """Whether a run may go on after ``error`` without the sample: any error but what this library refuses on purpose,
    which is about the model, the method or the folder."""
    return not isinstance(error, VTCError) or isinstance(error, DataError)


def told(error: BaseException) -> str:
    """An error in one line: its kind and its first words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
