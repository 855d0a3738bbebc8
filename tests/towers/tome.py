"""One round of ToMe as its paper defines it, one pair of tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def round_by_loop(
    one: Tensor, keys: Tensor, members: list[list[int]], r: int, prefix: int
) -> tuple[Tensor, list[list[int]]]:
    """``one [t, D]`` and the members of its tokens after at most ``r`` of them merged by ``keys [t, d]``, in the order
    of the paper's code: class and distillation token, even ones, odd ones."""
    r = min(r, (len(one) - prefix) // 2)
    if r <= 0:
        return one, members
    cosine = torch.nn.functional.cosine_similarity
    evens, odds, links = range(0, len(one), 2), range(1, len(one), 2), []
    for a in (n for n in evens if n >= prefix):
        free = [b for b in odds if b >= prefix]
        near = [float(cosine(keys[a], keys[b], dim=0)) for b in free]
        if near:
            links.append((max(near), a, free[near.index(max(near))]))
    links.sort(key=lambda link: -link[0])
    value = {n: one[n] * len(members[n]) for n in range(len(one))}
    group = {n: list(members[n]) for n in range(len(one))}
    for _, a, b in links[:r]:
        value[b] = value[b] + value.pop(a)
        group[b] += group.pop(a)
    stay = [n for n in evens if n in group]
    if not prefix:  # without a class token the best linked come first
        rank = {a: n for n, (_, a, _) in enumerate(links)}
        stay.sort(key=lambda n: rank[n])
    order = [*range(prefix), *(n for n in stay if n >= prefix), *(n for n in odds if n >= prefix)]
    return torch.stack([value[n] / len(group[n]) for n in order]), [group[n] for n in order]
