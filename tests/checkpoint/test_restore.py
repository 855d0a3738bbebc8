"""Back to the original, bit for bit, from what is kept beside compressed weights; or a refusal."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

import vtc
from tests.eval.tiny import tiny_llava
from tests.weights.formats.test_manifest import manifest
from tests.weights.lossless.test_archive import contents, die_before_the_rename, forked, raw
from vtc.checkpoint.restore import ORIGINAL, keep_original, restore
from vtc.cli import app
from vtc.errors import CheckpointError
from vtc.eval import scenes
from vtc.files.digest import weights_sha256
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.codec.terms.codebook import Codebook
from vtc.weights.codec.terms.columns import Columns
from vtc.weights.codec.terms.floats import Floats
from vtc.weights.codec.terms.ints import Ints
from vtc.weights.codec.terms.low_rank import LowRank
from vtc.weights.codec.terms.trits import Trits
from vtc.weights.formats import hf
from vtc.weights.formats.manifest import Manifest
from vtc.weights.lossless import planes
from vtc.weights.lossless.approximate import Approximate, low_rank
from vtc.weights.lossless.archive import archive, read_index, unarchive
from vtc.weights.lossless.differences import decode_beside, encode_beside
from vtc.weights.lossless.tensorfile import Place
from vtc.weights.pipeline import compress


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model of bf16 and the same in int4, on disk: folders ``original`` and ``int4``."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_llava().bfloat16()
    model.save_pretrained(folder / "original")
    compress(model, "rtn:bits=4:group=16", progress=False)
    model.save_pretrained(folder / "int4")
    return folder


@pytest.fixture
def kept(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    keep_original(tmp_path / "original", tmp_path / "int4")
    return tmp_path


def test_the_original_comes_back_from_the_compressed(kept):
    restore(kept / "int4", kept / "out")
    assert contents(kept / "out") == contents(kept / "original")


def test_what_is_kept_is_smaller_than_an_archive(kept):
    """All layers are stored beside the approximation, whatever the model and its files call them."""
    index, _ = read_index(kept / "int4" / ORIGINAL)
    tensors = [part for file in index.files if file.tensors for part in file.parts[1:]]
    layers = json.loads((kept / "int4" / "config.json").read_text())["quantization_config"]["layers"]
    assert sum(bool(part.beside) for part in tensors) == len(layers)
    assert (kept / "int4" / ORIGINAL).stat().st_size < 0.8 * archive(kept / "original", kept / "a.vtcz").stored


def test_unrelated_weights_keep_the_original_whole(kept):
    other = kept / "other"
    other.mkdir()
    save_file({"x": torch.zeros(3)}, other / "model.safetensors")
    index = keep_original(kept / "original", other)
    assert index.beside is None and not any(part.beside for part in index.parts)
    save_file({"x": torch.ones(3)}, other / "model.safetensors")  # nothing depends on them
    restore(other, kept / "out")
    assert contents(kept / "out") == contents(kept / "original")


def test_other_compressed_weights_are_refused(kept):
    file = kept / "int4" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="put back the ones it was made with"):
        restore(kept / "int4", kept / "out")
    assert not (kept / "out").exists()


def test_a_manifest_that_names_another_original_is_refused(kept):
    manifest().write(kept / "int4")
    with pytest.raises(CheckpointError, match="names an original that hashes to aaaa"):
        restore(kept / "int4", kept / "out")
    with pytest.raises(CheckpointError, match="names an original that hashes to aaaa"):
        keep_original(kept / "original", kept / "int4")
    manifest(parent_sha256=weights_sha256(kept / "original")).write(kept / "int4")
    assert contents(restore(kept / "int4", kept / "out")) == contents(kept / "original")


def test_missing_originals_and_weights_are_told(kept):
    with pytest.raises(CheckpointError, match="was not kept"):
        restore(kept / "original", kept / "out")
    with pytest.raises(CheckpointError, match="use vtc restore"):
        unarchive(kept / "int4" / ORIGINAL, kept / "out")
    (kept / "none").mkdir()
    with pytest.raises(CheckpointError, match="no .safetensors"):
        keep_original(kept / "none", kept / "int4")
    with pytest.raises(CheckpointError, match="no .safetensors"):
        keep_original(kept / "original", kept / "none")
    with pytest.raises(CheckpointError, match="holds something already"):
        restore(kept / "int4", kept / "original")


def test_flipped_bytes_of_what_is_kept(kept):
    path, want, draw = kept / "int4" / ORIGINAL, contents(kept / "original"), random.Random(0)
    content = path.read_bytes()
    for _ in range(30):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        path.write_bytes(changed)
        try:
            found = contents(restore(kept / "int4", kept / "out"))
        except CheckpointError:
            assert not (kept / "out").exists()
            continue
        assert found == want
        shutil.rmtree(kept / "out")


def test_killed_while_it_restores_it_leaves_nothing(kept):
    assert forked(die_before_the_rename, restore, kept / "int4", kept / "out")[0] == -9
    assert not (kept / "out").exists()


# Differences


@pytest.mark.parametrize("dtype", ["BF16", "F16", "I16"])
def test_differences_of_every_16_bit_pattern(dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    for shift in (0, 1, 0x7F80, 0x8000, 12345):
        near = (bits + np.uint16(shift)).view(np.uint8)
        stored = io.BytesIO(encode_beside(bits.view(np.uint8), near, dtype))
        assert np.array_equal(decode_beside(stored, near, dtype), bits.view(np.uint8))


@settings(deadline=None, max_examples=80)
@given(dtype=st.sampled_from(sorted(planes.BITS)), count=st.integers(0, 50), data=st.data())
def test_differences_of_any_bytes(dtype, count, data):
    size = count * planes.width(dtype)
    a, b = (np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8) for _ in range(2))
    assert np.array_equal(decode_beside(io.BytesIO(encode_beside(a, b, dtype)), b, dtype), a)


def test_neighbours_cost_next_to_nothing():
    """Also across an exponent, and zero."""
    near = torch.tensor([1.0, -0.0, 0.0, 2.0]).bfloat16().repeat(1000)
    bits = near.view(torch.int16)
    assert len(encode_beside(raw(bits + 1), raw(bits), "BF16")) < 150
    assert len(encode_beside(raw(bits), raw(bits), "F16")) < 80


# Approximations

TERMS = [
    Ints(bits=4, group=8), Ints(bits=3, group=5, zeros=True, scaled=True), Ints(bits=8, group=0),
    Ints(bits=4, group=8, layout="2:4"), Floats(), Floats(layout="bitmap", kept=24), Trits(rows=True), Trits(),
    Codebook(bits=4, rows=True), Codebook(bits=2), Columns(count=3),
]  # fmt: skip


def compressed(folder: Path, *terms, dtype=torch.bfloat16) -> tuple[CompressedLinear, Approximate]:
    """A layer of those terms with tensors drawn at random, and the checkpoint that holds it."""
    torch.manual_seed(0)
    out, width, parts = 12, 16, []
    for term in terms:
        tensors = {
            key: torch.randint(0, 243, shape, dtype=kind) if kind == torch.uint8 else torch.randn(shape).to(kind)
            for key, (shape, kind) in term.shapes(out, width, dtype).items()
        }
        if isinstance(term, Columns):
            tensors["index"] = torch.tensor([1, 5, 15], dtype=torch.int32)
        if getattr(term, "layout", "") == "bitmap":
            tensors["mask"] = torch.tensor([[3, 0]] * out, dtype=torch.uint8)
        if getattr(term, "layout", "") == "2:4":
            tensors["mask"] = torch.full_like(tensors["mask"], 0b11100100)
        parts.append((term, tensors))
    layer = CompressedLinear.filled(width, out, parts, None, torch.zeros(1, dtype=dtype))
    names = {f"language_model.model.layers.0.fc.{k}": v.contiguous() for k, v in layer.state_dict().items()}
    save_file(names, folder / "model.safetensors")
    other = {"terms": [Trits().written()], "bias": False}
    layers = {"model.vision.layers.0.fc": other, "model.language_model.layers.0.fc": layer.written()}
    quantization = {"quant_method": "vtc", "version": 1, "layers": layers, "manifest": {}}
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return layer, Approximate(folder)


PLACE = Place("language_model.model.layers.0.fc.weight", "BF16", (12, 16), 384)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_each_kind_of_term_is_approximated_as_the_layer_has_it(tmp_path, term):
    layer, approximate = compressed(tmp_path, term)
    terms, found = approximate.guess(PLACE)
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16).view(12, 16), layer.weight)
    assert np.array_equal(approximate.make(PLACE, tuple(json.loads(json.dumps(terms)))), found)


def test_sums_of_terms_and_low_rank(tmp_path):
    layer, approximate = compressed(tmp_path, Ints(bits=4, group=8), LowRank(rank=3), dtype=torch.float32)
    place = Place(PLACE.name, "F32", (12, 16), 768)
    found = torch.from_numpy(approximate.guess(place)[1].view(np.float32)).view(12, 16)
    assert torch.allclose(found, layer.weight, rtol=1e-5, atol=1e-5)


def test_low_rank_does_not_depend_on_the_number_of_rows():
    """As matrix products may: rows of a larger product are the same bits."""
    torch.manual_seed(0)
    u, v = torch.randn(300, 40), torch.randn(40, 500)
    assert torch.equal(low_rank(u, v)[7:8], low_rank(u[7:8], v))


def test_other_shapes_and_dtypes_have_no_approximation(tmp_path):
    _, approximate = compressed(tmp_path, Ints(bits=4, group=8))
    assert approximate.guess(Place(PLACE.name, "BF16", (12, 17), 408)) is None
    assert approximate.guess(Place(PLACE.name, "BF16", (192,), 384)) is None
    assert approximate.guess(Place(PLACE.name, "I16", (12, 16), 384)) is None
    assert approximate.guess(Place("somewhere.else.bias", "BF16", (12,), 24)) is None
    assert approximate.guess(Place(PLACE.name, "F32", (12, 16), 768)) is not None  # the same numbers, written longer


@pytest.mark.parametrize(
    "terms",
    [
        ({"kind": "nonsense"},),
        ({"kind": "ints", "bits": 10**9},),
        ({"kind": "ints", "bits": "4"},),
        ({"kind": "ints", "bits": 4, "group": "x", "prefix": "t0_"},),
        ({"kind": "ints", "bits": 4, "layout": "4:2", "prefix": "t0_"},),
        ({"surprise": 1},),
        ({},),
    ],
)
def test_terms_that_are_none_are_refused(tmp_path, terms):
    _, approximate = compressed(tmp_path, Ints(bits=4, group=8))
    with pytest.raises(CheckpointError):
        approximate.make(PLACE, terms)


@pytest.mark.parametrize("layers", [[], {"a": 1}, {"a": {"terms": 3}}, {"a": {"terms": [{}]}}, None])
def test_a_config_of_another_shape_is_refused(tmp_path, layers):
    compressed(tmp_path, Trits())
    quantization = {"quant_method": "vtc", "layers": layers}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    with pytest.raises(CheckpointError, match="as vtc writes them"):
        Approximate(tmp_path)


def test_tensors_that_stayed_are_their_own_approximation(made):
    approximate = Approximate(made / "int4")
    name, tensor = next((k, v) for k, v in load_file(made / "original" / "model.safetensors").items() if "norm" in k)
    terms, found = approximate.guess(Place(name, "BF16", tuple(tensor.shape), tensor.nbytes))
    assert terms == () and np.array_equal(found, raw(tensor))


def int_of(folder: Path, recipe: str):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    return vtc.compress(model, recipe, progress=False)


def test_saved_with_its_original(made, tmp_path):
    """What ``vtc.save`` keeps, ``restore`` gives back, and the manifest says what was done."""
    model, original = int_of(made / "original", "rtn:bits=4:group=16"), made / "original"
    vtc.save(model, tmp_path / "small", verify=True, keep_original=original)
    assert contents(restore(tmp_path / "small", tmp_path / "out")) == contents(original)
    told = Manifest.read(tmp_path / "small")
    assert told.parent_sha256 == weights_sha256(original) and told.recipe["passes"][0]["pass"] == "rtn"
    assert told.calibration_sha256 is None and len(told.layers) == len(hf.config_of(model).layers)
    vtc.save(vtc.load(tmp_path / "small"), tmp_path / "small")  # the same weights again: nothing is lost
    assert contents(restore(tmp_path / "small", tmp_path / "again")) == contents(original)


def test_a_kept_original_is_not_replaced_by_other_weights(made, tmp_path):
    original = made / "original"
    vtc.save(int_of(original, "rtn:bits=4:group=16"), tmp_path / "small", keep_original=original)
    before, other = contents(tmp_path / "small"), int_of(original, "rtn:bits=8:group=16")
    with pytest.raises(CheckpointError, match="vtc restore it first"):
        vtc.save(other, tmp_path / "small")
    with pytest.raises(CheckpointError, match="vtc restore it first"):
        vtc.save(other, tmp_path / "small", keep_original=made / "int4")
    assert contents(tmp_path / "small") == before
    vtc.save(other, tmp_path / "small", keep_original=original)
    assert contents(restore(tmp_path / "small", tmp_path / "out")) == contents(original)


def test_originals_that_cannot_be_kept(made, tmp_path):
    with pytest.raises(CheckpointError, match="no .safetensors"):
        vtc.save(int_of(made / "original", "rtn"), tmp_path / "small", keep_original=tmp_path)
    with pytest.raises(CheckpointError, match="for compressed weights"):
        plain = AutoModelForImageTextToText.from_pretrained(made / "original")
        vtc.save(vtc.patch(plain, "divprune", budget=2), tmp_path / "small", keep_original=made / "original")
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
def test_the_testbed_and_back(tmp_path):
    """The trained checkpoint through the command line, fitted to its own questions."""
    source = scenes.checkpoint_path()
    options = ["--calibration", "scenes:dev", "--examples", "4", "--dtype", "auto", "--keep-original"]
    call = ["compress", str(source), "--recipe", "gptq:bits=4", *options, "--output", str(tmp_path / "small")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert len(Manifest.read(tmp_path / "small").calibration_sha256) == 64
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "small"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert contents(tmp_path / "out") == contents(Path(source))
