"""ToMe inside the towers of VLMs: features equal the definition in loops, groups reach the decoder's input whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vtc
from tests import zoo
from tests.support import STIFF, engine, logits
from tests.tolerances import assert_close, assert_same
from tests.towers import tome_units
from tests.towers.tome import round_by_loop
from vtc.engine.sites.tower_merging import shares
from vtc.errors import UnsupportedModel
from vtc.methods.tome import split_groups
from vtc.models import family_of
from vtc.models.generic import Generic
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import VisionTokens

FAMILIES = [name for name in zoo.NAMES if name not in STIFF]
TILES = ("internvl", "idefics3", "smolvlm", "gemma3", "aya_vision", "cohere2_vision")
BLOCKS = (*zoo.QWEN, *TILES)  # a token is several patches


@torch.no_grad()
def tower_by_definition(layers, states: Tensor, rates: list[int], prefix: int) -> list[Tensor]:
    """What each layer leaves, ``[n, D]``, of the embeddings ``states [n, D]`` of one picture, softmax written out."""
    members, outputs = [[n] for n in range(len(states))], []
    one = states
    for layer, r in zip(layers, rates, strict=True):
        attention, x = layer.self_attn, layer.layer_norm1(one)
        heads = attention.num_heads
        q, k, v = (p(x).unflatten(1, (heads, -1)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        sizes = torch.tensor([float(len(m)) for m in members], dtype=x.dtype)
        weights = (torch.einsum("ahd,bhd->hab", q, k) * q.shape[-1] ** -0.5 + sizes.log()).softmax(dim=-1)
        one = one + attention.out_proj(torch.einsum("hab,bhd->ahd", weights, v).flatten(1))
        one, members = round_by_loop(one, k.mean(dim=1), members, r, prefix)
        one = one + layer.mlp(layer.layer_norm2(one))
        full = states.clone()
        for value, group in zip(one, members, strict=True):
            full[group] = value
        outputs.append(full)
    return outputs


def encoder_layers(model):
    tower = family_of(model).tower
    return tower.encoder.layers


def embedded(model, pixels: Tensor) -> Tensor:
    """What enters the tower's first layer."""
    seen: list[Tensor] = []
    handle = encoder_layers(model)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    features_of(model, pixels)
    handle.remove()
    return seen[0]


@torch.no_grad()
def features_of(model, pixels: Tensor) -> Tensor:
    """Language-model tokens ``[T, n, D]``."""
    return torch.stack(list(model.model.get_image_features(pixels).pooler_output))


# Of 3 layers LLaVA reads the second's output, PaliGemma the third's. One layer can at most halve the patches, so small
# budgets merge early, and 3 patches cannot be reached in two.
@pytest.mark.parametrize(
    ("family", "budget", "rates"),
    [
        ("llava", 18, [9, 9, 0]),
        ("llava", 0.25, [18, 9, 0]),
        ("llava", 3, [18, 9, 0]),
        ("paligemma", 18, [6, 6, 6]),
        ("paligemma", 5, [16, 10, 5]),
    ],
)
def test_features_equal_the_definition(family, budget, rates, model_of):
    model = model_of(family, dtype=torch.float64)
    pixels = zoo.prompt(model, 2)["pixel_values"]
    plain, states = features_of(model, pixels), embedded(model, pixels)
    prefix = family_of(model).tower_cls
    outputs = [tower_by_definition(encoder_layers(model), one, rates, prefix) for one in states]
    if family == "llava":
        want = model.model.multi_modal_projector(torch.stack([o[-2][1:] for o in outputs]))
    else:
        tower = family_of(model).tower
        want = model.model.multi_modal_projector(tower.post_layernorm(torch.stack([o[-1] for o in outputs])))
    vtc.patch(model, "tome", budget=budget)
    got = features_of(model, pixels)
    assert_close("features", got, want)
    assert (got - plain).abs().max() > 1e-3, "merging changes nothing here, so the check proves nothing"


def entering_tower(model, prompt: dict) -> tuple[Tensor, dict]:
    """What enters the tower's first block, with its further arguments."""
    seen: list = []
    block = family_of(model).tower_blocks()[0].module
    handle = block.register_forward_pre_hook(lambda module, *given: seen.append(given), with_kwargs=True)
    logits(model, prompt)
    handle.remove()
    args, kwargs = seen[0]
    return (args[0] if args else kwargs["hidden_states"]).detach(), kwargs


@torch.no_grad()
def last_states(model, prompt: dict) -> Tensor:
    """What leaves the tower, before patches become tokens."""
    vision = {k: v for k, v in prompt.items() if k not in zoo.PER_TOKEN}
    return zoo.features(model, "image", vision).last_hidden_state


