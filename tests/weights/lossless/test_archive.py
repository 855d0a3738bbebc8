"""Archives of checkpoints: every bit comes back, and the size is near what entropy allows."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from tests.weights import golden
from vtc.errors import CheckpointError, VTCError
from vtc.eval import scenes
from vtc.weights.lossless import archive as lossless
from vtc.weights.lossless import planes
from vtc.weights.lossless.archive import archive, read_index, unarchive
from vtc.weights.lossless.entropy import entropy, exponent_histogram, huffman_bits

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def written(kind: torch.dtype) -> bool:
    """Whether the safetensors that is installed writes this dtype; older ones do not write all."""
    try:
        return bool(save({"t": torch.empty(1, dtype=kind)}))
    except KeyError:
        return False


def raw(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_checkpoint(folder: Path, **tensors: torch.Tensor) -> Path:
    """A folder like a model's; without ``tensors``, a few of different kinds."""
    torch.manual_seed(0)
    kinds = {
        "layers.0.weight": torch.randn(6, 10).bfloat16(),
        "layers.0.bias": torch.randn(6).half(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(-0.0),
        "codes": torch.arange(40, dtype=torch.uint8).view(5, 8),
    }
    (folder / "more").mkdir(parents=True)
    save_file(tensors or kinds, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "sizes": [1] * 30}))
    (folder / "more" / "tokenizer.json").write_text('{"a": "ä"}')
    (folder / "empty.txt").touch()
    return folder


def test_gaussian_bf16_takes_at_most_10_7_bits_a_weight():
    torch.manual_seed(0)
    weight = raw(torch.randn(1024, 1024).bfloat16())
    coded = planes.coded(weight, "BF16")
    assert 10.5 < 8 * len(coded) / (len(weight) / 2) <= 10.7
    assert np.array_equal(planes.decoded(coded, len(weight), "BF16"), weight)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "I16"])
