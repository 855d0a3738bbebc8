"""Structured passes on tiny models: smaller plain layers that compute what they should, save, load and undo."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

import vtc
from tests import zoo
from tests.versions import skip_before
from vtc.errors import CheckpointError, UnsupportedModel, WeightsError
from vtc.models import family_of
from vtc.weights.formats import hf
from vtc.weights.passes import registry
from vtc.weights.structure.sites import sites

SHARES = {"flap": "flap:share=0.15", "neurons": "neurons:share=0.3", "heads": "heads:share=0.5"}
RECIPES = [*SHARES.values(), "layers:share=0.5"]
ALL = "layers:share=0.25|heads:share=0.5|neurons|gptq:bits=4:group=8"
FAMILIES = [n for n in zoo.NAMES if n not in ("glm4v", "qwen3_5")]  # those have other MLPs, or recurrent layers


def over_families(recipes, *quick):
    """Each recipe on each family; all but LLaVA and the ``quick`` ones are slow."""
    return pytest.mark.parametrize(
        "name, recipe",
        [
            pytest.param(n, r, marks=[] if n == "llava" or (n, r) in quick else pytest.mark.slow)
            for n in FAMILIES
            for r in recipes
        ],
    )


def prompts(model):
    return [zoo.prompt(model, pictures=n, seed=n) for n in (1, 2, 1)]


def pruned(model, recipe):
    return vtc.compress(model, recipe, prompts(model), progress=False)


def logits(model):
    with torch.no_grad():
        return model(**zoo.prompt(model)).logits


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def generated(model, **more):
    quiet = {"suppress_tokens": list(range(148, zoo.VIDEO + 9))}  # a random model would write placeholders
    return model.generate(**zoo.prompt(model), max_new_tokens=5, do_sample=False, **quiet, **more)


def everything(model):
    """All that a pass may touch: tensors, kinds of modules, their plain numbers, the configs."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    plain = {
        name: {k: v for k, v in vars(module).items() if isinstance(v, int | float) and not k.startswith("_")}
        for name, module in model.named_modules()
    }
    return tensors, plain, model.config.to_json_string()