# 16 units a tile, in two layers to 8.
@pytest.mark.parametrize("family", ["internvl", "idefics3"])
def test_tiles_equal_the_definition(family, model_of):
    model = model_of(family, dtype=torch.float64)
    prompt, adapter = zoo.prompt(model, 1), family_of(model)
    states, _ = entering_tower(model, prompt)
    prefix, layers = adapter.tower_cls, [block.module for block in adapter.tower_blocks()]
    squares = [
        [prefix + (2 * y + a) * 8 + 2 * x + b for a in range(2) for b in range(2)] for y in range(4) for x in range(4)
    ]
    units = [[n] for n in range(prefix)] + squares
    parts, seen = [list(range(len(units)))], [[[0]], [[0]]]
    outputs = [
        tome_units.tower_by_definition(tome_units.Tile(), layers, one, units, parts, seen, [[4], [4]], prefix)
        for one in states
    ]
    norm = adapter.tower.layernorm if family == "internvl" else adapter.tower.post_layernorm
    want, plain = norm(torch.stack(outputs)), last_states(model, prompt)
    vtc.patch(model, "tome", budget=0.5)
    got = last_states(model, prompt)
    assert_close("states", got, want)
    assert (got - plain).abs().max() > 1e-3, "merging changes nothing here, so the check proves nothing"


# 4 x 5 units to 10: over the whole frame, or 2, 2, 1, 2, 2, 1 of windows of 4, 4, 2, 4, 4, 2. The second layer of
# Qwen2.5-VL attends to the whole frame, and merges within windows still. Qwen3-VL has four layers.
@pytest.mark.parametrize(
    ("family", "sizes", "whole", "rates"),
    [
        ("qwen2_vl", [20], [True, True], [[5], [5]]),
        ("qwen3_vl", [20], [True] * 4, [[3], [3], [2], [2]]),
        ("qwen2_5_vl", [4, 4, 2, 4, 4, 2], [False, True], [[1] * 6, [1, 1, 0, 1, 1, 0]]),
    ],
)
def test_packed_pictures_equal_the_definition(family, sizes, whole, rates, model_of):
    model = model_of(family, dtype=torch.float64)
    prompt, adapter = zoo.prompt(model, 1), family_of(model)
    states, kwargs = entering_tower(model, prompt)
    units, parts = [list(range(4 * u, 4 * u + 4)) for u in range(20)], []
    for n in sizes:
        start = sum(map(len, parts))
        parts.append(list(range(start, start + n)))
    everything, each = [list(range(len(parts)))], [[p] for p in range(len(parts))]
    seen = [everything if w else each for w in whole]
    kind = tome_units.Sequence(*kwargs["position_embeddings"])
    layers = [block.module for block in adapter.tower_blocks()]
    want = tome_units.tower_by_definition(kind, layers, states, units, parts, seen, rates, 0)
    plain = last_states(model, prompt)
    vtc.patch(model, "tome", budget=0.5)
    got = last_states(model, prompt)
    assert_close("states", got, want)
    assert (got - plain).abs().max() > 1e-3, "merging changes nothing here, so the check proves nothing"


@pytest.mark.parametrize("budget", [0.5, 0.3, "tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_slot_is_a_group_of_the_tower(family, budget, model_of):
    """A slot's tokens came out of the tower alike wherever the tower merged as far as the budget asks."""
    model = model_of(family, dtype=torch.float64)
    prompt = zoo.prompt(model, 2)
    if budget == "tokens":
        budget = 8 if family in BLOCKS else 20
    vtc.patch(model, "tome", budget=budget)
    logits(model, prompt)
    p = engine(model).current
    cut, groups = p.cuts[0], p.layout.signal(family_of(model), TowerGroups(), torch.device("cpu"))
    for i, (n, k) in enumerate(zip(cut.tokens.count, cut.keep, strict=True)):
        slot, group = cut.reduction.slot[i, :n], groups[i, :n]
        assert (slot >= 0).all() and len(set(slot.tolist())) == k
        for one in group.unique():
            inside = slot[group == one].unique()
            assert len(inside) == 1 or k > len(group.unique()), "a group may be split only where slots are left over"
        if len(group.unique()) <= k:
            assert all(len(group[slot == s].unique()) == 1 for s in range(k)), "tokens of two groups share a slot"
    if family in ("llava", "paligemma", "deepseek_vl", "janus", "vipllava"):
        assert [len(g[:n].unique()) for g, n in zip(groups, cut.tokens.count, strict=True)] == cut.keep


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "vipllava"])  # it reads layers of fewer merges too
def test_groups_are_the_tokens_that_are_alike(family, model_of):
    """Tokens of one group enter the decoder with the same embedding; others differ."""
    model = model_of(family, dtype=torch.float64)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "tome", budget=0.4)
    entering: list[Tensor] = []
    layer = family_of(model).layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: entering.append(args[0].detach()))
    logits(model, prompt)
    handle.remove()
    p = engine(model).current
    tokens = p.cuts[0].tokens
    groups = p.layout.signal(family_of(model), TowerGroups(), torch.device("cpu"))[0]
    features = entering[0][0, tokens.row[0]]
    for n, value in enumerate(features):
        alike = (features - value).abs().amax(dim=1) < 1e-9
        assert torch.equal(alike, groups == groups[n]), "a token unlike its group, or like another"


