"""Samples that try to end a run: each a row of a jsonl file, or a picture, and what is said of it. Add a row here."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

GOOD = {"image": "0.png", "question": "what is the color ?", "answer": "red"}
HALF = "\ud800"  # half a character: json.dumps writes it as an escape

Make = Callable[[Path], Any]  # writes a picture to a path
ROWS: dict[str, tuple[dict[str, Any] | bytes, str]] = {  # name: (row, or line as it stands; words of its error)
    "half a character in the question": ({"question": f"a {HALF} b"}, "question holds half a character"),
    "the other half": ({"question": "a \udfff b"}, "question holds half a character"),
    "half a character in the answer": ({"answer": ["red", HALF]}, "answer 2 holds half a character"),
    "half a character in the type": ({"type": HALF}, "type holds half a character"),
    "half a character in the id": ({"id": HALF}, "id holds half a character"),
    "half a character in the path": ({"image": f"{HALF}.png"}, "is not a path"),
    "half a character in the second path": ({"image": ["0.png", f"a{HALF}b.png"]}, "is not a path"),
    "a path with a zero byte": ({"image": "a\0.png"}, "is not a path"),
    "a path that is too long": ({"image": "x" * 5000}, "does not exist"),
    "a question beyond the context": ({"question": "red " * 400}, "the model's context has 256"),
    "a question far beyond the context": ({"question": "red " * 20_000}, "the model's context has 256"),
    "more pictures than the context holds": ({"image": ["0.png"] * 20}, "the model's context has 256"),
    "the model's own mark": ({"question": "<image> and <image> ?"}, "2 <image> in the question and 1 picture"),
    "not JSON": (b"{broken", "not JSON"),
    "not an object": (b"[1]", "a list"),
    "null": (b"null", "a NoneType"),
    "not UTF-8": (b'{"id": "a\xff"}', "not UTF-8"),
    "nested deeply": (b"[" * 100_000, "not JSON"),
    "a number of 5,000 digits": (b'{"id": ' + b"1" * 5000 + b"}", "not JSON"),
    "a line of a megabyte and more": (b'{"id": "' + b"a" * 1_000_001 + b'"}', "longer than 1,000,000 bytes"),
}
PICTURES: dict[str, tuple[Make, str]] = {}  # name: (what writes it, words of its error)


def picture(name: str, words: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        PICTURES[name] = (make, words)
        return make

    return add


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@picture("one pixel wide, 65,535 high", "thinner than 1:200")
def _thin(path: Path) -> None:
    Image.new("RGB", (1, 65535)).save(path, "PNG")


@picture("one pixel high", "thinner than 1:200")
def _flat(path: Path) -> None:
    Image.new("RGB", (201, 1)).save(path, "PNG")


@picture("thin once it is turned upright", "thinner than 1:200")
def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 2)).save(path, "JPEG", exif=exif)


@picture("a header of 400 million pixels", "64,000,000")
def _bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))


@picture("a PNG text that unpacks to 100 MB", "cannot be read as a picture")
def _text(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 100_000_000, zip=True)
    Image.new("RGB", (32, 32)).save(path, "PNG", pnginfo=info)


@picture("a GIF whose first frame is larger than the GIF", "64,000,000")
def _gif(path: Path) -> None:
    Image.new("P", (32, 32)).save(path, "GIF")
    data = bytearray(path.read_bytes())
    frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 128 else 13)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    path.write_bytes(bytes(data))


@picture("floating-point pixels, one no number", "floating-point")
def _float(path: Path) -> None:
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(path, "TIFF")


@picture("cut in the middle", "cannot be read as a picture")
def _cut(path: Path) -> None:
    Image.effect_noise((300, 300), 90).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:2000])


@picture("a web page", "HTML")
def _page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


@picture("a pipe", "not a regular file")
def _pipe(path: Path) -> None:
    os.mkfifo(path)


@picture("a folder", "not a regular file")
def _folder(path: Path) -> None:
    path.mkdir()
