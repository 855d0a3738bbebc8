"""ToMe on plain ViTs of timm: equal to the definition in loops, identity, undo, gradients, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import vtc
from tests.tolerances import assert_close, assert_same
from tests.towers.tome import round_by_loop
from vtc.errors import UnsupportedModel, VTCError
from vtc.methods.tome import ToMe
from vtc.patching.api import patch_of

timm = pytest.importorskip("timm")

SMALL = {"num_classes": 7, "depth": 4}
MODELS = {
    "class": lambda: timm.create_model("vit_tiny_patch16_224", img_size=112, **SMALL),
    "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=112, **SMALL),
    "registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=98, init_values=0.5, **SMALL),
    "average": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=112, class_token=False, global_pool="avg", **SMALL
    ),
    "attention pool": lambda: timm.create_model(
        "vit_base_patch16_siglip_224", img_size=112, embed_dim=64, num_heads=4, **SMALL
    ),
    "normalised keys": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=112, qk_norm=True, init_values=0.5, **SMALL
    ),
}
each = pytest.mark.parametrize("kind", MODELS)


def build(kind: str):
    """A model whose every token matters, and two pictures."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.6 / weight.shape[-1] ** 0.5))
    return model, torch.randn(2, 3, *model.patch_embed.img_size, generator=generator)


@torch.no_grad()
def by_definition(model, pictures: Tensor, rates: list[int]) -> Tensor:
    """Logits of the paper's definition, one picture and one pair of tokens at a time, with softmax written out."""
    states = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pictures))))
    full = states.clone()
    for i, one in enumerate(states):
        members = [[n] for n in range(len(one))]
        for block, r in zip(model.blocks, rates, strict=True):
            sizes = torch.tensor([float(len(m)) for m in members])
            added, keys = attention(block, one, sizes)
            one = one + block.ls1(added)
            one, members = round_by_loop(one, keys, members, r, model.num_prefix_tokens)
            one = one + block.ls2(block.mlp(block.norm2(one)))
        for value, group in zip(one, members, strict=True):
            full[i, group] = value
    return model.forward_head(model.norm(full))


def attention(block, one: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """What attention adds, ``[t, D]``, with log sizes on its logits; the keys' mean over heads, ``[t, d]``."""
    layer = block.attn
    q, k, v = layer.qkv(block.norm1(one)).view(len(one), 3, layer.num_heads, -1).permute(1, 2, 0, 3)
    q, k = layer.q_norm(q), layer.k_norm(k)
    weights = (q @ k.mT * layer.scale + sizes.log()).softmax(dim=-1)
    return layer.proj((weights @ v).transpose(0, 1).flatten(1)), k.mean(dim=0)


@torch.no_grad()
def run(model, pictures: Tensor) -> Tensor:
    return model(pictures)


@each
@pytest.mark.parametrize("r", [3, [9, 0, 5], (4, 1.0), (4, -1.0), 40])
def test_equals_the_definition(kind, r):
    model, pictures = build(kind)
    plain = run(model, pictures)
    want = by_definition(model, pictures, ToMe(r=r).rates(4))
    vtc.patch(model, "tome", r=r)
    got = run(model, pictures)
    assert_close("logits", got, want)
    assert (got - plain).abs().max() > 1e-3, "merging changes nothing here, so the check proves nothing"


@each
def test_the_definition_without_merging_is_the_model(kind):
    model, pictures = build(kind)
    assert_close("logits", by_definition(model, pictures, [0] * 4), run(model, pictures))


@each
def test_merging_nothing_is_bit_equal_and_so_is_undoing(kind):
    model, pictures = build(kind)
    plain, before = run(model, pictures), inventory(model)
    assert vtc.patch(model, "tome", r=0) is model
    assert_same("r = 0", run(model, pictures), plain)
    vtc.patch(model, "tome", budget=1.0)
    assert_same("a budget of all", run(model, pictures), plain)
    vtc.patch(model, "tome", r=6)
    assert not torch.equal(run(model, pictures), plain)
    vtc.unpatch(model)
    assert inventory(model) == before and patch_of(model) is None
    assert_same("undone", run(model, pictures), plain)


def inventory(model) -> dict:
    """Everything a patch could leave on the model or on its classes."""
    modules = {
        name: (type(m), sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks), type(m).forward)
        for name, m in model.named_modules()
    }
    return {"modules": modules, "keys": list(model.state_dict())}


@each
def test_a_picture_alone_is_as_in_a_batch_and_tokens_are_counted(kind):
    model, pictures = build(kind)
    prefix, patches = model.num_prefix_tokens, model.patch_embed.num_patches
    vtc.patch(model, "tome", r=5)
    together = run(model, pictures)
    assert patch_of(model).tokens == [prefix + patches - 5 * n for n in (1, 2, 3, 4)]
    assert_close("alone", torch.cat([run(model, one[None]) for one in pictures]), together)
    vtc.patch(model, "tome", budget=12)
    run(model, pictures)
    left = patch_of(model).tokens
    assert left[-1] == prefix + 12 and sorted(left, reverse=True) == left


