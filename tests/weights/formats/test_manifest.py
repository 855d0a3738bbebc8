"""The manifest of compressed weights: strict in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vtc.errors import CheckpointError
from vtc.weights.formats.manifest import MANIFEST, Layer, Manifest, calibration_sha256


def manifest(**changes) -> Manifest:
    fields = dict(
        parent_sha256="a" * 64,
        recipe={"passes": [{"pass": "rtn", "bits": 4}]},
        calibration_sha256=None,
        layers={"layers.0.fc": Layer(4.25, 1000, 0.01), "layers.1.fc": Layer(8, 2000, None)},
        evaluation={"kl": 0.5},
        versions={"vtc": "0.1.0"},
    )
    return Manifest(**(fields | changes))


def test_a_manifest_comes_back(tmp_path):
    manifest().write(tmp_path)
    assert Manifest.read(tmp_path) == manifest()
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]


def edited(folder: Path, edit) -> None:
    manifest().write(folder)
    content = json.loads((folder / MANIFEST).read_text())
    edit(content)
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(surprise=1), r"unknown fields \['surprise'\]"),
        (lambda m: m.pop("recipe"), r"missing fields \['recipe'\]"),
        (lambda m: m.update(schema=2), "schema 2"),
        (lambda m: m.pop("schema"), "schema None"),
        (lambda m: m.update(parent_sha256=None), "parent_sha256"),
        (lambda m: m.update(parent_sha256="A" * 64), "parent_sha256"),
        (lambda m: m.update(calibration_sha256="short"), "calibration_sha256"),
        (lambda m: m.update(layers=[1]), "layers"),
        (lambda m: m.update(layers={"a": 1}), "layers"),
        (lambda m: m["layers"]["layers.0.fc"].pop("error"), r"missing fields \['error'\]"),
        (lambda m: m["layers"]["layers.0.fc"].update(flops=1), r"unknown fields \['flops'\]"),
        (lambda m: m["layers"]["layers.0.fc"].update(bytes=-1), "layers.0.fc"),
        (lambda m: m["layers"]["layers.0.fc"].update(bits="4"), "layers.0.fc"),
        (lambda m: m["layers"]["layers.0.fc"].update(error=float("nan")), "no finite number"),
        (lambda m: m.update(evaluation={"kl": "low"}), "evaluation"),
        (lambda m: m.update(evaluation={"kl": True}), "evaluation"),
        (lambda m: m.update(versions={"vtc": 1}), "versions"),
        (lambda m: m.update(recipe="int4"), "recipe"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, edit, message):
    edited(tmp_path, edit)
    with pytest.raises(CheckpointError, match=message):
        Manifest.read(tmp_path)


def test_missing_and_broken_manifests_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        Manifest.read(tmp_path)
    for text in ("{", "[]", '{"schema": 1, "schema": 1}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(CheckpointError, match=MANIFEST):
            Manifest.read(tmp_path)
    with pytest.raises(CheckpointError, match="plain JSON"):
        manifest(recipe={"dtype": torch.float32}).write(tmp_path)


def test_the_hash_of_a_calibration_sees_every_value():
    example = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.randn(1, 3, 4, 4).bfloat16()}
    changed = {**example, "input_ids": torch.tensor([[1, 3]])}
    hashes = [[example], [dict(reversed(example.items()))], [changed], [example, example], [], [{}]]
    found = [calibration_sha256(examples) for examples in hashes]
    assert found[0] == found[1] and len(set(found)) == len(found) - 1
