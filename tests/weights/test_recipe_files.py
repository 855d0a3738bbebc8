"""Recipes as files: what one may not say, and errors that name it."""

from __future__ import annotations

import json
import random

import pytest

import vtc
from tests import zoo
from tests.files.mutations import mutated
from vtc.errors import VTCError, WeightsError
from vtc.weights.recipe import Recipe

HUGE = 10**9
GIVEN = {  # what each file says, and what the error must name
    "no passes": ({}, "passes"),
    "passes as a text": ({"passes": "rtn"}, "passes"),
    "a pass as a number": ({"passes": [1]}, "pass"),
    "a pass as a list": ({"passes": [["rtn"]]}, "pass"),
    "a pass there is not": ({"passes": ["rtm"]}, "rtn"),
    "a pass of no name": ({"passes": [{"bits": 4}]}, "pass"),
    "an option there is not": ({"passes": ["rtn:bit=4"]}, "bits"),
    "bits beyond all": ({"passes": [{"pass": "rtn", "bits": HUGE}]}, "bits"),
    "bits as a list": ({"passes": [{"pass": "rtn", "bits": [4]}]}, "bits"),
    "bits nested deep in a text": ({"passes": ["rtn:bits=" + "[" * 5000]}, "bits"),
    "a negative group": ({"passes": [{"pass": "rtn", "group": -1}]}, "group"),
    "a rank as a text": ({"passes": [{"pass": "svd", "rank": "8"}]}, "rank"),
    "a negative rank": ({"passes": [{"pass": "svd", "rank": -1}]}, "rank"),
    "include as a number": ({"passes": ["rtn"], "include": 1}, "include"),
    "include of numbers": ({"passes": ["rtn"], "include": [1]}, "include"),
    "a part there is not": ({"passes": ["rtn"], "include": ["encoder"]}, "encoder"),
    "skip as an object": ({"passes": ["rtn"], "skip": {"a": 1}}, "skip"),
    "a pattern that is none": ({"passes": ["rtn"], "skip": ["("]}, "skip"),
    "buckets as a number": ({"passes": ["rtn"], "buckets": 1}, "buckets"),
    "buckets of texts": ({"passes": ["rtn"], "buckets": ["a", "b"]}, "buckets"),
    "three buckets": ({"passes": ["rtn"], "buckets": [1, 2, 3]}, "buckets"),
    "by_layer as a list": ({"passes": ["rtn"], "by_layer": ["a"]}, "by_layer"),
    "by_layer of texts": ({"passes": ["rtn"], "by_layer": {"a": "rtn"}}, "by_layer"),
    "a key there is not": ({"passes": ["rtn"], "spam": 1}, "spam"),
    "where it is from": ({"passes": ["rtn"], "source": "elsewhere"}, "source"),
}
ON_A_MODEL = {
    "a layer beyond the model": ({"passes": ["rtn"], "by_layer": {"layers.99.up_proj": ["rtn"]}}, "layers.99"),
    "all of it skipped": ({"passes": ["rtn"], "skip": ["."]}, "skip"),
}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize("name", GIVEN)
def test_refused_with_the_files_name(tmp_path, name, suffix):
    said, named = GIVEN[name]
    path = tmp_path / f"recipe{suffix}"
    path.write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=f"{path}.*{named}"):
        Recipe.of(path)


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_refused_by_a_model_with_the_files_name(tmp_path, model_of, name):
    said, named = ON_A_MODEL[name]
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(said))
    for given in (path, Recipe.of(path)):
        with pytest.raises(WeightsError, match=f"{path}: .*{named}"):
            vtc.compress(model_of("llava"), given, progress=False)


def test_one_thing_changed_anywhere(tmp_path):
    """Never a raw error."""
    whole = {
        "passes": [{"pass": "rtn", "bits": 8, "group": 8, "symmetric": True}, "svd:rank=8", "sparsegpt:pattern=2/4"],
        "include": ["decoder", "projector"],
        "skip": ["layers\\.0\\."],
        "buckets": [1.0, 2.0],
        "by_layer": {"a": ["kmeans:bits=4"], "b": [{"pass": "neurons", "share": 0.5}]},
    }
    path, at, read = tmp_path / "recipe.json", random.Random(0), 0
    for _ in range(1500):
        path.write_text(json.dumps(mutated(whole, at)))
        try:
            read += isinstance(Recipe.of(path), Recipe)
        except VTCError as error:
            assert str(path) in str(error)
    assert read < 1000


def test_a_file_reads_back(tmp_path):
    model = zoo.build("llava")
    path = tmp_path / "recipe.yaml"
    path.write_text("passes: ['rtn:bits=8:group=8']\n")
    vtc.compress(model, path, progress=False)
    assert Recipe.of(model.config.quantization_config.manifest["recipe"]) == Recipe.of(path)