def test_share_weighs_the_groups(model_of):
    model = model_of("llava", dtype=torch.float64)
    vtc.patch(model, "tome", budget=9, share=True)
    logits(model, zoo.prompt(model, 1))
    cut = engine(model).current.cuts[0]
    groups = engine(model).current.layout.signal(family_of(model), TowerGroups(), torch.device("cpu"))[0]
    want = groups.unique(return_counts=True)[1].sort().values
    sizes = cut.log_size[0].exp().round().long()
    vision = torch.isin(cut.rows[0], cut.tokens.row[0])
    assert_same("sizes", sizes[vision].sort().values, want)
    assert int(want.sum()) == 36 and (sizes[~vision] == 1).all()


def test_merging_in_the_tower_and_dropping_in_the_decoder(model_of):
    """One budget for both: FastV's cut comes on top, and the tower merges only as far as the first stage asks."""
    model = model_of("llava")
    vtc.patch(model, [vtc.methods.ToMe(), vtc.methods.FastV()], budget=9)
    logits(model, zoo.prompt(model, 1))
    picture = vtc.report(model).pictures[0]
    assert picture.average <= 9 and picture.tokens_by_layer[0] > picture.tokens_by_layer[-1]
    assert engine(model).current.cuts[0].keep == [picture.tokens_by_layer[0]]


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision"])
def test_pooled_frames_are_refused(family, model_of):
    model = model_of(family)
    vtc.patch(model, "tome", budget=0.5)
    with pytest.raises(UnsupportedModel, match="pools the frames of a video.*use bipartite"):
        logits(model, zoo.video_prompt(model))


def test_videos_of_whole_frames_merge(model_of):
    model = model_of("video_llava")
    prompt = zoo.video_prompt(model)
    plain = logits(model, prompt)
    vtc.patch(model, "tome", budget=40)
    assert not torch.equal(logits(model, prompt), plain)
    assert vtc.report(model).pictures[0].average <= 40


def test_interpolated_pictures_are_refused(model_of):
    """OneVision shrinks pictures of too many tiles: a token is then several patches."""
    model = model_of("llava_onevision")
    prompt = zoo.prompt(model, 1)
    ratio = model.config.vision_aspect_ratio
    model.config.vision_aspect_ratio = "anyres_max_1"
    try:
        count = zoo.entry_counts(model, "image", {k: prompt[k] for k in ("pixel_values", "image_sizes")})[0]
        ids = torch.tensor([[5] * 5 + [zoo.IMAGE] * count + [6] * 6])
        prompt = {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        vtc.patch(model, "tome", budget=0.5)
        with pytest.raises(UnsupportedModel, match="several patches of this image; use bipartite"):
            logits(model, prompt)
    finally:
        model.config.vision_aspect_ratio = ratio


@pytest.mark.parametrize("family", STIFF)
def test_towers_that_cannot_merge_are_refused(family, model_of):
    model = model_of(family)
    with pytest.raises(UnsupportedModel, match="use bipartite"):
        vtc.patch(model, "tome", budget=0.5)


def test_packed_towers_of_families_found_by_inspection_are_refused(model_of):
    with pytest.raises(UnsupportedModel, match="packs pictures into one sequence.*use bipartite"):
        Generic(model_of("qwen2_vl")).tower_blocks()


# 20 units to 10; 16 and the class token, which stands in all places of a unit, to 8 and it.
@pytest.mark.parametrize(("family", "want"), [("qwen2_vl", [60, 40]), ("internvl", [13 * 4, 9 * 4])])
def test_the_tower_runs_on_fewer_rows(family, want, model_of):
    model = model_of(family)
    prompt, rows = zoo.prompt(model, 1), []
    blocks = [block.module for block in family_of(model).tower_blocks()]
    handles = [
        block.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[-2])) for block in blocks
    ]
    vtc.patch(model, "tome", budget=0.5)
    logits(model, prompt)
    for handle in handles:
        handle.remove()
    assert rows == want


