"""Stage 1: the vision tower alone, on labels per patch and, through its CLS token or mean, labels per picture."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from vtc.eval.scenes.train.labels import DECOY, KINDS
from vtc.eval.scenes.train.model import Architecture, TowerHeads, autocast
from vtc.eval.scenes.train.optimise import Clock, Optimisers, rate_factor, save
from vtc.eval.scenes.train.pictures import Pictures

BATCH = 32
HOLD = 0.45
KIND_WEIGHTS = torch.ones(len(KINDS))
KIND_WEIGHTS[0] = KIND_WEIGHTS[DECOY] = 0.2
RARE = torch.tensor(3.0)
"""Weight of the positive labels, which are few."""


def shuffled(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of ascending indices, every index once a round."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield np.sort(order[start : start + batch])


def _decoy_loss(features: Tensor, kind: Tensor) -> Tensor:
    """Decoys are to have a larger norm than objects: so a large norm tells nothing about use."""
    norm = features.norm(dim=-1)
    objects = norm[(kind > 0) & (kind != DECOY)].detach().mean()
    return F.relu(1.5 - norm[kind == DECOY] / objects).mean()


def _losses(
    heads: TowerHeads, patches: Tensor, pictures: tuple[Tensor, ...], target: dict[str, Tensor], placed: bool
) -> dict[str, Tensor]:
    """One term for each kind of label; a second state of the whole picture counts half."""
    kind, color = target["kind"].long(), target["color"].long()
    item, present = color >= 0, target["present"].float()
    middle = heads.middle(patches)[..., 0]
    return {
        "kind": 1.5 * F.cross_entropy(heads.kind(patches).flatten(0, 1), kind.flatten(), weight=KIND_WEIGHTS),
        "color": F.cross_entropy(heads.color(patches[item]), color[item]),
        "middle": F.binary_cross_entropy_with_logits(middle, target["middle"].float(), pos_weight=RARE),
        "place": 2 * placed * (heads.place(patches)[item] - target["place"].float()[item]).abs().mean(),
        "present": sum(
            F.binary_cross_entropy_with_logits(heads.present(state.float()), present, pos_weight=RARE) / 2**n
            for n, state in enumerate(pictures)
        ),
        "decoy": 0.2 * _decoy_loss(patches, kind),
    }


def _right(heads: TowerHeads, patches: Tensor, kind: Tensor) -> str:
    """Share of patches whose kind is recognised: shapes, digits, words."""
    with torch.no_grad():
        hit = heads.kind(patches).argmax(-1) == kind
    groups = {"shape": (1, 6), "digit": (7, 16), "word": (17, 26)}
    return " ".join(f"{n} {hit[(kind >= a) & (kind <= b)].float().mean():.3f}" for n, (a, b) in groups.items())


def train_tower(
    kind: Architecture, model: PreTrainedModel, pictures: Pictures, minutes: float, path: Path, resume: bool
) -> None:
    """Trains the tower in place for so many minutes; `path` holds the state between runs."""
    heads, step, spent, tower = TowerHeads(), 0, 0.0, kind.tower(model)
    optimisers = Optimisers([tower], [heads])
    if resume and path.exists():
        state = torch.load(path, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimisers.restore(state["optimisers"])
        step, spent = state["step"], state["spent"]
    clock, batches, saved = Clock(minutes, spent), shuffled(len(pictures), BATCH, seed=step), spent

    def keep() -> None:
        state = {"tower": tower.state_dict(), "heads": heads.state_dict(), "optimisers": optimisers.state()}
        save(path, state | {"step": step, "spent": clock.spent})

    while clock.fraction < 1:
        index = next(batches)
        target = {n: torch.from_numpy(v[index]) for n, v in vars(pictures.labels).items()}
        with autocast():
            patches, whole = kind.described(model, torch.from_numpy(pictures.pixels[index]))
        losses = _losses(heads, patches.float(), whole, target, kind.placed)
        torch.stack(list(losses.values())).sum().backward()
        optimisers.step(rate_factor(step, clock.fraction, HOLD))
        step += 1
        if step % 100 == 0 or step in (5, 20):
            terms = " ".join(f"{n} {v.item():.3f}" for n, v in losses.items())
            print(f"tower step {step} {clock.spent:.0f}s {terms} | {_right(heads, patches.float(), target['kind'])}")
        if clock.spent > saved + 180:
            keep()
            saved = clock.spent
    if spent < clock.budget:
        keep()
    print(f"tower done: {step} steps, {clock.spent:.0f}s")
