"""Which tower token and which pixels a language-model token depends on, by gradients: the ground truth of maps."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from tests import zoo
from vtc.models import family_of
from vtc.models.base import Family, TowerRun
from vtc.models.inspection import attention_layers, tower_of

OUTPUTS = ("out_proj", "proj", "o_proj", "projection_layer", "fc_out")  # names of attention's output projection


def vision_of(prompt: dict) -> dict:
    """The processor's part of a prompt, without what belongs to its text."""
    text = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}
    return {key: value for key, value in prompt.items() if key not in text}


def run_of(model: nn.Module, vision: dict, modality: str = "image") -> tuple[TowerRun, Tensor]:
    """The run of ``vision`` as the engine would record it, and its features ``[sum(counts), D]``."""
    family = family_of(model)
    call = family.base.get_image_features if modality == "image" else family.base.get_video_features
    pixels, others = zoo.pixels_first(vision)
    output = call(pixels, **others, return_dict=True)
    bound = dict(inspect.signature(call).bind(pixels, **others).arguments)
    run = TowerRun(modality, {**bound, **bound.pop("kwargs", {})}, counts=family.entries(output))
    features = output.pooler_output
    if isinstance(features, (list, tuple)):
        features = torch.cat([entry.flatten(0, -2) for entry in features])
    return run, features.flatten(0, -2)


def separate_tokens(family: Family, modality: str = "image") -> None:
    """Zero what attention adds in the tower, so that its tokens do not mix. Changes the model."""
    with torch.no_grad():
        for module in tower_of(family.base, family.towers[modality]).modules():
            if "attention" in type(module).__name__.lower():
                for name, child in module.named_children():
                    if name in OUTPUTS:
                        for weight in child.parameters():
                            weight.zero_()


def depends(features: Tensor, inputs: Tensor) -> Tensor:
    """``[n, *inputs.shape]`` bool: whether each row of ``features [n, D]`` depends on each element of ``inputs``."""
    mix = torch.linspace(1, 2, features.shape[1], dtype=features.dtype).sin()
    rows = []
    for value in features @ mix:
        (slope,) = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(inputs, dtype=torch.bool) if slope is None else slope != 0)
    return torch.stack(rows)


def token_map(model: nn.Module, vision: dict, modality: str = "image") -> tuple[TowerRun, Tensor, tuple[int, ...]]:
    """The run, ``[n, tower tokens]`` bool (which tower token each language-model token depends on), and the shape of
    the tower's sequence: ``(T, n)``, or ``(1, N)`` where pictures are packed."""
    family = family_of(model)
    separate_tokens(family, modality)
    seen: list[Tensor] = []

    def watch(_, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        seen.append(states.detach().requires_grad_())
        return ((seen[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": seen[0]})

    handle = first_layer(family, modality).register_forward_pre_hook(watch, with_kwargs=True)
    run, features = run_of(model, vision, modality)
    handle.remove()
    shape = (1, *seen[0].shape[:-1])[-2:]
    return run, depends(features, seen[0]).any(-1).flatten(1), shape


def first_layer(family: Family, modality: str) -> nn.Module:
    """The tower's first layer, attention and all."""
    tower = tower_of(family.base, family.towers[modality])
    attention = attention_layers(tower)[0]
    name = next(name for name, module in tower.named_modules() if module is attention)
    return tower.get_submodule(name.rsplit(".", 1)[0])


def pixel_places(model: nn.Module, vision: dict, modality: str = "image") -> tuple[TowerRun, Tensor]:
    """The run and ``[n, 3]``: the centre (t, y, x) of the pixels each language-model token depends on; NaN: none."""
    family = family_of(model)
    separate_tokens(family, modality)
    key = next(key for key in vision if key.startswith("pixel_values"))
    pixels = vision[key].detach().requires_grad_()
    run, features = run_of(model, {**vision, key: pixels}, modality)
    where = pixel_coordinates(zoo.kind_of(model), vision, pixels.shape).flatten(0, -2)
    used = depends(features, pixels).flatten(1).to(where.dtype)
    return run, used @ where / used.sum(1, keepdim=True)


def pixel_coordinates(kind: str, vision: dict, shape: torch.Size) -> Tensor:
    """``[*shape, 3]``: (t, y, x) of every pixel in its picture, by the definition of each family's input."""
    if kind in zoo.QWEN:
        grids = vision.get("image_grid_thw", vision.get("video_grid_thw"))
        patches = torch.cat([unit_order(*grid) for grid in grids.tolist()])
        return patches[:, None].expand(*shape, 3).double()
    height, width = shape[-2:]
    plane = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).double()
    plane = plane.view(height, width, 3).expand(*shape, 3).clone()
    if kind in zoo.ANYRES and "image_sizes" in vision:
        for picture, size in zip(plane, vision["image_sizes"].tolist(), strict=True):
            columns = 2  # both sizes in the zoo are two tiles wide: 48x40 on 48x48, 20x44 on 24x48
            for tile in range(1, 1 + (4 if size[0] > 24 else 2)):
                row, column = divmod(tile - 1, columns)
                picture[tile] += torch.tensor([1.0, row * height, column * width], dtype=picture.dtype)
    elif "pixel_values_videos" in vision:
        plane[..., 0] += torch.arange(shape[1]).view(1, -1, 1, 1, 1)
    return plane


def unit_order(frames: int, height: int, width: int) -> Tensor:
    """``[frames * height * width, 3]``: Qwen's order of patches: (t, row of units, column of units, row, column)."""
    order = torch.cartesian_prod(*(torch.arange(n) for n in (frames, height // 2, width // 2, 2, 2)))
    t, unit_row, unit_column, row, column = order.unbind(1)
    return torch.stack([t, unit_row * 2 + row, unit_column * 2 + column], dim=1)
