"""Tiny random models of every family, and prompts for them: the stage of the contract tests.

``build(name)`` makes a model, ``prompt(model, pictures=2)`` one prompt for it (batch 1) with placeholders counted by
the model itself, ``video_prompt(model)`` one with a video, and ``batch([...])`` pads prompts into one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.versions import skip_before
from tests.zoo_families import BUILDERS, END, IMAGE, START, VIDEO
from vtc.models import family_of

UNSUPPORTED = ("mllama", "blip2", "instructblip", "kosmos2")
NAMES = tuple(name for name in BUILDERS if name not in UNSUPPORTED)
FLOAT32_ONLY = frozenset({"aria", "got_ocr2"})  # transformers computes parts of them in float32
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
VIDEOS = ("llava_next_video", "llava_onevision", "video_llava", *QWEN)
ANYRES = ("llava_next", "llava_next_video", "llava_onevision")
TILES = {
    "internvl": 2,
    "idefics3": 3,
    "smolvlm": 3,
    "aya_vision": 3,
    "cohere2_vision": 2,
    "ovis2": 3,
    "perception_lm": 2,
}
SIDES = {"internvl": 32, "idefics3": 32, "smolvlm": 32, "got_ocr2": 64}  # pixels; 24 for the others
TILE, GLOBAL, BREAK = 156, 157, 158  # tokens before a tile, before the whole picture, after a row of a picture
FRAMES = 4  # of a video


def build(
    name: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 4
) -> nn.Module:
    """A model whose every token matters: random weights of a useful size, norms as they are."""
    torch.manual_seed(seed)
    return filled(BUILDERS[name](layers).to(dtype).eval(), attn, seed)


def filled(model: nn.Module, attn: str = "sdpa", seed: int = 0) -> nn.Module:
    """A model of one of the families with weights of the zoo's."""
    try:
        model.set_attn_implementation(attn)
    except ValueError:  # older transformers: towers of timm and Q-formers know eager alone
        model.set_attn_implementation({"text_config": attn})
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    generator = torch.Generator().manual_seed(seed + 7)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            _draw(key, weight, generator)
    return model


def _draw(key: str, weight: Tensor, generator: torch.Generator) -> None:
    """Fill one parameter in place."""
    noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    if weight.dim() >= 2:
        weight.copy_(noise * (0.5 if "embed" in key else 0.6 / weight.shape[-1] ** 0.5))
    elif not (key.endswith("weight") and "norm" in key.lower()):
        weight.copy_(noise * 0.02)


def kind_of(model: nn.Module) -> str:
    """The model's name in this zoo."""
    config = model.config
    pixtral = config.model_type == "llava" and config.vision_config.model_type == "pixtral"
    return "llava_pixtral" if pixtral else config.model_type


def prompt(
    model: nn.Module, pictures: int = 1, seed: int = 0, before: int = 5, between: int = 3, after: int = 6
) -> dict:
    """One prompt: ``before`` words, pictures with ``between`` words between them, ``after`` words."""
    if not pictures:
        return _finish(model, words(before + after, seed), {})
    vision = picture_inputs(model, pictures, seed)
    counts = entry_counts(model, "image", vision)
    tiles = TILES.get(kind_of(model), 1)
    spans = [counts[i : i + tiles] for i in range(0, len(counts), tiles)]
    ids = words(before, seed)
    for i, span in enumerate(spans):
        ids += picture_ids(kind_of(model), span, vision, i)
        ids += words(after if i == pictures - 1 else between, seed + 100 + i)
    return _finish(model, ids, vision)


