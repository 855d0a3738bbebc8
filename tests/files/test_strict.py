"""One strict reader of vtc's own files: what no file of ours holds is refused, by name, by each of them."""

from __future__ import annotations

import struct

import pytest

from tests.files.hostile import TEXTS, YAML
from vtc.checkpoint.config import CONFIG, read_config
from vtc.errors import VTCError
from vtc.files import strict
from vtc.weights.deltas import folder as deltas
from vtc.weights.formats.manifest import MANIFEST, Manifest
from vtc.weights.lossless.index import Index
from vtc.weights.lossless.tensorfile import read_head
from vtc.weights.recipe import Recipe

READERS = {  # the file, and what reads it
    CONFIG: lambda path: read_config(path.parent),
    deltas.CONFIG: lambda path: deltas.load(path.parent),
    MANIFEST: lambda path: Manifest.read(path.parent),
    "recipe.json": Recipe.of,
    "recipe.yaml": Recipe.of,
    "index of an archive": lambda path: Index.read(path.read_bytes(), str(path)),
    "tensors.safetensors": lambda path: read_head(path),
}


def written(folder, name: str, content: bytes):
    head = struct.pack("<Q", len(content)) if name.endswith(".safetensors") else b""
    (folder / name).write_bytes(head + content)
    return folder / name


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_reader_refuses_and_names_the_file(tmp_path, reader, text):
    path = written(tmp_path, reader, TEXTS[text])
    with pytest.raises(VTCError) as refused:
        READERS[reader](path)
    assert str(path) in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", YAML)
def test_yaml_is_as_strict(tmp_path, text):
    path = written(tmp_path, "recipe.yaml", YAML[text].encode())
    with pytest.raises(VTCError, match=str(path)):
        Recipe.of(path)


def test_aliases_within_the_bounds_are_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("passes: []\nby_layer:\n  one: &same ['rtn:bits=8']\n  two: *same\n")
    assert len(Recipe.of(path).by_layer) == 2


def test_a_file_is_not_read_beyond_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(strict, "LARGEST", 100)
    monkeypatch.setattr(strict, "MOST", 10)
    (tmp_path / "a.json").write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(VTCError, match="has more than 100 bytes"):
        strict.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": [' + "1, " * 10 + "1]}")
    with pytest.raises(VTCError, match="more than 10 values"):
        strict.read_json(tmp_path / "a.json")


def test_a_folder_or_a_link_to_nothing_is_no_file(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(VTCError, match="folder.json cannot be read"):
        strict.read_json(tmp_path / "folder.json")
    (tmp_path / "itself.yaml").write_text(str(tmp_path / "itself.yaml"))
    with pytest.raises(VTCError):
        Recipe.of(tmp_path / "itself.yaml")
