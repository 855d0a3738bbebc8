"""Pictures from strangers: kept inside one folder, measured before they are decoded, always RGB in the end."""

from __future__ import annotations

import os
import stat
import warnings
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from vtc.errors import DataError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000


def load_image(path: str | Path, root: str | Path, max_pixels: int = MAX_PIXELS, where: str = "") -> Image.Image:
    """The picture at ``path`` (relative to ``root``) as RGB, upright.

    EXIF rotation is applied, of an animation frame 0 is taken, 16 bits become 8 by their upper byte, and transparent
    pixels are laid on white. ``where`` (file:line) opens every error message. Raises ``DataError``.
    """
    with open(resolve(str(path), Path(root), where), "rb") as stream:
        return decode(stream, path, max_pixels, where)


def load_any(image: Any, root: Path | None, max_pixels: int = MAX_PIXELS, where: str = "") -> Image.Image:
    """What a row of a data set holds as ``load_image`` gives it: encoded bytes, ``{"bytes", "path"}``, a path inside
    ``root`` (None: paths are refused), or a ``PIL.Image``. Raises ``DataError``."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, (bytes, bytearray)):
        return decode(BytesIO(image), "in the row", max_pixels, where)
    if isinstance(image, Image.Image):
        check_size(image.size, "in the row", max_pixels, where)
        try:
            return to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:  # loaded only here, or of a mode that has no range
            raise fail(where, "in the row", f"cannot be read as a picture ({error}); replace it") from None
    if isinstance(image, (str, Path)) and root is None:
        raise fail(where, image, "is a path, and rows of the hub have none here; give --data-dir with the pictures")
    if isinstance(image, (str, Path)) and root is not None:
        return load_image(image, root, max_pixels, where)
    raise fail(where, "in the row", f"is a {type(image).__name__}; expected encoded bytes, a path or a PIL.Image")


def decode(stream: BinaryIO, name: str | Path, max_pixels: int, where: str) -> Image.Image:
    """The picture encoded in ``stream``, measured before it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(stream, formats=FORMATS) as picture:
                check_size(picture.size, name, max_pixels, where)
                picture.seek(0)
                return to_rgb(ImageOps.exif_transpose(picture))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise fail(where, name, f"is more than {max_pixels:,} pixels; scale it down first") from None
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise fail(where, name, f"cannot be read as a picture ({describe(stream, error)}); replace it") from None


def resolve(path: str, root: Path, where: str) -> Path:
    """The regular file that ``path`` names inside ``root``; anything else raises ``DataError``."""
    if "://" in path or path.startswith("data:"):
        raise fail(where, path, "is a URL; download the picture and give its path relative to the data folder")
    if not path or "\0" in path or not encodable(path):
        raise fail(where, path, "is not a path; give one relative to the data folder")
    if os.path.isabs(path) or path.startswith("~") or (len(path) > 1 and path[1] == ":"):
        raise fail(where, path, "is an absolute path; give one relative to the data folder")
    if ".." in Path(path).parts or ".." in path.split("\\"):
        raise fail(where, path, "leaves the data folder through '..'; move the picture inside")
    home = os.path.realpath(root)
    real = os.path.realpath(os.path.join(home, path))
    if os.path.commonpath([home, real]) != home:
        raise fail(where, path, "is a link that leaves the data folder; copy the picture inside")
    try:
        mode = os.stat(real).st_mode
    except OSError:
        raise fail(where, path, f"does not exist in {root}; add it or give the right --data-dir") from None
    if not stat.S_ISREG(mode):
        raise fail(where, path, "is not a regular file; give a picture file")
    return Path(real)


def encodable(path: str) -> bool:
    """Whether any file can have this name: half a character (JSON's ``"\\ud800"``) is in none."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(4096)  # pictures have several questions each
def pixels(path: str, root: Path) -> int:
    """Width times height from the file's header; 0 for a file that ``load_image`` will refuse."""
    try:
        return header_pixels(resolve(path, root, ""))
    except (DataError, ValueError):
        return 0


def stored_pixels(image: Any, root: Path | None) -> int:
    """The same of what ``load_any`` takes; 0 for what it will refuse."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, Image.Image):
        return image.width * image.height
    if isinstance(image, (bytes, bytearray)):
        return header_pixels(BytesIO(image))
    return pixels(str(image), root) if isinstance(image, (str, Path)) and root is not None else 0


def header_pixels(source: Path | BinaryIO) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as picture:
                return picture.width * picture.height
    except Exception:  # Pillow raises a dozen kinds for broken files
        return 0


def check_size(size: tuple[int, int], path: str | Path, max_pixels: int, where: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise fail(where, path, f"is {width} x {height} pixels; the least is 1 x 1")
    if width * height > max_pixels:
        raise fail(
            where, path, f"is {width} x {height} = {width * height:,} pixels, above {max_pixels:,}; scale it down"
        )


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB; transparency is composited on white."""
    if picture.mode.startswith("I"):  # 16-bit grey, whatever its byte order: keep the upper byte
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def describe(stream: BinaryIO, error: Exception) -> str:
    """What is wrong with bytes that Pillow refused, in a few words."""
    stream.seek(0)
    head = stream.read(64).lstrip().lower()
    if not head:
        return "the file is empty"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<svg")):
        return "it holds HTML or XML, not pixels: a failed download?"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"no picture format of {', '.join(FORMATS)}"
    return " ".join(str(error).split())[:120] or type(error).__name__


def fail(where: str, path: str | Path, problem: str) -> DataError:
    return DataError(f"{where + ': ' if where else ''}picture {str(path)[:200]!r} {problem}")
