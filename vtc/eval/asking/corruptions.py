"""Spoiled pictures and questions, each by a seed of its own, for ``vtc eval --robustness``. One severity of each."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vtc.errors import UnknownName
from vtc.eval.benchmarks import Benchmark, Sample

NOISE = 0.1  # standard deviation, of the range of a channel
BLUR = 0.006  # standard deviation, of the shorter side: 1.3 pixels of 224
JPEG = 15  # quality
CONTRAST = 0.4  # of the distance from the mean grey
WORD = re.compile(r"(?<![\w<|])[^\W\d_]{3,}(?![\w>|])")  # letters only, and no part of a mark like <image>


def noise(picture: Image.Image, seed: int) -> Image.Image:
    """Gaussian noise on every channel of every pixel."""
    pixels = np.asarray(picture)
    noisy = pixels + np.random.default_rng(seed).normal(0, 255 * NOISE, pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def blur(picture: Image.Image, seed: int) -> Image.Image:
    """Gaussian blur."""
    return picture.filter(ImageFilter.GaussianBlur(BLUR * min(picture.size)))


def jpeg(picture: Image.Image, seed: int) -> Image.Image:
    """Written as JPEG and read again."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG)
    return Image.open(stream).convert("RGB")


def contrast(picture: Image.Image, seed: int) -> Image.Image:
    """Every pixel moved towards the picture's mean grey."""
    return ImageEnhance.Contrast(picture).enhance(CONTRAST)


def typo(question: str, seed: int) -> str:
    """Two different adjacent letters of one word change places. Unchanged where no word allows it."""
    places = [
        at for word in WORD.finditer(question) for at in range(word.start(), word.end() - 1)
        if question[at] != question[at + 1]
    ]  # fmt: skip
    if not places:
        return question
    at = random.Random(seed).choice(places)
    return question[:at] + question[at + 1] + question[at] + question[at + 2 :]


PICTURES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "noise": noise,
    "blur": blur,
    "jpeg": jpeg,
    "contrast": contrast,
}
KINDS = (*PICTURES, "typo")
SEVERITY = {"noise": NOISE, "blur": BLUR, "jpeg": JPEG, "contrast": CONTRAST, "typo": 1}


class Corrupted:
    """A benchmark with spoiled pictures or questions (``kind``, one of ``KINDS``); all else is the inner one's."""

    def __init__(self, inner: Benchmark, kind: str):
        if kind not in KINDS:
            raise UnknownName(f"corruption {kind!r} is not known; there are: {', '.join(KINDS)}")
        self.inner, self.kind = inner, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def samples(self) -> Iterator[Sample]:
        for sample in self.inner.samples():
            if self.kind == "typo" and not sample.error:
                sample = replace(sample, question=typo(sample.question, self.seed_of(sample)))
            yield sample

    def pictures(self, sample: Sample) -> list[Image.Image]:
        pictures = self.inner.pictures(sample)
        if self.kind == "typo":
            return pictures
        seed = self.seed_of(sample)
        return [PICTURES[self.kind](picture, seed + n) for n, picture in enumerate(pictures)]

    def fingerprint(self) -> dict[str, Any]:
        return {**self.inner.fingerprint(), "corruption": self.kind, "severity": SEVERITY[self.kind]}

    def seed_of(self, sample: Sample) -> int:
        """The same for the same sample, whatever its place and however the run was interrupted."""
        text = f"{self.kind} {self.inner.seed} {sample.id}".encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(text, digest_size=8).digest())
