"""``vtc.compress`` on tiny models: what it changes, what it keeps, and what it refuses."""

import math

import pytest
import torch
from torch import nn

import vtc
from tests import zoo
from tests.weights.runs import distance, logits, prompts
from vtc.errors import UnknownName, WeightsError
from vtc.weights.codec.linear import CompressedEmbedding, CompressedLinear
from vtc.weights.formats import hf
from vtc.weights.recipe import Recipe


@pytest.mark.parametrize("recipe", ["rtn:bits=8:group=8", "gptq:bits=8:group=8", "gptq:bits=4:group=8", "sparsegpt"])
def test_compressed_answers_are_near(model, recipe):
    before = logits(model)
    assert vtc.compress(model, recipe, prompts(model), progress=False) is model
    after = logits(model)
    assert 0 < distance(after, before) < (0.03 if "bits=8" in recipe else 0.5)
    layers = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    assert len(layers) == 7 * len(model.model.language_model.layers)
    assert not [m for m in model.model.vision_tower.modules() if isinstance(m, CompressedLinear)]


@pytest.mark.parametrize("name", [n for n in zoo.NAMES if n not in ("llava",)])
def test_every_family_is_compressed(name):
    model = zoo.build(name)
    before = logits(model)
    vtc.compress(model, "rtn:bits=8:group=8", progress=False)
    assert 0 < distance(logits(model), before) < 0.1


def test_calibration_under_a_token_patch_is_of_the_kept_tokens(model):
    vtc.patch(model, "divprune", budget=4)
    vtc.compress(model, "gptq:bits=4:group=8", prompts(model), progress=False)
    patched = hf.config_of(model).manifest["layers"]
    assert vtc.patch_of(model) is not None
    plain = zoo.build("llava")
    vtc.compress(plain, "gptq:bits=4:group=8", prompts(plain), progress=False)
    assert patched != hf.config_of(plain).manifest["layers"]
    vtc.unpatch(model)
    assert torch.isfinite(logits(model)).all()


def test_compressing_twice_gives_the_same(model):
    other = zoo.build("llava")
    for each in (model, other):
        vtc.compress(each, "gptq:bits=3:group=8", prompts(each), progress=False)
    for (name, a), (_, b) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_what_is_told_is_what_is_stored(model):
    vtc.compress(model, "sparsegpt:pattern=2/4:bits=4:group=8", prompts(model), progress=False)
    for name, told in hf.config_of(model).manifest["layers"].items():
        layer = model.get_submodule(name)
        assert told["bytes"] == sum(b.numel() * b.element_size() for b in layer.buffers())
        assert 0 < told["error"] < 1
        assert float((layer.weight == 0).float().mean()) >= 0.5


def test_tower_projector_and_head_by_choice(model):
    recipe = {"passes": ["gptq:bits=8:group=8"], "include": ["tower", "projector", "lm_head"]}
    before = logits(model)
    vtc.compress(model, recipe, prompts(model), progress=False)
    names = list(hf.config_of(model).manifest["layers"])
    assert not [n for n in names if ".language_model." in n]
    assert any("vision_tower" in n for n in names) and any("projector" in n for n in names) and "lm_head" in names
    assert 0 < distance(logits(model), before) < 0.1


def test_embeddings_by_choice(model):
    before = logits(model)
    vtc.compress(model, {"passes": ["rtn:bits=8:group=8"], "include": ["embeddings"]}, progress=False)
    assert isinstance(model.get_input_embeddings(), CompressedEmbedding)
    assert 0 < distance(logits(model), before) < 0.1
    ids = torch.tensor([[1, 5, 1]])
    assert torch.equal(model.get_input_embeddings()(ids)[0], model.get_input_embeddings().weight[ids[0]])


def test_tied_weights_are_left_alone(model):
    model.lm_head.weight = model.get_input_embeddings().weight
    with pytest.raises(WeightsError, match="no layer is left"):
        vtc.compress(model, {"passes": ["rtn"], "include": ["lm_head", "embeddings"]}, progress=False)


def test_an_error_midway_leaves_the_model_as_it_was(model):
    before = logits(model)
    model.model.language_model.layers[2].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(WeightsError, match="finite"):
        vtc.compress(model, "gptq:bits=4:group=8", prompts(model), progress=False)
    assert not [m for m in model.modules() if isinstance(m, CompressedLinear)]
    assert hf.config_of(model) is None
    model.model.language_model.layers[2].mlp.up_proj.weight.data.copy_(
        zoo.build("llava").model.language_model.layers[2].mlp.up_proj.weight
    )
    assert torch.equal(logits(model), before)
    assert not [m for m in model.modules() if "forward" in m.__dict__ or m._forward_pre_hooks]


@pytest.mark.parametrize(
    "recipe, match",
    [
        ("gptq:bits=9", "bits must be"),
        ("gptq:bit=4", "did you mean 'bits'"),
        ("gptq:bits", "option=value"),
        ("gptq:group=-1", "group must be"),
        ("sparsegpt:sparsity=1.5", "share"),
        ("sparsegpt:pattern=4/2", "n:m"),
        ({"passes": []}, "at least one"),
        ({"passes": ["rtn"], "includes": ["decoder"]}, "did you mean 'include'"),
        ({"passes": ["rtn"], "include": ["decoders"]}, "no part 'decoders'"),
        ({"passes": ["rtn"], "skip": ["nothing_like_it"]}, "matches none"),
        ({"passes": ["rtn"], "skip": ["."]}, "no layer is left"),
        ({"passes": ["rtn"], "buckets": "equal"}, "balanced"),
        ({"passes": ["rtn"], "buckets": [0, 0]}, "two weights"),
        (7, "int"),
    ],
)
def test_recipes_that_make_no_sense(model, recipe, match):
    with pytest.raises(WeightsError, match=match):
        vtc.compress(model, recipe, prompts(model), progress=False)
    assert hf.config_of(model) is None


def test_unknown_passes_and_missing_calibration(model):
    with pytest.raises(UnknownName, match="gptq"):
        Recipe.of("gtpq")
    with pytest.raises(WeightsError, match="calibration"):
        vtc.compress(model, "int4", progress=False)
    with pytest.raises(WeightsError, match="empty"):
        vtc.compress(model, "int4", [], progress=False)
    vtc.compress(model, "rtn", progress=False)
    with pytest.raises(WeightsError, match="already"):
        vtc.compress(model, "rtn", progress=False)


def test_recipes_read_back(tmp_path):
    recipe = Recipe.of({"passes": ["sparsegpt:pattern=2/4", "gptq:bits=4"], "skip": ["x"], "buckets": [2, 1]})
    assert Recipe.of(recipe.written()) == recipe
    file = tmp_path / "r.yaml"
    file.write_text("passes:\n  - {pass: gptq, bits: 3}\ninclude: [decoder, lm_head]\n")
    assert Recipe.of(file).include == ("decoder", "lm_head")
    file.write_text("passes: !!python/object/apply:os.system ['true']")
    with pytest.raises(WeightsError, match="cannot be read"):
        Recipe.of(file)


def test_text_only_calibration_is_enough(model):
    vtc.compress(model, "gptq:bits=4:group=8", [zoo.prompt(model, pictures=0)], progress=False)
    assert torch.isfinite(logits(model)).all()


def test_a_layer_that_never_ran_is_named(model):
    layer = model.model.language_model.layers[1].mlp
    layer.extra = nn.Linear(8, 8)
    with pytest.raises(WeightsError, match="extra did not run"):
        vtc.compress(model, "gptq:bits=4", prompts(model), progress=False)
