"""Pictures from strangers: a clear error or a documented result, never anything outside the folder."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.versions import skip_before
from vtc.errors import DataError
from vtc.eval.data.images import load_any, load_image, pixels


def refused(path, root, *words, **options):
    with pytest.raises(DataError) as error:
        load_image(path, root, where="q.jsonl:7", **options)
    message = str(error.value)
    assert message.startswith("q.jsonl:7: ") and repr(str(path)[:200]) in message
    for word in words:
        assert word in message
    return message


def png(width: int, height: int) -> bytes:
    """A PNG whose header says so, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def red(size=(6, 4)) -> Image.Image:
    return Image.new("RGB", size, (200, 10, 10))


def test_a_plain_picture_keeps_its_pixels(tmp_path):
    (tmp_path / "sub").mkdir()
    red().save(tmp_path / "sub" / "a.png")
    loaded = load_image("sub/a.png", tmp_path)
    assert loaded.mode == "RGB" and loaded.size == (6, 4) and loaded.getpixel((0, 0)) == (200, 10, 10)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/etc/passwd", "absolute"),
        ("C:\\a.png", "absolute"),
        ("~/a.png", "absolute"),
        ("../a.png", "'..'"),
        ("sub/../../a.png", "'..'"),
        ("..\\a.png", "'..'"),
        ("http://x.org/a.png", "URL"),
        ("file:///etc/passwd", "URL"),
        ("data:image/png;base64,AAAA", "URL"),
        ("", "not a path"),
        ("a\0.png", "not a path"),
        ("missing.png", "does not exist"),
        ("x" * 5000, "does not exist"),
        ("sub", "not a regular file"),
    ],
)
def test_paths_stay_inside_the_folder(tmp_path, path, word):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    red().save(tmp_path / "a.png")
    refused(path, tmp_path / "root", word)


def test_links_may_not_leave_the_folder(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    red().save(tmp_path / "out.png")
    red().save(root / "in.png")
    (root / "bad.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "good.png").symlink_to(root / "in.png")
    refused("bad.png", root, "link")
    refused("folder/out.png", root, "link")
    assert load_image("good.png", root).size == (6, 4)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused("pipe.png", tmp_path, "not a regular file")
    refused("zero", "/dev", "not a regular file")


def test_broken_files_say_what_they_hold(tmp_path):
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "noise.png").write_bytes(bytes(range(256)))
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    refused("page.jpg", tmp_path, "HTML")
    refused("empty.png", tmp_path, "empty")
    refused("noise.png", tmp_path, "no picture format")
    refused("half.jpg", tmp_path, "truncated")


@pytest.mark.parametrize("cut", [20, 34, 60, -30, -5])
def test_a_png_cut_anywhere_is_refused(tmp_path, cut):
    Image.effect_noise((40, 40), 90).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:cut])
    if cut == -5:  # only the end mark is missing: all pixels are there
        assert load_image("a.png", tmp_path).size == (40, 40)
    else:
        refused("a.png", tmp_path, "cannot be read")


def test_size_is_checked_before_decoding(tmp_path):
    for name, width, height in (("bomb", 20_000, 20_000), ("large", 12_000, 10_000)):
        (tmp_path / f"{name}.png").write_bytes(png(width, height))
        refused(f"{name}.png", tmp_path, "64,000,000")
    (tmp_path / "flat.png").write_bytes(png(0, 5))
    refused("flat.png", tmp_path)
    red((30, 20)).save(tmp_path / "a.png")
    assert load_image("a.png", tmp_path, max_pixels=600).size == (30, 20)
    refused("a.png", tmp_path, "30 x 20", "599", max_pixels=599)


def test_thin_pictures_are_pictures(tmp_path):
    for size in ((1, 1), (1, 5000)):
        red(size).save(tmp_path / "thin.png")
        assert load_image("thin.png", tmp_path).size == size


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb_of_the_same_colours(tmp_path, mode):
    if mode == "YCbCr":
        skip_before("pillow", 13, why="it cannot read so small a TIFF in YCbCr, its own included")
    value = 255 if mode == "1" else 204  # both survive a palette
    grey = Image.fromarray(np.full((4, 6), value, np.uint8))
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 6), value << 8, np.uint16))
    else:
        picture = grey.convert("RGB").convert(mode)
    name = "a.tif" if mode in ("CMYK", "YCbCr") else "a.png"
    picture.save(tmp_path / name)
    loaded = load_image(name, tmp_path)
    assert loaded.mode == "RGB" and np.abs(np.asarray(loaded).astype(int) - value).max() <= 1


def test_16_bits_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(2, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    values = np.asarray(load_image("ramp.png", tmp_path))[0, :, 0]
    assert values[0] == 0 and values[-1] == 255 and (np.diff(values.astype(int)) >= 0).all() and len(set(values)) == 64


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image("clear.png", tmp_path).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert load_image("palette.png", tmp_path).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_of_an_animation_frame_0_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=50)
    r, g, _ = load_image(f"a.{kind}", tmp_path).getpixel((4, 4))
    assert r > 200 and g < 50


def test_exif_rotation_is_applied(tmp_path):
    picture = red((6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image("turned.jpg", tmp_path).size == (4, 6)


@pytest.mark.parametrize("path", ["\ud800.png", "sub/\udfff/a.png", "\ud83d"])
def test_half_a_character_is_in_no_path(tmp_path, path):
    refused(path, tmp_path, "is not a path")
    assert pixels(path, tmp_path) == 0


@pytest.mark.parametrize(
    "picture",
    [Image.fromarray(np.full((2, 2), np.nan, np.float32)), Image.fromarray(np.full((2, 2), np.inf, np.float32))],
    ids=["NaN", "infinite"],
)
def test_pixels_without_a_range_are_refused(tmp_path, picture):
    picture.save(tmp_path / "a.tif")
    refused("a.tif", tmp_path, "floating-point")
    with pytest.raises(DataError, match=r"q.jsonl:7: picture 'in the row' cannot be read .*floating-point"):
        load_any(picture, None, where="q.jsonl:7")