def test_every_16_bit_pattern_comes_back(dtype):
    """Among them all NaN payloads, infinities, subnormals and -0."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    assert np.array_equal(planes.decoded(planes.coded(bits, dtype), len(bits), dtype), bits)


@settings(deadline=None, max_examples=100)
@given(dtype=st.sampled_from(sorted(planes.BITS)), count=st.integers(0, 300), data=st.data())
def test_any_bytes_of_any_dtype_come_back(dtype, count, data):
    size = count * planes.width(dtype)
    content = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    assert np.array_equal(planes.decoded(planes.coded(content, dtype), size, dtype), content)


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=4),
    dtype=st.sampled_from(sorted(name for name, kind in DTYPES.items() if written(kind))),
    seed=st.integers(0, 9),
)
def test_a_file_of_any_dtype_and_shapes_comes_back(tmp_path_factory, shapes, dtype, seed):
    folder = tmp_path_factory.mktemp("any")
    kind, draw = DTYPES[dtype], torch.Generator().manual_seed(seed)
    tensors = {}
    for n, shape in enumerate(shapes):
        size = int(np.prod(shape)) * kind.itemsize
        random = torch.randint(0, 2 if dtype == "BOOL" else 256, (size,), generator=draw, dtype=torch.uint8)
        tensors[f"t{n}"] = random.view(kind).view(shape)
    save_file(tensors, folder / "model.safetensors")
    archive(folder / "model.safetensors", folder / "a.vtcz")
    out = unarchive(folder / "a.vtcz", folder / "out")
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert load_file(out / "model.safetensors")["t0"].dtype == kind


def test_the_library_knows_no_dtype_that_we_do_not():
    from safetensors.torch import _TYPES

    assert set(_TYPES) <= set(planes.BITS)


def test_chunks_do_not_show(monkeypatch):
    content = raw(torch.randn(1000, dtype=torch.float64))
    monkeypatch.setattr(planes, "CHUNK", 64)
    assert np.array_equal(planes.decoded(planes.coded(content, "F64"), len(content), "F64"), content)


def test_repeats_are_found_and_noise_costs_next_to_nothing():
    noise = np.random.default_rng(0).integers(0, 256, 1 << 17, dtype=np.uint8)
    assert len(planes.coded(noise, "U8")) < len(noise) + 64
    assert len(planes.coded(np.tile(noise[:1000], 100), "U8")) < 2000
    assert len(planes.coded(np.zeros(1 << 20, np.uint8), "BF16")) < 500


@pytest.mark.parametrize(("case", "_", "wanted"), golden.cases("dfloat11"))
def test_exponents_against_dfloat11(case, _, wanted):
    bits = wanted["bits_u16"].numpy()
    counts = exponent_histogram(bits)
    assert np.array_equal(counts, wanted["exponent_histogram"].numpy())
    bound = entropy(counts)
    assert bound == pytest.approx(case["exponent_entropy_bits"], abs=1e-9)
    mean = huffman_bits(counts) / len(bits)
    assert bound <= mean <= min(bound + 1, case["huffman_mean_code_bits"] * 1.001)
    assert abs(-(-huffman_bits(counts) // 8) - case["encoded_bytes"]) <= 1
    exponents, rest = planes.split(bits.view(np.uint8), "BF16")
    assert np.array_equal(np.bincount(exponents, minlength=256), counts)
    assert np.array_equal((rest >> 1) | (rest << 7), wanted["sign_mantissa"].numpy())
    # Huffman's bare bits need a table besides, and DFloat11 counts where each thread starts.
    ours, bare = len(planes.coded(bits.view(np.uint8), "BF16")), case["encoded_bytes"] + case["sign_mantissa_bytes"]
    assert ours <= 1.01 * bare + 128
    assert ours <= bare + case["output_position_bytes"] + case["gap_bytes"]


def test_entropy_and_huffman_at_the_edges():
    none, one = np.zeros(256, np.int64), np.eye(256, dtype=np.int64)[7] * 5
    assert (entropy(none), huffman_bits(none)) == (0, 0)
    assert (entropy(one), huffman_bits(one)) == (0, 5)
    assert (entropy(np.array([1, 1])), huffman_bits(np.array([1, 1]))) == (1, 2)
    assert huffman_bits(np.array([5, 2, 1, 1])) == 5 + 2 * 2 + 3 + 3


def test_the_testbed_comes_back_smaller(tmp_path):
    source = Path(scenes.checkpoint_path())
    index = archive(source, tmp_path / "m.vtcz")
    unarchive(tmp_path / "m.vtcz", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    assert (tmp_path / "m.vtcz").stat().st_size < 0.87 * index.raw


def test_a_folder_with_links_and_subfolders_comes_back(tmp_path):
    source = write_checkpoint(tmp_path / "in")
    (tmp_path / "blob").write_bytes(b"behind a link, as in the cache of the hub")
    (source / "linked.bin").symlink_to(tmp_path / "blob")
    archive(source, tmp_path / "m.vtcz")
    unarchive(tmp_path / "m.vtcz", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    assert not (tmp_path / "out" / "linked.bin").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blob", "in", "m.vtcz", "out"]


def test_the_index_says_what_is_inside(tmp_path):
    from vtc.files.digest import weights_sha256

    source = write_checkpoint(tmp_path / "in")
    index = archive(source, tmp_path / "m.vtcz")
    assert read_index(tmp_path / "m.vtcz")[0] == index
    assert index.weights_sha256 == weights_sha256(source)
    (weights,) = [file for file in index.files if file.tensors]
    assert {(p.name, p.dtype, p.shape, p.raw) for p in weights.parts[1:]} == {
        ("layers.0.weight", "BF16", (6, 10), 120),
        ("layers.0.bias", "F16", (6,), 12),
        ("empty", "F32", (0, 3), 0),
        ("scalar", "F32", (), 4),
        ("codes", "U8", (5, 8), 40),
    }


def test_memory_does_not_grow_with_a_tensor(tmp_path):
    source = write_checkpoint(tmp_path / "in", a=torch.randn(8 << 20, dtype=torch.bfloat16))
    tracemalloc.start()
    try:
        archive(source, tmp_path / "m.vtcz")
        unarchive(tmp_path / "m.vtcz", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # of 16 MiB
    finally:
        tracemalloc.stop()


def test_the_same_bytes_make_the_same_archive(tmp_path):
    source = write_checkpoint(tmp_path / "in")
    archive(source, tmp_path / "a.vtcz")
    archive(source, tmp_path / "b.vtcz")
    assert (tmp_path / "a.vtcz").read_bytes() == (tmp_path / "b.vtcz").read_bytes()


def test_without_zstandard_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    planes.coders.cache_clear()
    with pytest.raises(VTCError, match=r"vtc-vlm\[lossless\]"):
        archive(write_checkpoint(tmp_path / "in"), tmp_path / "m.vtcz")
    assert not (tmp_path / "m.vtcz").exists()
    planes.coders.cache_clear()


def test_bad_sources_and_targets_are_refused(tmp_path):
    source = write_checkpoint(tmp_path / "in")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        archive(tmp_path / "nowhere", tmp_path / "m.vtcz")
    with pytest.raises(CheckpointError, match="inside"):
        archive(source, source / "m.vtcz")
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="holds no file"):
        archive(tmp_path / "none", tmp_path / "m.vtcz")
    archive(source, tmp_path / "m.vtcz")
    with pytest.raises(CheckpointError, match="holds something already"):
        unarchive(tmp_path / "m.vtcz", source)
    with pytest.raises(CheckpointError, match="cannot be read"):
        unarchive(tmp_path / "nowhere.vtcz", tmp_path / "out")
    os.mkfifo(source / "pipe")
    with pytest.raises(CheckpointError, match="pipe is neither a file"):
        archive(source, tmp_path / "other.vtcz")
    (source / "pipe").unlink()
    (source / "elsewhere").symlink_to(tmp_path / "none")
    with pytest.raises(CheckpointError, match="elsewhere is neither a file"):
        archive(source, tmp_path / "other.vtcz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "m.vtcz", "none"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b"x",
        lambda b: b[:5],
        lambda b: (10**15).to_bytes(8, "little") + b[8:],
        lambda b: b.replace(b'"U8"', b'"U7"'),
        lambda b: b.replace(b"[5,8]", b"[5,9]"),
        lambda b: b.replace(b'"dtype"', b'"dtipe"', 1),
        lambda b: b[:8] + b"[" * 50 + b[58:],
    ],
)
def test_damaged_safetensors_files_are_refused(tmp_path, damage):
    source = write_checkpoint(tmp_path / "in")
    file = source / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        archive(source, tmp_path / "m.vtcz")
    assert not (tmp_path / "m.vtcz").exists()


def forked(before: Callable[[], object], action: Callable[..., object], *arguments: Path) -> tuple[int, str]:
    """How a process that does ``before`` and ``action`` ends (negative: the signal), and what it raises."""
    read, write = os.pipe()
    if (process := os.fork()) == 0:
        try:
            before()
            action(*arguments)
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_the_rename() -> None:
    lossless.os.replace = die


def die_in_the_middle() -> None:
    chunks, calls = lossless.chunks, iter(range(4))
    lossless.chunks = lambda size: chunks(size) if next(calls, None) is not None else die()


def allow_files_of_256_kb() -> None:
    """What a process sees of a full disk, or nearly: the write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))


@pytest.mark.parametrize("moment", [die_before_the_rename, die_in_the_middle])
def test_killed_it_leaves_the_old_or_nothing(tmp_path, moment):
    source, old, out = write_checkpoint(tmp_path / "in"), tmp_path / "m.vtcz", tmp_path / "out"
    archive(source, old)
    before = old.read_bytes()
    (source / "config.json").write_text("{}")
    assert forked(moment, archive, source, old) == (-signal.SIGKILL, "")
    assert old.read_bytes() == before
    assert forked(moment, unarchive, old, out) == (-signal.SIGKILL, "")
    assert not out.exists()
    archive(source, old)
    assert contents(unarchive(old, out)) == contents(source)


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path):
    noise = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8)
    source, path, out = write_checkpoint(tmp_path / "in", a=noise), tmp_path / "m.vtcz", tmp_path / "out"
    _, said = forked(allow_files_of_256_kb, archive, source, path)
    assert "CheckpointError" in said and "make room" in said
    archive(source, path)
    _, said = forked(allow_files_of_256_kb, unarchive, path, out)
    assert "CheckpointError" in said and "make room" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "m.vtcz"]