def left_over(model):
    """Hooks and shadowed forwards in the decoder (transformers hooks towers itself)."""
    inside = model.model.language_model.layers.modules()
    return [m for m in inside if "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks]


def assert_same(a, b):
    assert a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert a[1:] == b[1:]


@over_families(RECIPES, ("qwen2_5_vl", SHARES["heads"]), ("gemma3", "layers:share=0.5"))
def test_fewer_parameters_and_a_cache_that_fits(name, recipe):
    model = zoo.build(name)
    whole, before = parameters(model), logits(model)
    pruned(model, recipe)
    assert parameters(model) < whole
    after = logits(model)
    assert after.shape == before.shape and bool(torch.isfinite(after).all()) and not torch.equal(after, before)
    assert torch.equal(generated(model), generated(model, use_cache=False))
    with vtc.patched(model, "divprune", budget=4):
        assert not torch.equal(logits(model), after)
        assert generated(model).shape == generated(model, use_cache=False).shape
    assert torch.equal(logits(model), after)


@over_families(["neurons:share=0.3:compensate=false", "heads:share=0.5:compensate=false"])
def test_a_smaller_layer_is_the_layer_with_zeros(name, recipe):
    """The channels that go give zero columns in the projection that reads them: nothing else may change."""
    model, masked = zoo.build(name), zoo.build(name)
    pruned(model, recipe)
    kind = recipe.split(":")[0]
    kept = sites(model, family_of(model), [kind])
    for site, full in zip(kept, sites(masked, family_of(masked), [kind]), strict=True):
        small, whole = site.linear(site.reader).weight, full.linear(full.reader).weight
        stays = (whole.T[:, None] == small.T[None]).all(-1).any(1)
        assert int(stays.sum()) == small.shape[1] < whole.shape[1]
        whole.data[:, ~stays] = 0
    torch.testing.assert_close(logits(model), logits(masked), rtol=1e-4, atol=1e-4)


def test_key_value_groups_go_whole_and_the_numbers_follow():
    model = zoo.build("qwen2_5_vl")
    pruned(model, "heads:share=0.5")
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        assert (attention.num_heads, attention.num_key_value_heads, attention.num_key_value_groups) == (2, 1, 2)
        assert attention.head_dim == 16 and attention.k_proj.out_features == 16
        assert attention.q_proj.bias.shape == (32,) and attention.o_proj.bias is not None
    out = model(**zoo.prompt(model), use_cache=True)
    assert {layer.keys.shape[1] for layer in out.past_key_values.layers} == {1}


@pytest.mark.parametrize("score", ["wifv", "ifv", "wifn", "norm", "magnitude"])
@pytest.mark.parametrize("across", ["layer", "model"])
def test_every_score_prunes(score, across):
    model = zoo.build("llava")
    pruned(model, {"passes": [{"pass": "neurons", "share": 0.25, "score": score, "across": across}]})
    sizes = [layer.mlp.gate_proj.out_features for layer in model.model.language_model.layers]
    assert sum(sizes) == pytest.approx(0.75 * 4 * 96, abs=2)
    assert (len(set(sizes)) == 1) == (across == "layer")


def test_the_mean_in_a_bias_makes_up_for_what_went():
    """Where neurons hardly fluctuate, their mean is all they gave."""
    errors = {}
    for compensate in ("true", "false"):
        model = zoo.build("llava")
        for layer in model.model.language_model.layers:  # silu(x) of a large negative bias is near a constant
            layer.mlp.up_proj.weight.data[:48] *= 0.01
            layer.mlp.up_proj.bias = nn.Parameter(torch.full((96,), 0.5))
            layer.mlp.gate_proj.weight.data[:48] *= 0.01
            layer.mlp.gate_proj.bias = nn.Parameter(torch.full((96,), 0.5))
        before = logits(model)
        pruned(model, f"neurons:share=0.4:compensate={compensate}")
        errors[compensate] = float((logits(model) - before).norm() / before.norm())
    assert errors["true"] < 0.05 * errors["false"] and errors["false"] > 0.05


def test_weights_alone_need_no_calibration():
    model = zoo.build("llava")
    vtc.compress(model, "heads:share=0.5:score=magnitude:compensate=false", progress=False)
    with pytest.raises(WeightsError, match="calibration"):
        vtc.compress(zoo.build("llava"), "neurons:score=magnitude", progress=False)


def test_layers_that_do_nothing_go_first():
    model = zoo.build("gemma3")
    layers = model.model.language_model.layers
    for n in (1, 2):
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
            getattr(layers[n], norm).weight.data.fill_(-1)  # Gemma's norms multiply by 1 + weight
    before, kept = logits(model), [layers[0], layers[3]]
    pruned(model, "layers:share=0.5")
    after = model.model.language_model
    assert [*after.layers] == kept
    assert [layer.self_attn.layer_idx for layer in after.layers] == [0, 1]
    text = model.config.get_text_config()
    assert text.num_hidden_layers == 2 and text.layer_types == ["sliding_attention", "full_attention"]
    torch.testing.assert_close(logits(model), before)
    assert hf.config_of(model) is None  # an ordinary model, which loads without vtc


@pytest.mark.parametrize("patched", [False, True])
def test_layers_that_change_little_lose_more(patched):
    """Adapt-Pruner's schedule: every layer a share of its own."""
    model = zoo.build("llava")
    for n in (1, 2):
        layer = model.model.language_model.layers[n]
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data *= 0.01
    if patched:
        vtc.patch(model, "divprune", budget=4)
    pruned(model, "neurons:share=0.25:across=influence:spread=0.8")
    sizes = [layer.mlp.up_proj.out_features for layer in model.model.language_model.layers]
    assert max(sizes[1:3]) < min(sizes[0], sizes[3]) and abs(sum(sizes) / 4 - 0.75 * 96) <= 1
    assert (vtc.patch_of(model) is not None) == patched and bool(torch.isfinite(logits(model)).all())


def test_a_patch_stays_on_through_all_of_it():
    model = zoo.build("llava")
    vtc.patch(model, "fastv", budget=0.6, layer=1)
    pruned(model, "layers:share=0.25|flap:share=0.1|gptq:bits=8:group=8")
    assert vtc.patch_of(model).engine.depth == 3
    assert torch.equal(generated(model), generated(model))
    assert vtc.report(model) is not None
    vtc.unpatch(model)
    assert not left_over(model)


def test_layers_of_a_hybrid_leave_one_that_attends():
    skip_before("transformers", 5, 16, why="Qwen3.5 asks its cache for recurrent layers, and none is left")
    model = zoo.build("qwen3_5")
    pruned(model, "layers:share=0.75")
    assert model.config.get_text_config().layer_types == ["full_attention"]
    assert torch.equal(generated(model), generated(model, use_cache=False))


def test_even_layers_of_a_hybrid_that_leave_none_that_attends_are_refused():
    model = zoo.build("qwen3_5")
    state = everything(model)
    with pytest.raises(WeightsError, match="by influence"):
        pruned(model, "layers:share=0.75:choose=even")
    assert_same(everything(model), state)


LOADED = """
import sys, torch, vtc.weights
from transformers import AutoModelForImageTextToText
folder = sys.argv[1]
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert not any(info[k] for k in info if k.endswith("_keys")), info
given = torch.load(folder + "/given.pt")
torch.save((model(**given).logits, model.generate(**given, max_new_tokens=3)), folder + "/got.pt")
"""
SAVED = [
    ("llava", "flap:share=0.15|gptq:bits=4:group=8"),
    ("gemma3", "layers:share=0.5|heads:share=0.5|neurons"),
    ("llava", "layers:share=0.25"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, recipe", SAVED)
def test_a_fresh_process_gives_the_same_bits(name, recipe, tmp_path):
    model = pruned(zoo.build(name), recipe)
    model.save_pretrained(tmp_path)
    given = zoo.prompt(model)
    torch.save(given, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", LOADED, str(tmp_path)], check=True, capture_output=True)
    got, words = torch.load(tmp_path / "got.pt")
    assert torch.equal(got, model(**given).logits)
    assert torch.equal(words, model.generate(**given, max_new_tokens=3))


@over_families([SHARES["flap"], "layers:share=0.5", ALL], ("gemma3", ALL))
def test_saved_and_loaded_is_the_same(name, recipe, tmp_path):
    model = zoo.build(name)
    pruned(model, recipe).save_pretrained(tmp_path / "one")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(generated(loaded), generated(model))
    loaded.save_pretrained(tmp_path / "two")
    assert_same(everything(AutoModelForImageTextToText.from_pretrained(tmp_path / "two")), everything(loaded))


@pytest.mark.parametrize("size", [[0, 64], [64], [96, 65], [96.0, 64], "96"])
def test_a_size_that_cannot_be_is_refused(size, tmp_path):
    model = pruned(zoo.build("llava"), SHARES["neurons"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    name = next(n for n in config["quantization_config"]["layers"] if n.endswith("down_proj"))
    config["quantization_config"]["layers"][name]["linear"] = size
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="linear"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("patched", [False, True])
def test_an_error_after_the_cuts_undoes_them(patched):
    model = zoo.build("qwen2_5_vl")
    if patched:
        vtc.patch(model, "divprune", budget=4)
    state, before = everything(model), logits(model)
    tensor = model.model.language_model.layers[3].self_attn.v_proj.weight
    value = tensor.data[0, 0].item()
    tensor.data[0, 0] = math.nan
    with pytest.raises(WeightsError, match="finite"):
        pruned(model, "heads:share=0.5:score=magnitude:compensate=false|rtn:bits=8:group=8")
    with pytest.raises(WeightsError, match="finite"):
        pruned(model, "layers:share=0.25|flap")
    tensor.data[0, 0] = value
    assert_same(everything(model), state)
    assert torch.equal(logits(model), before) and hf.config_of(model) is None
    assert (vtc.patch_of(model) is not None) == patched


def test_interrupted_it_is_as_it_was(monkeypatch):
    model = zoo.build("llava")
    state = everything(model)

    def stop(self, layer):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry["gptq"], "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(model, "layers:share=0.5|flap:share=0.15|gptq")
    assert_same(everything(model), state)
    assert not left_over(model)


@pytest.mark.parametrize(
    "recipe, told",
    [
        ("flap:share=0.95", "at most 0"),
        ("neurons:share=0.005", "least share is 0.0104"),
        ("heads:share=0.2", "least share is 0.5"),
        ("layers:share=0.05", "from 0.25 to 0.75"),
        ("layers:share=0.95", "from 0.25 to 0.75"),
        ("neurons:share=1", "between 0 and 1"),
        ("neurons:score=loudness", "wifv"),
        ("neurons:across=town", "layer"),
        ("neurons:across=influence:spread=2", "spread must be a share"),
        ("neurons:share=0.8:across=influence", "spread must be below 0.25"),
        ("layers:choose=odd", "even"),
        ("gptq:bits=4:group=8|flap", "before the other passes"),
        ({"passes": ["flap"], "include": ["lm_head"]}, "add decoder"),
        ({"passes": ["layers"], "skip": ["layers.0"]}, "two calls"),
        ({"passes": ["neurons"], "skip": ["mlp"]}, "skip leaves no neurons"),
    ],
)
def test_what_cannot_be_done_names_the_bound(recipe, told):
    model = zoo.build("llava")
    state = everything(model)
    with pytest.raises(WeightsError, match=told):
        pruned(model, recipe)
    assert_same(everything(model), state)


@pytest.mark.parametrize("recipe", ["neurons", "layers"])
@pytest.mark.parametrize("buckets", ["pooled", "gradient", (1.0, 0.0)])
def test_tokens_are_weighed_as_the_recipe_says(recipe, buckets):
    model = pruned(zoo.build("llava"), {"passes": [recipe], "buckets": buckets})
    assert parameters(model) < parameters(zoo.build("llava"))


def test_a_structured_pass_fits_no_single_layer():
    with pytest.raises(WeightsError, match="structure"):
        registry["flap"]().fit(None)


def test_skipped_layers_keep_their_size():
    model = pruned(zoo.build("llava"), {"passes": ["neurons:share=0.5"], "skip": [r"layers\.0\."]})
    sizes = [layer.mlp.up_proj.out_features for layer in model.model.language_model.layers]
    assert sizes == [96, 48, 48, 48]


@pytest.mark.parametrize(
    "name, recipe, missing",
    [("glm4v", "neurons", "gate_proj"), ("qwen3_5", "flap", "recurrent")],
)
def test_layers_of_another_kind_are_refused(name, recipe, missing):
    with pytest.raises(UnsupportedModel, match=missing):
        pruned(zoo.build(name), recipe)


def test_a_norm_over_all_heads_is_refused():
    model = zoo.build("llava")
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm = nn.RMSNorm(64)
    with pytest.raises(UnsupportedModel, match="q_norm"):
        pruned(model, "heads:share=0.5")


def test_layers_that_the_config_cannot_describe_are_refused():
    model = zoo.build("llava")
    for layer in model.model.language_model.layers:
        layer.mlp.extra = nn.Dropout()  # which this config makes none of
    state = everything(model)
    with pytest.raises(UnsupportedModel, match="mlp.extra"):
        pruned(model, "layers:share=0.75")
    assert_same(everything(model), state)


@pytest.mark.parametrize("recipe", ["heads:share=0.5", "layers"])
def test_layers_that_read_the_keys_of_others_are_refused(recipe):
    model = zoo.build("llava")
    model.config.text_config.num_kv_shared_layers = 2
    with pytest.raises(UnsupportedModel, match="prune neurons"):
        pruned(model, recipe)
    pruned(model, "neurons")


def test_one_group_of_heads_cannot_go():
    model = zoo.build("llava")
    model.config.text_config.num_key_value_heads = 1
    model = type(model)(model.config).eval()
    with pytest.raises(WeightsError, match="prune neurons"):
        pruned(model, "heads:share=0.5")


def test_lists_of_layer_numbers_are_refused():
    model = zoo.build("llava")
    model.config.text_config.mlp_only_layers = [1]
    with pytest.raises(UnsupportedModel, match="mlp_only_layers"):
        pruned(model, "layers:share=0.5")
    assert len(model.model.language_model.layers) == 4
