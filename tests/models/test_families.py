"""Families: a tower signal lands on the token whose pixels it came from; every token stands where its pixels are."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AttentionInterface, CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests import zoo
from tests.models.towers import pixel_places, run_of, token_map, vision_of
from vtc.errors import UnsupportedModel
from vtc.models import family_of
from vtc.models.base import TowerRun
from vtc.models.inspection import tower_of
from vtc.models.tiles import TilesFromStart, TilesThenGlobal
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_keys import TowerKeys

NO_SIGNAL = {"aria": "patch", "got_ocr2": "interface", "perception_lm": "interface"}
SIGNALS = [name for name in zoo.NAMES if name not in NO_SIGNAL]
PLACED = [name for name in zoo.NAMES if name != "aria"]


def model_of(name: str):
    return zoo.build(name, dtype=torch.float32 if name in zoo.FLOAT32_ONLY else torch.float64)


def inputs(model, modality: str) -> dict:
    return vision_of(zoo.prompt(model, pictures=2)) if modality == "image" else vision_of(zoo.video_prompt(model))


WITH_SIGNAL = [(n, "image") for n in SIGNALS] + [(n, "video") for n in zoo.VIDEOS]
WITH_PLACE = [(n, "image") for n in PLACED] + [(n, "video") for n in zoo.VIDEOS]


@pytest.mark.parametrize(("name", "modality"), WITH_SIGNAL)
def test_signal_lands_on_the_token_that_sees_those_patches(name, modality):
    """A one-hot signal on each tower token reaches exactly the tokens whose features depend on it."""
    model = model_of(name)
    run, depends, shape = token_map(model, inputs(model, modality), modality)
    one_hot = torch.eye(depends.shape[1], dtype=torch.float64).view(*shape, -1)
    run.captured[TowerKeys()] = [one_hot]
    landed = torch.cat(family_of(model).align(run, TowerKeys()))
    run.captured[TowerKeys(0)] = [one_hot[..., 0]]  # one value a token stays one value
    assert torch.equal(torch.cat(family_of(model).align(run, TowerKeys(0))), landed[:, 0])
    newline = torch.cat([place.newline for place in family_of(model).places(run)])
    assert depends[~newline].any(1).all() and not depends[newline].any()
    assert torch.equal(landed != 0, depends)
    torch.testing.assert_close(landed[~newline].sum(1), torch.ones(int((~newline).sum()), dtype=torch.float64))


@pytest.mark.parametrize(("name", "modality"), WITH_PLACE)
def test_tokens_stand_where_their_pixels_are(name, modality):
    """Rank of the pixels' centre = the grid; newlines and CLS depend on no pixels; t = 1 is AnyRes' large picture."""
    model = model_of(name)
    run, centre = pixel_places(model, inputs(model, modality), modality)
    family, start = family_of(model), 0
    places = family.places(run)
    assert [len(place.grid) for place in places] == run.counts
    for place in places:
        seen = centre[start : start + len(place.grid)]
        start += len(place.grid)
        real = place.grid[:, 0] >= 0
        assert torch.equal(seen.isnan().any(1), place.newline | ~real)
        for t in place.grid[real, 0].unique():
            part = (place.grid[:, 0] == t) & ~place.newline
            for axis in (1, 2):
                ranks = seen[part, axis].round(decimals=4).unique(return_inverse=True)[1]
                assert torch.equal(place.grid[part, axis], ranks)


@pytest.mark.parametrize("name", ["llava_next", "llava_next_video", "llava_onevision"])
def test_anyres_rows_end_in_newlines(name):
    model = model_of(name)
    run, _ = run_of(model, inputs(model, "image"))
    large, wide = family_of(model).places(run)
    assert run.counts == [36 + 12 * 11, 36 + 6 * 13]
    for place in (large, wide):
        ends = place.grid[place.newline]
        high = place.grid[(place.grid[:, 0] == 1) & ~place.newline]
        assert torch.equal(ends[:, 1], torch.arange(len(ends)))  # one a row
        assert (ends[:, 2] == high[:, 2].max() + 1).all()


def test_onevision_shrinks_large_pictures():
    """A picture over its budget of tiles is interpolated: signals travel through the same interpolation."""
    model = model_of("llava_onevision")
    model.base_model.config.vision_aspect_ratio = "anyres_max_1"
    vision = dict(inputs(model, "image"), vision_aspect_ratio="anyres_max_1")
    run, depends, shape = token_map(model, vision)
    places = family_of(model).places(run)
    assert [len(place.grid) for place in places] == run.counts
    assert run.counts[0] < 36 + 11 * 12  # what it has without interpolation
    run.captured[TowerKeys()] = [torch.eye(depends.shape[1], dtype=torch.float64).view(*shape, -1)]
    landed = torch.cat(family_of(model).align(run, TowerKeys()))
    assert torch.equal(landed != 0, depends)


def test_onevision_pictures_that_are_not_tiled_end_in_one_newline():
    model = model_of("llava_onevision")
    vision = dict(inputs(model, "image"), batch_num_images=torch.tensor([2]))
    run, _ = run_of(model, vision)
    assert run.counts == [37, 37]
    for place in family_of(model).places(run):
        assert place.newline.tolist() == [False] * 36 + [True]
        assert place.grid[-1].tolist() == [0, 5, 6]
    run, depends, shape = token_map(model, vision)
    run.captured[TowerKeys()] = [torch.eye(depends.shape[1], dtype=torch.float64).view(*shape, -1)]
    assert torch.equal(torch.cat(family_of(model).align(run, TowerKeys())) != 0, depends)


@pytest.mark.parametrize("name", SIGNALS)
def test_real_attention_calls_fit_the_map(name):
    """Keys seen in the attention interface, in the order of its calls, align to means of the same keys."""
    model = model_of(name)
    family, vision = family_of(model), inputs(model, "image")
    captured: list[torch.Tensor] = []

    def watch(module, query, key, *args, **kwargs):
        captured.append(key.mean(1))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, *args, **kwargs)

    AttentionInterface.register("vtc_test_watch", watch)
    attention = family.tower_attention(0)
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation_internal = "vtc_test_watch"
    with torch.no_grad():
        run, _ = run_of(model, vision)
    run.captured[TowerKeys()] = captured
    keys = torch.cat([raw.flatten(0, 1) for raw in captured])
    aligned = torch.cat(family.align(run, TowerKeys()))
    run, depends, _ = token_map(model, vision)
    weights = depends.to(keys.dtype) / depends.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(aligned, weights @ keys)


@pytest.mark.parametrize("name", [*zoo.QWEN, "mistral3", "llava_pixtral"])
def test_received_attention_compares_across_windows(name):
    """Uniform attention inside windows of any size is worth the same everywhere: 1 / the picture's patches."""
    model = model_of(name)
    run, _ = run_of(model, inputs(model, "image"))
    patches = [count * (1 if name == "llava_pixtral" else 4) for count in run.counts]
    windows = [size for n in patches for size in (n // 4, n - n // 4)] if name in zoo.QWEN else patches
    heard = [torch.full((1, size), 1 / size, dtype=torch.float64) for size in windows]
    run.captured[TowerAttention()] = heard if name in zoo.QWEN else [torch.cat(heard, dim=1)]  # one call, masked
    for values, n in zip(family_of(model).align(run, TowerAttention()), patches, strict=True):
        torch.testing.assert_close(values, torch.full_like(values, 1 / n))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_pictures_of_a_ragged_batch(name):
    """0, 1 and 2 pictures in three prompts: every picture has all its tiles."""
    model = model_of(name)
    batch = zoo.batch([zoo.prompt(model, pictures=n, seed=n) for n in (0, 1, 2)])
    with torch.no_grad():
        run, _ = run_of(model, vision_of(batch))
    family = family_of(model)
    assert family.pictures(run, batch["input_ids"]) == [zoo.TILES.get(name, 1)] * 3
    placeholders = (batch["input_ids"] == family.token_ids["image"]).sum()
    assert sum(run.counts) == placeholders


def test_a_video_is_one_picture():
    model = model_of("video_llava")
    run, _ = run_of(model, inputs(model, "video"), "video")
    assert family_of(model).pictures(run, None) == [zoo.FRAMES]


@pytest.mark.parametrize(
    ("kind", "runs", "pictures"),
    [
        (TilesThenGlobal, [(7, 4), (7, 4), (9, 4), (9, 4)], [12, 4]),  # tiled, then a small one
        (TilesThenGlobal, [(9, 4), (7, 4), (9, 4)], [4, 8]),
        (TilesFromStart, [(5, 4), (8, 4), (5, 4), (8, 4), (8, 4)], [8, 12]),
        (TilesFromStart, [(5, 12), (5, 4)], [12, 4]),  # all tiles in one run
    ],
)
def test_where_a_tiled_picture_ends(kind, runs, pictures):
    assert kind.picture_runs(None, runs) == pictures


def test_tiles_need_the_prompt():
    model = model_of("idefics3")
    run, _ = run_of(model, inputs(model, "image"))
    with pytest.raises(UnsupportedModel, match="input_ids"):
        family_of(model).pictures(run, None)
    ids = torch.tensor([[zoo.START, *[zoo.IMAGE] * 7]])
    with pytest.raises(UnsupportedModel, match="processor"):
        family_of(model).pictures(run, ids)


@pytest.mark.parametrize("name", NO_SIGNAL)
def test_families_without_a_tower_signal_say_so(name):
    with pytest.raises(UnsupportedModel, match=NO_SIGNAL[name]):
        family_of(model_of(name)).tower_attention(0)


def test_a_resampler_has_no_map_even_where_counts_fit():
    """Aria's 36 patches and 9 queries look like 2x2 pooling; they are not."""
    model = model_of("aria")
    run = TowerRun("image", {"pixel_values": torch.zeros(1, 3, 24, 24)}, counts=[36])
    assert (family_of(model).places(run)[0].grid == -1).all()


def test_an_unknown_family_is_taken_only_where_inspection_is_sure():
    """One token a patch is sure; blocks of patches, or more entries than prompts, are not."""
    same, blocks = model_of("llava"), model_of("gemma3")
    for model in (same, blocks):
        model.config.model_type = "unheard_of"
    run, _ = run_of(same, inputs(same, "image"))
    assert all((place.grid >= 0).all() for place in family_of(same).places(run))
    prompt = zoo.prompt(blocks, pictures=2)
    run, _ = run_of(blocks, vision_of(prompt))
    assert all((place.grid == -1).all() for place in family_of(blocks).places(run))
    run.captured[TowerKeys()] = [torch.zeros(2, 36, 4)]
    with pytest.raises(UnsupportedModel, match="which patches"):
        family_of(blocks).align(run, TowerKeys())
    with pytest.raises(UnsupportedModel, match="register"):
        family_of(blocks).pictures(run, prompt["input_ids"])
    run.counts = run.counts[:1]
    assert family_of(blocks).pictures(run, prompt["input_ids"]) == [1]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_parts(name):
    """Every part is the module that runs: attention of both stacks calls the attention interface."""
    model = model_of(name)
    family = family_of(model)
    assert family.base is model.base_model and len(family.layers) == 4
    assert family.hybrid == (name == "qwen3_5")
    for i in range(4):
        if family.hybrid and i % 2 == 0:
            with pytest.raises(UnsupportedModel, match="recurrent"):
                family.decoder_attention(i)
        else:
            assert family.decoder_attention(i) in set(family.layers[i].children())
    if family.tower_layers:
        assert family.tower_attention(-1) is family.tower_attention(family.tower_layers - 1)
        with pytest.raises(UnsupportedModel, match="no layer 99"):
            family.tower_attention(99)


def test_videos_have_a_tower_of_their_own():
    model = model_of("video_llava")
    family = family_of(model)
    assert family.tower_attention(0) in set(tower_of(family.base, ("image_tower",)).modules())
    assert family.tower_attention(0, "video") in set(tower_of(family.base, ("video_tower",)).modules())


def test_deepstack_is_read_between_layers():
    family = family_of(model_of("qwen3_vl"))
    assert family.reads_between({"deepstack_visual_embeds": [torch.zeros(1)] * 3}) == 3
    assert family.reads_between({"deepstack_visual_embeds": None}) == 0
    assert family.reads_between({}) == 0


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "mistral3", "llava"])
def test_features_that_came_without_their_pixels(name):
    """Only lengths are known: the place is unknown, or, where rows and newlines hang on it, the family says so."""
    model = model_of(name)
    family, run = family_of(model), TowerRun("image", {}, counts=[36])
    if name == "llava":
        assert (family.places(run)[0].grid == -1).all()
    else:
        with pytest.raises(UnsupportedModel, match="pass pictures as pixels"):
            family.places(run)


@pytest.mark.parametrize("name", zoo.UNSUPPORTED)
def test_unsupported_families_name_what_works(name):
    with pytest.raises(UnsupportedModel, match="LLaVA"):
        family_of(zoo.build(name))


@pytest.mark.parametrize("kind", ["text", "clip", "plain"])
def test_models_without_pictures_in_the_prompt_are_refused(kind):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "text":
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **small))
    elif kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=small, vision_config=small))
    else:
        model = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModel, match="vision-language"):
        family_of(model)


def test_wrapped_models():
    """``torch.compile``'s wrapper is looked through; the family keeps the model as the user holds it."""
    model = model_of("llava")
    compiled = torch.compile(model)
    assert family_of(compiled).model is compiled
    assert family_of(compiled).base is model.model


def test_peft_models():
    peft = pytest.importorskip("peft")
    model = model_of("llava")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert family_of(wrapped).layers is model.model.language_model.layers
    assert family_of(wrapped).decoder_attention(0) is model.model.language_model.layers[0].self_attn
