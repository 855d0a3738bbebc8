"""A resampler: latents that stand at chosen tokens read the whole picture, and add what they find to their values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

HEAD = 32  # channels of an attention head
TURNS = (4, 6, 6)  # pairs of channels that turn with t, y, x
BASE = 100.0  # the slowest pair of an axis turns by about one radian in this many patches
REACH = (0.5, 4.0)  # of the narrowest and the widest head at the start, in distances between latents


class Resampler(nn.Module):
    """``depth`` blocks of cross-attention and feed-forward at ``width`` channels, for values of ``channels``.

    Latent k, the k-th token chosen, starts from its token's value and ``latents[k]``. The output is the value plus a
    projection, in units of the value's own size, that starts at zero: untrained, nothing changes. Positions are rotary
    over (t, y, x) and relative, so there is no largest picture.
    """

    def __init__(self, channels: int, latents: int, depth: int, width: int):
        super().__init__()
        self.read_tokens = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.read_values = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.latents = nn.Parameter(0.02 * torch.randn(latents, width))
        self.crowd = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, channels)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, features: Tensor, values: Tensor, valid: Tensor, grid: Tensor, anchor: Tensor, rank: Tensor):
        """The new ``values [I, K, D]`` of slots at the tokens ``anchor [I, K]`` (-1 padded), chosen ``rank``-th.

        features ``[I, N, D]``, valid ``[I, N]``, grid ``[I, N, 3]``: all tokens of each picture.
        """
        dtype, used = self.write.weight.dtype, anchor >= 0
        at = grid.gather(1, anchor.clamp(min=0)[..., None].expand(-1, -1, 3))
        crowd = valid.sum(1) / used.sum(1).clamp(min=1)  # tokens a latent stands for
        tokens = self.read_tokens(features.where(valid[..., None], 0).to(dtype))
        start = values.where(used[..., None], 0).to(dtype)
        latents = self.read_values(start) + self.latents[rank]
        latents = latents + self.crowd * crowd.to(dtype).clamp(min=1).log()[:, None, None]
        where = Places(at, torch.cat([grid, at], dim=1), torch.cat([valid, used], dim=1), crowd)
        for block in self.blocks:
            latents = block(latents, tokens, where)
        change = rms(start) * self.write(self.norm(latents))
        return values + change.to(values.dtype)


class Places:
    """Where latents and what they read stand: ``at [I, K, 3]``, ``grid [I, M, 3]``, ``valid [I, M]``; ``crowd [I]``."""

    def __init__(self, at: Tensor, grid: Tensor, valid: Tensor, crowd: Tensor):
        self.valid = valid
        self.angles_at, self.angles = angles(at), angles(grid)
        step = (at[:, :, None] - grid[:, None]).float()  # [I, K, M, 3]
        self.far = step[..., 1:].square().sum(3) / crowd.float()[:, None, None].clamp(min=1)
        self.frames = step[..., 0].abs()


class Block(nn.Module):
    """Latents attend to [tokens; latents], nearer ones first, then a feed-forward; both add to the latents."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD
        self.norm_tokens, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        reach = torch.linspace(math.log(REACH[0]), math.log(REACH[1]), self.heads)
        self.nearness = nn.Parameter(-2 * reach - math.log(2))  # log of 1 / (2 reach^2)
        self.same_frame = nn.Parameter(torch.full((self.heads,), math.log(0.5)))

    def forward(self, latents: Tensor, tokens: Tensor, where: Places) -> Tensor:
        """``latents [I, K, width]`` after reading ``tokens [I, N, width]``."""
        own = self.norm_latents(latents)
        read = torch.cat([self.norm_tokens(tokens), own], dim=1)
        q = rotate(self._split(self.query(own)), where.angles_at)
        k, v = (self._split(x) for x in self.key_value(read).chunk(2, dim=2))
        bias = nearness_bias(where.far, where.frames, self.nearness, self.same_frame).to(q.dtype)
        # Finite, so that a picture without tokens makes no NaN, which would spoil the gradient of the others.
        bias = bias.masked_fill(~where.valid[:, None, None], torch.finfo(q.dtype).min / 2)
        found = scaled_dot_product_attention(q, rotate(k, where.angles), v, attn_mask=bias)
        latents = latents + self.mix(found.transpose(1, 2).flatten(2))
        return latents + self.feed(latents)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, HEAD)).transpose(1, 2)


def rms(x: Tensor) -> Tensor:
    """``[..., 1]``: root of the mean square of the channels, at least 1e-6."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.square().mean(dim=-1, keepdim=True).clamp(min=1e-12).sqrt().to(x.dtype)


def angles(grid: Tensor) -> Tensor:
    """``[I, M, HEAD / 2]``: by how much each pair of channels turns at the places ``grid [I, M, 3]``, in float32."""
    turned = []
    for axis, pairs in enumerate(TURNS):
        speed = BASE ** (-torch.arange(pairs, device=grid.device) / (pairs - 1))
        turned.append(grid[..., axis, None].float() * speed)
    return torch.cat(turned, dim=2)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """``x [I, H, M, 2 P]`` with each pair of channels (p, p + P) turned by ``by [I, M, P]``."""
    cos, sin = by.cos().to(x.dtype)[:, None], by.sin().to(x.dtype)[:, None]
    a, b = x.chunk(2, dim=3)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=3)


def nearness_bias(far: Tensor, frames: Tensor, nearness: Tensor, same_frame: Tensor) -> Tensor:
    """``[I, H, K, M]``: what attention loses with distance. far ``[I, K, M]``: squared patches, in squared distances
    between latents; frames ``[I, K, M]``; nearness and same_frame ``[H]``: logs of slopes."""
    return -far[:, None] * nearness.exp()[:, None, None] - frames[:, None] * same_frame.exp()[:, None, None]
