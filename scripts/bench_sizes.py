"""How stock attention takes the sizes of merged tokens cheaper: as a mask, or as two more columns of q and k.

    OMP_NUM_THREADS=2 python scripts/bench_sizes.py        # about a minute on a CPU

One layer's attention at prefill, heads of 128, causal; the mask is made once a forward and is timed apart. Rounds are
interleaved; ratios are taken within a round. ``vtc.attend.LONG`` is set from this.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from bench_prefill import timed
from torch.nn.functional import scaled_dot_product_attention

from vtc.kernels.augmented_attention import augmented_attention


def measure(rows: int, heads: int, key_heads: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way, by round."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, rows, 128) for n in (heads, key_heads, key_heads))
    sizes = torch.rand(1, rows) * 3
    seen = torch.ones(rows, rows, dtype=torch.bool).tril()
    made: dict[str, torch.Tensor] = {}

    def make() -> None:
        mask = torch.zeros(1, 1, rows, rows).masked_fill(~seen, torch.finfo(torch.float32).min)
        made["mask"] = mask + sizes[:, None, None]

    grouped = heads != key_heads
    ways = {
        "make": make,
        "plain": lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped),
        "mask": lambda: scaled_dot_product_attention(q, k, v, attn_mask=made["mask"], enable_gqa=grouped),
        "columns": lambda: augmented_attention(q, k, v, sizes, is_causal=True),
    }
    return timed(ways, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="128,256,640,1024,2048,2944")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, float32, {torch.get_num_threads()} threads, median of {args.repeats}\n")
    print("| rows | heads | no sizes ms | mask ÷ none | columns ÷ none | columns ÷ mask (range) | making the mask ms |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for rows in (int(n) for n in args.rows.split(",")):
        for heads, key_heads in ((16, 16), (28, 4)):
            times = measure(rows, heads, key_heads, args.repeats)
            median = {way: statistics.median(values) for way, values in times.items()}
            ratio = [c / m for c, m in zip(times["columns"], times["mask"], strict=True)]
            print(
                f"| {rows} | {heads}/{key_heads} | {median['plain']:.2f} | {median['mask'] / median['plain']:.2f} "
                f"| {median['columns'] / median['plain']:.2f} | {statistics.median(ratio):.2f} "
                f"({min(ratio):.2f}–{max(ratio):.2f}) | {median['make']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
