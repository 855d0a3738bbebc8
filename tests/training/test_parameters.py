"""What learns: each kind, on several families; the sensitivity pass; low-rank factors."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import vtc
from tests import zoo
from tests.eval.tiny import picture, tiny_llava, tiny_processor
from vtc.errors import UnsupportedModel, VTCError
from vtc.models import family_of
from vtc.training.collate import Collator
from vtc.training.conversations import Conversation, Turn
from vtc.training.factors import thaw
from vtc.training.parameters import choose, essential, lora_targets, projector, sensitivities, set_trained, trained

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "gemma3", "deepseek_vl")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projector_is_found_and_is_neither_tower_nor_decoder(family, model_of):
    model = model_of(family)
    found = {id(p) for p in projector(model)}
    base = family_of(model)
    assert found and not found & {id(p) for p in base.decoder.parameters()}
    names = [n for n, p in model.named_parameters() if id(p) in found]
    assert not [n for n in names if re.search(r"encoder|blocks|embeddings\.", n)], names


def test_a_model_without_a_known_projector_is_refused(model_of):
    with pytest.raises(UnsupportedModel, match="use lora or all"):
        projector(model_of("ovis2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_targets_are_the_decoders_linear_layers(family, model_of):
    """The suffixes alone hit vision towers, too."""
    model = model_of(family)
    base = family_of(model)
    pattern = re.compile(lora_targets(model, base))
    hit = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and pattern.fullmatch(n)}
    inside = {id(m) for m in base.layers.modules()}
    want = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside}
    assert hit == want and hit


@pytest.mark.parametrize("train", ["projector", "compressor", "lora", "all", "layers:auto"])
def test_only_what_is_named_learns(train):
    if train == "lora":
        pytest.importorskip("peft")
    model = vtc.patch(tiny_llava(), "perceiver", budget=4, latents=8)
    model = choose(model, train, rank=2, layers=[1, 3])
    names = set(trained(model))
    kinds = {
        "projector": "multi_modal_projector" in "".join(names),
        "learned": any(n.endswith("norm.weight") and "vtc_learned" in n for n in names),
        "lora": any("lora_A" in n for n in names),
        "tower": any("vision_tower" in n for n in names),
        "layers": sorted(
            {int(m[1]) for n in names if (m := re.search(r"language_model\.layers\.(\d+)\.\w+_attn.q_proj.w", n))}
        ),
    }
    want = {
        "projector": {"projector": True, "learned": False, "lora": False, "tower": False, "layers": []},
        "compressor": {"projector": False, "learned": True, "lora": False, "tower": False, "layers": []},
        "lora": {"projector": False, "learned": True, "lora": True, "tower": False, "layers": []},
        "all": {"projector": True, "learned": True, "lora": False, "tower": True, "layers": [0, 1, 2, 3]},
        "layers:auto": {"projector": False, "learned": True, "lora": False, "tower": False, "layers": [1, 3]},
    }
    assert kinds == want[train]


def test_what_cannot_be_trained_is_refused():
    model = vtc.patch(tiny_llava(), "divprune", budget=4)
    with pytest.raises(UnsupportedModel, match="no parameters of its own"):
        choose(model, "compressor")
    with pytest.raises(VTCError, match="'adapter' is none of"):
        choose(model, "adapter")


def test_essential_layers_hold_half_of_the_squares():
    assert essential([1, 5, 2, 2]) == [1]
    assert essential([1, 4, 3, 2]) == [1, 2]
    assert essential([2, 2, 2, 2]) == [0, 1]


def test_the_sensitivity_pass_ranks_a_layer_that_does_nothing_last_and_changes_nothing():
    model = vtc.patch(tiny_llava(), "bipartite", budget=4)
    model.requires_grad_(False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():  # layer 2 adds nothing, and nothing it could change reaches the loss but its outputs
        for name, p in family_of(model).layers[2].named_parameters():
            if "layernorm" in name:
                p.zero_()
    row = Conversation("a", (Turn("what is the color ?", "red"),), (picture(0),))
    squares = sensitivities(model, [Collator(tiny_processor())([row])])
    assert min(range(4), key=squares.__getitem__) == 2 and all(s > 0 for n, s in enumerate(squares) if n != 2)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if ".layers.2." not in n)


def test_tensors_of_another_model_are_refused():
    model = choose(tiny_llava(), "projector")
    good = {n: torch.zeros_like(p) for n, p in trained(model).items()}
    set_trained(model, good, "here")
    assert all(not p.any() for p in trained(model).values())
    with pytest.raises(VTCError, match="here: it lacks"):
        set_trained(model, dict(list(good.items())[1:]), "here")
    with pytest.raises(VTCError, match="other shapes"):
        set_trained(model, {n: t[:1] for n, t in good.items()}, "here")


def test_low_rank_factors_learn_under_their_names(tmp_path):
    model = vtc.compress(zoo.build("llava"), "svd:rank=4", progress=False)
    prompt = zoo.prompt(model, 1)
    with torch.no_grad():
        want, keys = model(**prompt).logits, set(model.state_dict())
    names = thaw(model)
    with torch.no_grad():
        assert torch.equal(model(**prompt).logits, want)
    assert set(model.state_dict()) == keys and names and set(names) <= {n for n, _ in model.named_parameters()}
    model(**prompt).logits.square().mean().backward()
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).mul_(1.1)
        want = model(**prompt).logits
    vtc.save(model, tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(vtc.load(tmp_path / "out")(**prompt).logits, want)
