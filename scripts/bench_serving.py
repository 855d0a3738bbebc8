"""What serving costs at the true shapes of two models, at several shares of the vision tokens: prefill, time to first
token, decode tokens/s and peak memory, beside the ideal (the same tower, and a decoder that never had the rows).

    python scripts/bench_serving.py                        # LLaVA-1.5-7B and Qwen2.5-VL-7B, bf16, needs a GPU
    python scripts/bench_serving.py --shapes tiny --batches 1,2     # does the script run? (CPU, seconds)

Weights are random: speed does not depend on them. Ours and the ideal take turns; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import nullcontext

import torch
from bench_prefill import timed
from tqdm import tqdm

import vtc

TEXT, NEW = 40, 32  # prompt's text tokens, tokens decoded
CLIP = dict(model_type="clip_vision_model", patch_size=14)
SHAPES = {
    "llava-1.5-7b": dict(
        kind="Llava",
        vision=dict(CLIP, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
        text=dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
        image=336,
    ),
    "qwen2.5-vl-7b": dict(
        kind="Qwen2_5_VL",
        vision=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584),
        text=dict(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        ),
        image=1008,  # 36 x 36 tokens
    ),
    "tiny": dict(
        kind="Llava",
        vision=dict(CLIP, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2),
        text=dict(hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4),
        image=112,
    ),
}
IMAGE = 3


def build(shape: str, device: str, dtype: torch.dtype):
    """A model of random weights, on the device from the start."""
    import transformers

    given = SHAPES[shape]
    kind, text = given["kind"], dict(given["text"], vocab_size=32064, max_position_embeddings=32768)
    if kind == "Llava":
        text["model_type"], tokens = "llama", (given["image"] // 14) ** 2
        vision = dict(given["vision"], image_size=given["image"])
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=tokens
        )
    else:
        text["rope_parameters"] = dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24])
        config = transformers.Qwen2_5_VLConfig(
            vision_config=given["vision"], text_config=text, image_token_id=IMAGE, video_token_id=4
        )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def inputs(model, shape: str, batch: int) -> dict:
    side, device = SHAPES[shape]["image"], model.device
    if SHAPES[shape]["kind"] == "Llava":
        tokens = (side // 14) ** 2
        vision = dict(pixel_values=torch.randn(batch, 3, side, side, device=device, dtype=model.dtype))
    else:
        grid = side // 14
        tokens = (grid // 2) ** 2
        pixels = torch.randn(batch * grid * grid, 3 * 2 * 14 * 14, device=device, dtype=model.dtype)
        vision = dict(pixel_values=pixels, image_grid_thw=torch.tensor([[1, grid, grid]] * batch, device=device))
    ids = torch.full((batch, TEXT + tokens), 5)
    ids[:, 8 : 8 + tokens] = IMAGE
    ids = ids.to(device)
    prompt = dict(input_ids=ids, attention_mask=torch.ones_like(ids), **vision)
    if SHAPES[shape]["kind"] != "Llava":
        prompt["mm_token_type_ids"] = (ids == IMAGE).int()
    return prompt


def decode(model, cache, token: torch.Tensor) -> None:
    """``NEW`` tokens, one at a time, on a cache."""
    for _ in range(NEW):
        token = model(input_ids=token, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)


@torch.inference_mode()
def measure(model, prompt: dict, share: float, method: str, repeats: int) -> dict:
    """One row of the table. ``share`` 1.0: unpatched."""
    batch, length = prompt["input_ids"].shape
    tokens = int((prompt["input_ids"][0] == IMAGE).sum())
    rows = length - tokens + (tokens if share == 1.0 else max(1, int(share * tokens)))
    text, width = model.model.language_model, model.config.text_config.hidden_size
    short = torch.randn(batch, rows, width, device=model.device, dtype=model.dtype)
    pictures = {k: v for k, v in prompt.items() if k in ("pixel_values", "image_grid_thw")}
    kept: dict[str, object] = {}

    def prefill() -> None:
        kept["out"] = model(**prompt, logits_to_keep=1, use_cache=True)

    def ideal() -> None:
        model.model.get_image_features(**pictures)
        kept["ideal"] = text(inputs_embeds=short, use_cache=True)

    def decoding() -> None:
        decode(model, kept["out"].past_key_values, prompt["input_ids"][:, -1:])

    def ideal_decoding() -> None:
        decode(model, kept["ideal"].past_key_values, prompt["input_ids"][:, -1:])

    _reset()
    ours: dict[str, list[float]] = {"prefill": [], "decode": []}
    best: dict[str, list[float]] = {"prefill": [], "decode": []}
    peak = 0.0
    for repeat in range(-1, repeats):  # the first round warms up
        with _patch(model, method, share):
            times = timed({"prefill": prefill, "decode": decoding}, 1, warm_up=0)
        peak = max(peak, torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0)
        kept.clear()
        ideals = timed({"prefill": ideal, "decode": ideal_decoding}, 1, warm_up=0)
        kept.clear()
        for kind in ours if repeat >= 0 else ():
            ours[kind] += times[kind]
            best[kind] += ideals[kind]
        _reset()
    ratio = {kind: [i / o for i, o in zip(best[kind], ours[kind], strict=True)] for kind in ours}
    return {
        "batch": batch,
        "share": share,
        "rows": rows,
        "prefill_ms": statistics.median(ours["prefill"]),
        "decode_tokens_per_s": 1000 * batch * NEW / statistics.median(ours["decode"]),
        "peak_mib": peak or None,
        "prefill_of_ideal": statistics.median(ratio["prefill"]),
        "decode_of_ideal": statistics.median(ratio["decode"]),
        "prefill_of_ideal_range": [min(ratio["prefill"]), max(ratio["prefill"])],
    }


def _patch(model, method: str, share: float):
    """The patch of that share (1.0: none)."""
    name, _, shared = method.partition("+")
    return nullcontext() if share == 1.0 else vtc.patched(model, name, budget=share, share=bool(shared))


def _reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


HEADER = (
    "| model | batch | vision tokens | prefill = time to first token, ms | of ideal (range) | decode tokens/s "
    "| of ideal | peak MiB |\n|---|---|---|---|---|---|---|---|"
)


def line(shape: str, row: dict) -> str:
    if "failed" in row:
        return f"| {shape} | {row['batch']} | {row['share']:.0%} | {row['failed']} | | | | |"
    low, high = row["prefill_of_ideal_range"]
    peak = "–" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
    return (
        f"| {shape} | {row['batch']} | {row['share']:.0%} | {row['prefill_ms']:.1f} | {row['prefill_of_ideal']:.2f} "
        f"({low:.2f}–{high:.2f}) | {row['decode_tokens_per_s']:.0f} | {row['decode_of_ideal']:.2f} | {peak} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llava-1.5-7b,qwen2.5-vl-7b", help=", ".join(SHAPES))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--shares", default="1.0,0.33,0.22,0.11", help="of the vision tokens; 1.0 = unpatched")
    parser.add_argument("--method", default="divprune+share")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="write the rows as JSON lines")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and args.shapes != "tiny":
        sys.exit("bench_serving.py needs a GPU for models of this size; --shapes tiny runs on a CPU")
    print(f"{torch.cuda.get_device_name() if cuda else 'CPU'}, torch {torch.__version__}, {args.method}, {NEW} tokens")
    rows = []
    for shape in args.shapes.split(","):
        model = build(shape, "cuda" if cuda else "cpu", torch.bfloat16 if cuda else torch.float32)
        cells = [(int(b), float(s)) for b in args.batches.split(",") for s in args.shares.split(",")]
        for batch, share in tqdm(cells, desc=shape, unit="row"):
            try:
                row = measure(model, inputs(model, shape, batch), share, args.method, args.repeats)
            except torch.OutOfMemoryError:
                row = {"batch": batch, "share": share, "failed": "out of memory"}
            rows.append((shape, row))
            _reset()
        del model
    print("\n" + HEADER)
    print("\n".join(line(*row) for row in rows))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"shape": shape, **row}) + "\n" for shape, row in rows)


if __name__ == "__main__":
    main()
