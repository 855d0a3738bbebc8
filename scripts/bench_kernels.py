"""How fast the kernels are beside what else computes the same, at the shapes of three models. Needs a CUDA GPU.

    python scripts/bench_kernels.py                          # everything, under 5 minutes
    python scripts/bench_kernels.py --shapes llava-next      # one model

Microseconds are medians: of plain calls, and of replays of a CUDA graph, which costs no launches. Inputs rotate through
more memory than the L2 cache holds. *floor* is the larger of operations / measured matmul speed and bytes / measured
copy speed, and the share is floor / graph time. *first* is the first call in seconds, compilation included; *MB* is
what a call allocates at most. Attention is causal; every row but "no bias" weighs keys by their sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from vtc.kernels.augmented_attention import augmented_attention
from vtc.kernels.decode_merged import decode_merged
from vtc.kernels.match import match
from vtc.kernels.merge import merge
from vtc.kernels.merged_attention import merged_attention, reference
from vtc.kernels.received_attention import received_attention


@dataclass(frozen=True)
class Shape:
    """A prompt of one picture in one layer; width is the hidden size, of which ``heads`` queries have 128 each."""

    tokens: int
    vision: int
    heads: int
    key_heads: int
    width: int


SHAPES = {
    "llava-1.5": Shape(640, 576, 32, 32, 4096),
    "llava-next": Shape(2944, 2880, 32, 32, 4096),
    "qwen2.5-vl": Shape(16512, 16384, 28, 4, 3584),
}
HEAD = 128
ROWS = 64  # query rows whose attention is asked for
SECONDS = 0.3  # of calls behind each median


@dataclass(frozen=True)
class Work:
    """What an operation must do at least."""

    flops: float
    bytes: float


@dataclass
class Row:
    shape: str
    operation: str
    name: str
    plain_us: float = float("nan")
    graph_us: float = float("nan")
    share: float = float("nan")
    first_s: float = float("nan")
    peak_mb: float = float("nan")
    note: str = ""


def spent(run: Callable[[], object]) -> float:
    """Microseconds of one run, by the GPU's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end)


def median(run: Callable[[], object]) -> float:
    """The median microseconds of a run, over about SECONDS of them."""
    once = spent(run)
    return statistics.median(spent(run) for _ in range(int(min(100, max(5, SECONDS * 1e6 / once)))))


def measure(row: Row, call: Callable[..., object], sets: list[tuple], work: Work, ceilings: Work) -> Row:
    """Fill in a row of the table: ``call`` on each set of inputs in turn."""

    def turn() -> None:
        for given in sets:
            call(*given)

    try:
        start = time.perf_counter()
        call(*sets[0])
        torch.cuda.synchronize()
        row.first_s = time.perf_counter() - start
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(*sets[0])
        row.peak_mb = (torch.cuda.max_memory_allocated() - held) / 1e6
        turn()
        row.plain_us = median(turn) / len(sets)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            turn()
        row.graph_us = median(graph.replay) / len(sets)
        row.share = 1e6 * max(work.flops / ceilings.flops, work.bytes / ceilings.bytes) / row.graph_us
    except (RuntimeError, ValueError) as error:  # out of memory, or a kernel that does not take this
        row.note = " ".join(str(error).split())[:80]
    torch.cuda.empty_cache()
    return row


def ceilings() -> Work:
    """What this GPU reaches: floating-point operations a second in a matrix product, bytes a second in a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source, target = (torch.empty(1 << 30, device="cuda", dtype=torch.uint8) for _ in range(2))
    for run in (lambda: a @ b, lambda: target.copy_(source)):
        for _ in range(3):
            run()
    return Work(2 * 8192**3 / median(lambda: a @ b) * 1e6, 2 * (1 << 30) / median(lambda: target.copy_(source)) * 1e6)


def attention_inputs(shape: Shape, rows: int, device: str = "cuda") -> tuple[Tensor, ...]:
    """q, k, v as projections give them, and the sizes' logs."""
    q = torch.randn(1, rows, shape.heads, HEAD, device=device, dtype=torch.bfloat16).transpose(1, 2)
    k, v = (
        torch.randn(1, shape.tokens, shape.key_heads, HEAD, device=device, dtype=torch.bfloat16).transpose(1, 2)
        for _ in range(2)
    )
    return q, k, v, torch.randint(1, 9, (1, shape.tokens), device=device).float().log()


