"""Ranks by effective rank, from a calibration to a compressed model."""

import pytest
import torch

import vtc
from tests import zoo
from tests.weights.runs import prompts
from vtc.errors import WeightsError
from vtc.weights.formats import hf
from vtc.weights.planning.drank import ranked
from vtc.weights.recipe import Recipe


def ranks_of(recipe):
    return {name: passes[0].rank for name, passes in recipe.by_layer}


def test_a_layer_of_few_directions_gives_its_rank_to_the_others(tmp_path):
    model = zoo.build("llava")
    up = model.model.language_model.layers[1].mlp.up_proj
    left, right = torch.randn(up.out_features, 2), torch.randn(2, up.in_features)
    up.weight.data.copy_(left @ right / up.in_features**0.5)
    recipe = ranked(model, prompts(model), keep=0.5)
    ranks = {name: rank for name, rank in ranks_of(recipe).items() if name.endswith("up_proj")}
    assert min(ranks, key=ranks.get).endswith("layers.1.mlp.up_proj") and len(set(ranks.values())) > 1
    assert Recipe.of(recipe.written()) == recipe
    vtc.compress(model, recipe, prompts(model), progress=False)
    told = hf.config_of(model).manifest["layers"]
    weights = sum(8 * each["bytes"] / each["bits"] for each in told.values())
    assert 0.45 < sum(each["bytes"] for each in told.values()) / (4 * weights) <= 0.5  # float32
    assert told[next(n for n in told if n.endswith("1.mlp.up_proj"))]["error"] < 1e-6
    vtc.save(model, tmp_path / "out", verify=True)


def test_ranks_move_to_values_under_grouped_queries():
    model = zoo.build("qwen2_5_vl")
    before, after = (ranks_of(ranked(model, prompts(model), keep=0.4, to_values=share)) for share in (0.0, 0.3))
    for kind, sign in (("q_proj", -1), ("k_proj", -1), ("v_proj", 1)):
        moved = [after[name] - rank for name, rank in before.items() if name.endswith(kind)]
        assert all(sign * each >= 0 for each in moved) and any(moved)


def test_refusals():
    model = zoo.build("llava")
    with pytest.raises(WeightsError, match="keep must be a share"):
        ranked(model, prompts(model), keep=1.5)
    with pytest.raises(WeightsError, match="leaves Q and K"):
        ranked(model, prompts(model), to_values=1.0)
    with pytest.raises(WeightsError, match="to_values=0"):
        ranked(model, prompts(model), to_values=0.2, like={"passes": ["svdllm"], "skip": ["self_attn"]})
    with pytest.raises(WeightsError, match="empty"):
        ranked(model, [])
    with pytest.raises(WeightsError, match="less than"):
        ranked(model, prompts(model), keep=0.001)
