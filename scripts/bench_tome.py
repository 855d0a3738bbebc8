"""What merging tokens in a plain ViT gains, interleaved in one run: unpatched, ToMe as the paper writes it (softmax
written out, sort and scatter), and vtc's. Weights are random: speed does not depend on them.

    python scripts/bench_tome.py                                     # vit_small, batch 8, r = 13, float32, CPU
    python scripts/bench_tome.py --model vit_base_patch16_224 --batch 64 --dtype bfloat16 --device cuda
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

import vtc


@torch.no_grad()
def plain(model, pictures: Tensor, rates: list[int]) -> Tensor:
    """The definition, batched: logits of a ViT with a class token."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(pictures)))
    size = torch.ones_like(x[..., :1])
    for block, r in zip(model.blocks, rates, strict=True):
        layer, y = block.attn, block.norm1(x)
        q, k, v = layer.qkv(y).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = layer.scale * q @ k.mT + size.log()[:, None, None, :, 0]
        x = x + layer.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        x, size = merge(x, size, k.mean(dim=1), min(r, (x.shape[1] - 1) // 2))
        x = x + block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x))


def merge(x: Tensor, size: Tensor, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """One round: the ``r`` best links of even tokens (never the first) to odd ones."""
    if r <= 0:
        return x, size
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].mT
    scores[:, 0] = -torch.inf
    best, to = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    leave, stay = order[:, :r], order[:, r:].sort(dim=1).values
    to = to[..., None].gather(1, leave)

    def reduce(t: Tensor) -> Tensor:
        evens, odds, wide = t[:, ::2], t[:, 1::2], t.shape[-1]
        gone = evens.gather(1, leave.expand(-1, -1, wide))
        odds = odds.scatter_reduce(1, to.expand(-1, -1, wide), gone, reduce="sum")
        return torch.cat([evens.gather(1, stay.expand(-1, -1, wide)), odds], dim=1)

    total = reduce(size)
    return reduce(x * size) / total, total


def milliseconds(call: Callable[[], Tensor], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--r", type=int, default=13)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    given = parser.parse_args()
    import timm

    torch.manual_seed(0)
    kind = {"device": given.device, "dtype": getattr(torch, given.dtype)}
    stock, patched = (timm.create_model(given.model).to(**kind).eval() for _ in range(2))
    patched.load_state_dict(stock.state_dict())
    vtc.patch(patched, "tome", r=given.r)
    pictures = torch.randn(given.batch, 3, *stock.patch_embed.img_size, **kind)
    runs: dict[str, Callable[[], Tensor]] = {
        "unpatched": lambda: stock(pictures),
        "plain": lambda: plain(stock, pictures, [given.r] * len(stock.blocks)),
        "vtc": lambda: patched(pictures),
    }
    apart = float((runs["plain"]() - runs["vtc"]()).abs().max())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(given.repeats), desc="repeats"):
        for name, call in runs.items():
            times[name].append(milliseconds(call, given.device))
    middle = {name: statistics.median(spent) for name, spent in times.items()}
    result = {
        "settings": vars(given),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "milliseconds": {name: round(spent, 2) for name, spent in middle.items()},
        "vtc_over_plain": round(ratio(times["vtc"], times["plain"]), 3),
        "vtc_over_unpatched": round(ratio(times["vtc"], times["unpatched"]), 3),
        "plain_over_unpatched": round(ratio(times["plain"], times["unpatched"]), 3),
        "largest_difference_from_plain": apart,
    }
    print(json.dumps(result, indent=2))


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of neighbours in time: a machine that slows down slows both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