def rotation(make: Callable[[], tuple[Tensor, ...]]) -> list[tuple]:
    """Sets of inputs that together exceed twice the L2 cache; at least two."""
    one = make()
    size = sum(t.numel() * t.element_size() for t in one)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [one, *(make() for _ in range(max(1, min(63, 2 * cache // size))))]


def flash(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The call with SDPA bound to its flash kernel: an error where that can not."""

    def bound(*given):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return call(*given)

    return bound


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As transformers' eager attention computes it."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return logits.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def flex(shape: Shape, device: str = "cuda") -> Callable[..., Tensor]:
    """Compiled FlexAttention: a block mask for causal, the sizes as a score_mod."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = create_block_mask(lambda b, h, i, j: i >= j, None, None, shape.tokens, shape.tokens, device=device)
    torch._dynamo.reset()  # each shape compiles anew, and not for lengths in general
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor) -> Tensor:
        def weigh(score, b, h, i, j):
            return score + log_size[b, j]

        return compiled(q, k, v, score_mod=weigh, block_mask=blocks, enable_gqa=True)

    return call


def prefill(shape: Shape, device: str = "cuda") -> dict[str, Callable[..., Tensor]]:
    """Everything that attends causally over merged tokens, by name."""
    end = torch.arange(1, shape.tokens + 1, device=device, dtype=torch.int32)[None]
    hidden = torch.ones(shape.tokens, shape.tokens, device=device, dtype=torch.bool).triu(1)

    def bias(log_size: Tensor) -> Tensor:
        return log_size.bfloat16()[:, None, None].expand(-1, 1, shape.tokens, -1).masked_fill(hidden, -torch.inf)

    mask = bias(torch.randint(1, 9, (1, shape.tokens), device=device).float().log())  # a model builds it once a forward
    grouped = shape.heads != shape.key_heads
    return {
        "merged_attention": lambda q, k, v, s: merged_attention(q, k, v, s, end)[0],
        "SDPA flash, no bias": flash(lambda q, k, v, s: sdpa(q, k, v, is_causal=True, enable_gqa=grouped)),
        "SDPA attn_mask": lambda q, k, v, s: sdpa(q, k, v, attn_mask=mask, enable_gqa=grouped),
        "augmented, flash": flash(lambda q, k, v, s: augmented_attention(q, k, v, s, is_causal=True)),
        "FlexAttention": flex(shape, device),
        "eager": lambda q, k, v, s: eager(q, k, v, mask),
    }


def with_backward(call: Callable[..., Tensor]) -> Callable[..., object]:
    """Forward and backward."""

    def both(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor):
        given = [t.detach().requires_grad_() for t in (q, k, v)]
        out = call(*given, log_size)
        return torch.autograd.grad(out, given, torch.ones_like(out))

    return both


def decoding(shape: Shape) -> dict[str, Callable[..., Tensor]]:
    """One new token over the cache."""
    grouped = shape.heads != shape.key_heads
    return {
        "decode_merged": lambda q, k, v, s: decode_merged(q, k, v, s)[0],
        "SDPA flash, no bias": flash(lambda q, k, v, s: sdpa(q, k, v, enable_gqa=grouped)),
        "SDPA attn_mask": lambda q, k, v, s: sdpa(q, k, v, attn_mask=s.bfloat16()[:, None, None], enable_gqa=grouped),
        "augmented, flash": flash(augmented_attention),
        "eager": lambda q, k, v, s: eager(q, k, v, s.bfloat16()[:, None, None]),
    }


def error(shape: Shape) -> float:
    """Relative error of merged_attention's last 64 rows against the float32 reference."""
    q, k, v, size = attention_inputs(shape, shape.tokens)
    end = torch.arange(1, shape.tokens + 1, device=q.device, dtype=torch.int32)[None]
    got = merged_attention(q, k, v, size, end)[0][:, :, -ROWS:].float()
    exact = [t.float() for t in (q[:, :, -ROWS:], k, v)]
    want, _ = reference(*exact, size, end[:, -ROWS:], HEAD**-0.5)
    return float((got - want).norm() / want.norm())


def rows_of(name: str, shape: Shape, limits: Work):
    """Every row of one model's table."""
    n, state = shape.tokens, 2 * HEAD  # bytes of a row of one head in bfloat16
    causal = Work(2 * n * n * shape.heads * HEAD, 2 * n * (shape.heads + shape.key_heads) * state)
    sets = rotation(lambda: attention_inputs(shape, n))
    for label, call in prefill(shape).items():
        yield measure(Row(name, "prefill", label), call, sets, causal, limits)
    twice = Work(3.5 * causal.flops, 3 * causal.bytes)
    for label, call in prefill(shape).items():
        yield measure(Row(name, "prefill+backward", label), with_backward(call), sets, twice, limits)
    keys = Work(4 * n * shape.heads * HEAD, 2 * n * shape.key_heads * state)
    sets = rotation(lambda: attention_inputs(shape, 1))
    for label, call in decoding(shape).items():
        yield measure(Row(name, "decode", label), call, sets, keys, limits)
    few = Work(4 * ROWS * n * shape.heads * HEAD, n * shape.key_heads * state)
    sets = rotation(lambda: attention_inputs(shape, ROWS))
    asked = Row(name, f"scores of {ROWS} rows", "received_attention")
    yield measure(asked, lambda q, k, v, s: received_attention(q, k, log_size=s), sets, few, limits)
    yield from token_rows(name, shape, limits)


def token_rows(name: str, shape: Shape, limits: Work):
    """Matching and merging of half the vision tokens with the other half."""
    half, device = shape.vision // 2, "cuda"
    states = partial(torch.randn, 1, device=device, dtype=torch.bfloat16)
    allowed = torch.ones(1, half, device=device, dtype=torch.bool)
    pairs = rotation(lambda: (states(half, HEAD), states(half, HEAD)))
    compare = Work(2 * half * half * HEAD, 2 * half * 2 * HEAD)
    yield measure(Row(name, "match", "match"), lambda a, b: match(a, b, allowed), pairs, compare, limits)
    slot = torch.randint(0, half, (1, shape.vision), device=device)
    size = torch.ones(1, shape.vision, device=device)
    move = Work(0, 2 * shape.width * (shape.vision + half))
    sets = rotation(lambda: (states(shape.vision, shape.width),))
    yield measure(Row(name, "merge", "merge"), lambda x: merge(x, slot, None, size, half), sets, move, limits)


def line(row: Row) -> str:
    numbers = f"{row.plain_us:.1f} | {row.graph_us:.1f} | {row.share:.0%} | {row.first_s:.1f} | {row.peak_mb:.1f}"
    return f"| {row.shape} | {row.operation} | {row.name} | {numbers} | {row.note} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU that torch can use: nothing is measured", file=sys.stderr)
        return 2
    limits = ceilings()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, batch 1")
    print(f"matmul {limits.flops / 1e12:.0f} TFLOP/s, copy {limits.bytes / 1e12:.2f} TB/s\n")
    worst = max(error(SHAPES[name]) for name in args.shapes)
    print(f"merged_attention against float32: relative error {worst:.1e}\n")
    print("| shape | operation | by | plain µs | graph µs | floor share | first s | MB | note |\n" + "|---" * 9 + "|")
    for name in args.shapes:
        for row in rows_of(name, SHAPES[name], limits):
            print(line(row), flush=True)
    return 0 if worst < 1e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
