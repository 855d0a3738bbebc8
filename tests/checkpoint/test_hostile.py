"""Folders of vtc that lie, their hashes agreeing: the library's own error, with the file's name, or the same model."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch

import vtc
from tests import zoo
from tests.checkpoint.edits import edit, rehash
from tests.checkpoint.hostile import CONFIGS, LAYERS, WHOLE
from tests.files.mutations import mutated
from tests.support import logits
from vtc.checkpoint.config import CONFIG, sealed
from vtc.errors import CheckpointError

MUTATIONS = 150


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    model = zoo.build("llava")
    vtc.patch(model, "perceiver", budget=0.4)
    vtc.save(model, folder)
    return folder, zoo.prompt(model, 1), logits(model, zoo.prompt(model, 1))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounded") / "out"
    model = zoo.build("llava")
    vtc.compress(model, "rtn:bits=4:group=16", progress=False)
    vtc.save(model, folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_values_of_the_patch(trained, tmp_path, name):
    folder = shutil.copytree(trained[0], tmp_path / "out")
    changes = dict(CONFIGS[name])
    options = json.loads((folder / CONFIG).read_text())["options"]
    if "options" in changes and "method" not in changes:
        changes["options"] = options | changes["options"]
    edit(folder, **changes)
    with pytest.raises(CheckpointError) as refused:
        vtc.load(folder)
    assert str(folder) in str(refused.value) and len(str(refused.value)) < 1000


def described(folder, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    rehash(folder)


@pytest.mark.parametrize("name", LAYERS)
def test_descriptions_of_a_layer(rounded, tmp_path, name):
    folder = shutil.copytree(rounded, tmp_path / "out")

    def change(config):
        one, other = list(config["layers"])[:2]
        told = json.dumps(LAYERS[name]).replace("{name}", one).replace("{other}", other)
        config["layers"][one] = json.loads(told)

    described(folder, change)
    with pytest.raises(CheckpointError) as refused:
        vtc.load(folder)
    assert str(folder) in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", WHOLE)
def test_descriptions_of_all(rounded, tmp_path, name):
    folder = shutil.copytree(rounded, tmp_path / "out")
    described(folder, lambda config: config.update(WHOLE[name]))
    with pytest.raises(CheckpointError) as refused:
        vtc.load(folder)
    assert str(folder) in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("agreeing", [False, True], ids=["as changed", "its own hash agreeing"])
def test_one_thing_changed_anywhere(trained, tmp_path, agreeing):
    """Never a raw error; a change that nobody sealed never gives another model."""
    folder, prompt, want = trained
    folder, at = shutil.copytree(folder, tmp_path / "out"), random.Random(0)
    whole = json.loads((folder / CONFIG).read_text())
    loaded = 0
    for _ in range(MUTATIONS):
        config = mutated(whole, at)
        text = json.dumps(sealed(config) if agreeing and isinstance(config, dict) else config)
        (folder / CONFIG).write_text(text)
        try:
            model = vtc.load(folder)
        except CheckpointError as error:
            assert str(folder) in str(error), text
            continue
        loaded += 1
        assert agreeing or torch.equal(logits(model, prompt), want), text
    assert loaded < MUTATIONS / 2


def test_bytes_changed_anywhere(trained, tmp_path):
    folder, prompt, want = trained
    folder, at = shutil.copytree(folder, tmp_path / "out"), random.Random(1)
    whole = (folder / CONFIG).read_bytes()
    for _ in range(MUTATIONS):
        n = at.randrange(len(whole))
        (folder / CONFIG).write_bytes(whole[:n] + bytes([at.randrange(256)]) + whole[n + at.randrange(2) :])
        try:
            model = vtc.load(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)
            continue
        assert torch.equal(logits(model, prompt), want)