@each
def test_gradients_flow_and_replay(kind):
    """Every weight gets a gradient, the same one under activation checkpointing."""
    model, pictures = build(kind)
    vtc.patch(model, "tome", r=5)
    plain = gradients(model, pictures)
    assert all(g.isfinite().all() for g in plain.values())
    assert all(plain[name].abs().sum() > 0 for name in plain if "attn" in name or "mlp" in name)
    model.set_grad_checkpointing()
    for name, g in gradients(model, pictures, between=lambda: run(model, pictures.flip(0))).items():
        assert_close(name, g, plain[name])


def gradients(model, pictures: Tensor, between=lambda: None) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(pictures).square().sum()
    between()  # another forward may come before the backward
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_fused_attention_is_kept(monkeypatch):
    """One call of scaled_dot_product_attention a block: no mask in the first, log sizes on the keys after."""
    model, pictures = build("class")
    real, masks = torch.nn.functional.scaled_dot_product_attention, []

    def watch(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    vtc.patch(model, "tome", r=6)
    run(model, pictures)
    assert masks[0] is None and [m.shape[-1] for m in masks[1:]] == [44, 38, 32]
    assert all(m.exp().sum(dim=-1).round().eq(50).all() for m in masks[1:])


def test_intermediate_features_stand_where_they_stood():
    model, pictures = build("class")
    vtc.patch(model, "tome", r=6)
    features = model.forward_intermediates(pictures, intermediates_only=True)
    assert [tuple(f.shape) for f in features] == [(2, 192, 7, 7)] * 4
    assert len(features[-1][0].flatten(1).unique(dim=1).T) == 49 - 4 * 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_dtype(dtype):
    model, pictures = build("class")
    vtc.patch(model.to(dtype), "tome", r=6)
    got = run(model, pictures.to(dtype))
    assert got.dtype == dtype and got.isfinite().all()


def test_schedules():
    assert ToMe(r=8).rates(4) == [8, 8, 8, 8]
    assert ToMe(r=[8, 4]).rates(4) == [8, 4, 0, 0]
    assert ToMe(r=[8, 4, 2, 1, 9]).rates(4) == [8, 4, 2, 1]
    assert ToMe(r=(8, 0.0)).rates(5) == [8] * 5
    assert ToMe(r=(8, 1.0)).rates(5) == [0, 4, 8, 12, 16]
    assert ToMe(r=(8, -1)).rates(5) == [16, 12, 8, 4, 0]
    assert ToMe(r=3).rates(1) == [3] and ToMe().rates(4) is None
    assert hash(ToMe(r=[1, 2])) == hash(ToMe(r=[1, 2])) and ToMe(r=[2, 1]) != ToMe(r=(2, 1))


@pytest.mark.parametrize("r", [-1, 1.5, True, "13", [1, -2], (8, 2.0), (8, True), (1.5, 0.5)])
def test_bad_schedules_say_what_is_wanted(r):
    with pytest.raises(ValueError, match="tome: "):
        ToMe(r=r)


@pytest.mark.parametrize(
    "model",
    [
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        lambda: timm.create_model(
            "vit_tiny_patch16_224", depth=1, block_fn=timm.models.vision_transformer.ResPostBlock
        ),
        lambda: timm.create_model("vit_tiny_patch16_224", depth=1, attn_layer="diff"),
    ],
)
def test_other_models_are_refused_and_left_alone(model):
    model = model()
    before = inventory(model)
    with pytest.raises(UnsupportedModel, match="takes timm's plain ViTs, such as"):
        vtc.patch(model, "tome", r=3)
    assert inventory(model) == before


def test_what_does_not_fit_is_said():
    model, pictures = build("class")
    with pytest.raises(UnsupportedModel, match="are decoder layers, and this model has none"):
        vtc.patch(MODELS["class"](), "tome", r=4, rest=(1,))
    with pytest.raises(UnsupportedModel, match=r'vtc.patch\(model, "tome", r=13\)'):
        vtc.patch(model, "divprune")
    vtc.patch(model, "tome", r=3)
    with pytest.raises(UnsupportedModel, match="mask"):
        model(pictures, is_causal=True)
    with pytest.raises(VTCError, match="tokens"):
        vtc.report(model)
    with pytest.raises(VTCError, match="state_dict"):
        vtc.save(model, "never written")
    with pytest.raises(VTCError, match="neither copied"):
        copy.deepcopy(model)
    handle = model.blocks[1].register_forward_hook(lambda module, args, out: out.clone())
    with pytest.raises(UnsupportedModel, match="those that left block 1"):
        model(pictures)
    handle.remove()
    assert run(model, pictures).isfinite().all()


def test_patched_restores_the_outer_patch():
    model, pictures = build("class")
    vtc.patch(model, "tome", r=3)
    outer = run(model, pictures)
    with vtc.patched(model, "tome", r=6):
        assert not torch.equal(run(model, pictures), outer)
    assert_same("outer", run(model, pictures), outer)
    vtc.unpatch(model)


def test_a_compiled_model_takes_the_patch_and_gives_it_back():
    model, pictures = build("class")
    compiled = torch.compile(model, backend="eager")
    plain = run(compiled, pictures)
    vtc.patch(compiled, "tome", r=6)
    want = run(model, pictures)
    assert_close("patched", run(compiled, pictures), want)
    assert (want - plain).abs().max() > 1e-3 and patch_of(model) is patch_of(compiled)
    vtc.unpatch(compiled)
    assert_close("unpatched", run(compiled, pictures), plain)