def video_prompt(model: nn.Module, seed: int = 0, before: int = 5, after: int = 6) -> dict:
    """One prompt with one video of ``FRAMES`` frames (two temporal patches in the Qwen-VL line)."""
    vision = video_inputs(model, seed)
    counts = entry_counts(model, "video", vision)
    kind = kind_of(model)
    token = family_of(model).token_ids["video"]
    ids = words(before, seed)
    if kind in ("qwen3_vl", "qwen3_5", "glm4v"):  # one run a frame, a time stamp before each
        frames = int(vision["video_grid_thw"][0, 0])
        for frame in range(frames):
            ids += [*words(2, seed + frame), START, *[token] * (counts[0] // frames), END]
    else:
        ids += [START, *[token] * sum(counts), END]
    if kind == "glm4v":
        ids = [*ids[:before], 154, *ids[before:], 155]
    return _finish(model, ids + words(after, seed + 100), vision)


def batch(prompts: list[dict], side: str = "left") -> dict:
    """Several prompts as one padded batch."""
    width = max(p["input_ids"].shape[1] for p in prompts)
    out = {}
    by_prompt = any("pixel_attention_mask" in p for p in prompts)  # Idefics3: a row of tiles for every prompt
    for key in dict.fromkeys(key for p in prompts for key in p):
        held = [p[key] for p in prompts if key in p]
        if key in PER_TOKEN:
            pads = [(width - value.shape[1], 0) if side == "left" else (0, width - value.shape[1]) for value in held]
            held = [nn.functional.pad(value, pad) for value, pad in zip(held, pads, strict=True)]
        elif by_prompt:
            held = _same_tiles([p.get(key, held[0][:, :0]) for p in prompts])
        out[key] = torch.cat(held)
    return out


PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def _same_tiles(rows: list[Tensor]) -> list[Tensor]:
    """``[1, tiles, ...]`` rows padded with empty tiles."""
    most = max(row.shape[1] for row in rows)
    return [torch.cat([row, row.new_zeros(1, most - row.shape[1], *row.shape[2:])], dim=1) for row in rows]


def words(count: int, seed: int) -> list[int]:
    """Ordinary text tokens."""
    return torch.randint(3, 140, (count,), generator=torch.Generator().manual_seed(seed + 55)).tolist()


def noise(*shape: int, seed: int, model: nn.Module) -> Tensor:
    """Pixels."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 100)).to(model.dtype)


def picture_inputs(model: nn.Module, pictures: int, seed: int) -> dict:
    """The processor's part for ``pictures`` pictures, of two sizes in turn where the family has sizes."""
    kind, turn = kind_of(model), range(seed, seed + pictures)
    if kind in QWEN:
        grid = torch.tensor([[[1, 8, 10], [1, 6, 8]][i % 2] for i in turn])
        return {"pixel_values": noise(int(grid.prod(1).sum()), 96, seed=seed, model=model), "image_grid_thw": grid}
    if kind in ANYRES:
        sizes = torch.tensor([[[48, 40], [20, 44]][i % 2] for i in turn])
        return {"pixel_values": noise(pictures, 5, 3, 24, 24, seed=seed, model=model), "image_sizes": sizes}
    if kind in ("mistral3", "llava_pixtral"):
        sizes = torch.tensor([[[32, 24], [16, 32]][i % 2] for i in turn])
        return {"pixel_values": noise(pictures, 3, 32, 32, seed=seed, model=model), "image_sizes": sizes}
    side, tiles = SIDES.get(kind, 24), TILES.get(kind, 1)
    pixels = noise(pictures * tiles, 3, side, side, seed=seed, model=model)
    if kind in ("idefics3", "smolvlm"):
        return {"pixel_values": pixels[None], "pixel_attention_mask": torch.ones_like(pixels[None, :, 0]).bool()}
    if kind == "perception_lm":
        pixels = pixels.unflatten(0, (pictures, tiles))
    return {"pixel_values_images" if kind == "video_llava" else "pixel_values": pixels}


def video_inputs(model: nn.Module, seed: int) -> dict:
    """The processor's part for one video."""
    if kind_of(model) == "llava_onevision":
        skip_before("transformers", 5, 18, why="OneVision's newline is added outside get_video_features")
    if kind_of(model) in QWEN:
        grid = torch.tensor([[FRAMES // 2, 6, 8]])
        return {"pixel_values_videos": noise(int(grid.prod()), 96, seed=seed, model=model), "video_grid_thw": grid}
    return {"pixel_values_videos": noise(1, FRAMES, 3, 24, 24, seed=seed, model=model)}


def features(model: nn.Module, modality: str, vision: dict):
    """What the model's own ``get_image_features`` or ``get_video_features`` makes of the inputs."""
    base = family_of(model).base
    call = base.get_image_features if modality == "image" else base.get_video_features
    pixels, others = pixels_first(vision)
    return call(pixels, **others, return_dict=True)


def pixels_first(vision: dict) -> tuple[Tensor, dict]:
    """Pixels apart from the rest: they come first everywhere, under a name that changes between versions."""
    key = next(key for key in vision if key.startswith("pixel_values"))
    return vision[key], {name: value for name, value in vision.items() if name != key}


def entry_counts(model: nn.Module, modality: str, vision: dict) -> list[int]:
    """Language-model tokens of every entry."""
    with torch.no_grad():
        return family_of(model).entries(features(model, modality, vision))


def picture_ids(kind: str, counts: list[int], vision: dict, index: int) -> list[int]:
    """The placeholders of one picture as the family's processor writes them; ``counts``: of its entries."""
    parts = [[IMAGE] * count for count in counts]
    if kind in ("idefics3", "smolvlm", "aya_vision"):  # tiles, then the whole picture
        marks = [TILE] * (len(parts) - 1) + [GLOBAL]
        inner = sum(([mark, *part] for mark, part in zip(marks, parts, strict=True)), [])
    elif kind in ("cohere2_vision", "ovis2"):
        inner = sum(([*part, BREAK] for part in parts), [])
    elif kind == "mistral3":
        row = int(vision["image_sizes"][index, 1]) // 8
        inner = ([IMAGE] * row + [BREAK]) * (counts[0] // row)
    else:
        inner = sum(parts, [])
    return [START, *inner, END] if kind in (*QWEN, *TILES, "got_ocr2") and kind != "perception_lm" else inner


def _finish(model: nn.Module, ids: list[int], vision: dict) -> dict:
    """The prompt with the masks and types that its family needs."""
    kind, row = kind_of(model), torch.tensor([ids])
    out = dict(input_ids=row, attention_mask=torch.ones_like(row), **vision)
    if kind in QWEN:
        video = "pixel_values_videos" in vision
        out["mm_token_type_ids"] = torch.where((row == IMAGE) | (row == VIDEO), 2 if video else 1, 0).int()
    if kind in ("paligemma", "gemma3"):
        out["token_type_ids"] = (row == IMAGE).long()
    return out