@pytest.mark.parametrize("family", zoo.QWEN)
def test_units_merge_within_a_frame(family, model_of):
    model = model_of(family, dtype=torch.float64)
    prompt = zoo.video_prompt(model)
    plain = logits(model, prompt)
    vtc.patch(model, "tome", budget=0.25)
    assert (logits(model, prompt) - plain).abs().max() > 1e-3
    p = engine(model).current
    assert vtc.report(model).pictures[0].average <= 0.25 * p.layout.count[0]
    groups = p.layout.signal(family_of(model), TowerGroups(), torch.device("cpu"))[0]
    frames = p.cuts[0].tokens.grid[0, :, 0]
    assert len(frames.unique()) == 2 and len(groups.unique()) < len(groups)
    assert all(len(frames[groups == g].unique()) == 1 for g in groups.unique())


def test_units_merge_within_a_window(model_of):
    """Windows of 2 x 2 units; at this budget each merges whole, and not into its neighbour."""
    model = model_of("qwen2_5_vl")
    vtc.patch(model, "tome", budget=1)
    logits(model, zoo.prompt(model, 1))
    p = engine(model).current
    groups = p.layout.signal(family_of(model), TowerGroups(), torch.device("cpu"))[0]
    places = p.cuts[0].tokens.grid[0, :, 1:] // 2
    assert len(groups.unique()) == 6 and p.cuts[0].keep == [1]
    assert all(len(places[groups == g].unique(dim=0)) == 1 for g in groups.unique())


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_a_nan_stays_in_its_picture(family, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, "tome", budget=0.5)
    want = features(model, prompt)
    sick = prompt["pixel_values"].clone()
    sick[-1] = torch.nan
    got = features(model, {**prompt, "pixel_values": sick})
    assert_same("the other picture", got[0], want[0])
    assert got[-1].isnan().any()
    assert logits(model, {**prompt, "pixel_values": sick}).shape[1] == prompt["input_ids"].shape[1]


@torch.no_grad()
def features(model, prompt: dict) -> list[Tensor]:
    """Language-model tokens of each entry."""
    vision = {k: v for k, v in prompt.items() if k not in zoo.PER_TOKEN}
    return list(zoo.features(model, "image", vision).pooler_output)


def test_what_is_rounded_off_goes_to_the_next():
    assert shares([4, 4, 2, 4, 4, 2], 0.5) == [2, 2, 1, 2, 2, 1]
    assert shares([6] * 5, 0.4) == [2, 2, 3, 2, 3]
    assert shares([1, 1, 8], 0.1) == [1, 1, 1]
    assert shares([576] * 3, 1.0) == [576] * 3


def test_r_is_for_plain_vits(model_of):
    with pytest.raises(ValueError, match="give a budget instead"):
        vtc.patch(model_of("llava"), "tome", r=4)


def test_flash_attention_in_the_tower_is_refused(model_of):
    model = model_of("llava")
    vtc.patch(model, "tome", budget=9)
    config = family_of(model).tower.config
    before = config._attn_implementation
    try:
        config._attn_implementation_internal = "flash_attention_2"
        with pytest.raises(UnsupportedModel, match=r"attends by flash_attention_2.*set_attn_implementation"):
            logits(model, zoo.prompt(model, 1))
    finally:
        config._attn_implementation_internal = before


@torch.no_grad()
def test_the_tower_alone_merges_nothing(model_of):
    """Outside a prompt's features nobody asks for fewer tokens."""
    model = model_of("llava")
    pixels = zoo.prompt(model, 1)["pixel_values"]
    plain = family_of(model).tower(pixels).last_hidden_state
    vtc.patch(model, "tome", budget=4)
    assert_same("alone", family_of(model).tower(pixels).last_hidden_state, plain)


def tokens_of(group: Tensor, valid: Tensor) -> VisionTokens:
    blank = torch.zeros(*group.shape, 2)
    count = valid.sum(dim=1).tolist()
    return VisionTokens(blank, valid, valid.float(), blank[..., :1].int(), group, torch.arange(len(group)), count)


def test_slots_left_over_split_the_largest_groups():
    group = torch.tensor([[7, 3, 7, 7, 3, 9, 7, 0], [5, 5, 5, 5, 1, 1, 5, 5]])
    valid = torch.tensor([[True] * 7 + [False], [True] * 8])
    leader, count = split_groups(group, tokens_of(group, valid), [3, 2])
    assert count == [3, 2]
    assert leader.tolist() == [[0, 1, 0, 0, 1, 5, 0, -1], [0, 0, 0, 0, 4, 4, 0, 0]]
    leader, count = split_groups(group, tokens_of(group, valid), [5, 4])
    assert count == [5, 4]
    assert leader.tolist() == [[0, 1, 2, 3, 1, 5, 0, -1], [0, 1, 2, 0, 4, 4, 0, 0]]
    leader, count = split_groups(group, tokens_of(group, valid), [1, 1])
    assert count == [3, 2], "groups are merged further by the caller, not here"
