"""How close a patched prefill comes to the ideal one, interleaved in one run.

Whole = vision tower + projector + decoder; decoder = the decoder alone. *Ideal* is the same tower and decoder run on a
sequence that never had the dropped rows: what no mechanism can beat. Weights are random: speed does not depend on them.

    python scripts/bench_prefill.py                 # 12 x 1024 decoder, 576 vision tokens, float32, CPU (about 10 min)
    python scripts/bench_prefill.py --shape 7b      # LLaVA-1.5-7B's true shape, bf16, on a GPU
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

import vtc
from vtc.errors import BudgetError
from vtc.methods import registry

IMAGE, TEXT = 3, 40
SHAPES = {
    "tiny": dict(tower=(2, 64, 4), decoder=(2, 64, 4, 128), vocab=1024),  # to see that the script works
    "small": dict(tower=(6, 1024, 16), decoder=(12, 1024, 16, 2816), vocab=1024),
    "grouped": dict(tower=(6, 1024, 16), decoder=(12, 1024, 16, 2816), key_heads=4, vocab=1024),
    "7b": dict(tower=(24, 1024, 16), decoder=(32, 4096, 32, 11008), vocab=32064),
}


def build(shape: str, device: str, dtype: torch.dtype):
    """A LLaVA of random weights: CLIP-L-like tower at 336 pixels (576 tokens), Llama decoder."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    (depth, width, heads), (layers, hidden, attention, inner) = SHAPES[shape]["tower"], SHAPES[shape]["decoder"]
    config = LlavaConfig(
        vision_config=dict(
            model_type="clip_vision_model",
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=dict(
            model_type="llama",
            vocab_size=SHAPES[shape]["vocab"],
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=attention,
            num_key_value_heads=SHAPES[shape].get("key_heads", attention),
            max_position_embeddings=4096,
        ),
        image_token_index=IMAGE,
        image_seq_length=576,
    )
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlavaForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def inputs(model, batch: int) -> dict:
    ids = torch.full((batch, TEXT + 576), 5)
    ids[:, 8 : 8 + 576] = IMAGE
    device = model.device
    return dict(
        input_ids=ids.to(device),
        attention_mask=torch.ones_like(ids).to(device),
        pixel_values=torch.randn(batch, 3, 336, 336).to(device, model.dtype),
    )


class Ideal:
    """The decoder on rows that never were there. ``rows``: how many rows each layer has."""

    def __init__(self, model, rows: list[int], batch: int):
        self.text, self.rows = model.model.language_model, rows
        width = model.config.text_config.hidden_size
        self.states = torch.randn(batch, rows[0], width, device=model.device, dtype=model.dtype)

    def __call__(self) -> None:
        from transformers import DynamicCache

        states, cache = self.states, DynamicCache(config=self.text.config)
        tables = None
        for layer, rows in zip(self.text.layers, self.rows, strict=True):
            if tables is None or rows != states.shape[1]:
                states = states[:, :rows].contiguous()
                tables = self.text.rotary_emb(states, torch.arange(rows, device=states.device)[None])
            plain = type(layer).forward  # the model is patched while this runs
            states = plain(layer, states, attention_mask=None, position_embeddings=tables, past_key_values=cache)
            states = states[0] if isinstance(states, tuple) else states
        self.text.norm(states)


def timed(runs: dict[str, Callable[[], None]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Milliseconds of each run, interleaved: every repeat goes once through all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-warm_up, repeats):
        for name, run in runs.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if repeat >= 0:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()
def compare(model, prompt: dict, method: str, budget: int, share: bool, repeats: int) -> dict:
    """One row of the table; only ``least`` where the method cannot reach the budget."""
    name, options = method + ("+share" if share else ""), {"share": True} if share else {}

    def whole() -> None:
        model(**prompt, logits_to_keep=1, use_cache=True)

    with vtc.patched(model, method, budget=budget, **options):
        try:
            whole()
        except BudgetError as error:
            return {"method": name, "budget": budget, "least": error.least}
        report = vtc.report(model)
        decoder = timed(decoder_runs(model, prompt, report.rows_by_layer), repeats)
        selection = vtc.report(model).selection_ms
    wholes: dict[str, list[float]] = {"patched": [], "unpatched": []}
    for _ in range(repeats):
        wholes["unpatched"] += timed({"run": whole}, 1, warm_up=0)["run"]
        with vtc.patched(model, method, budget=budget, **options):
            wholes["patched"] += timed({"run": whole}, 1, warm_up=0)["run"]
    ratios = [ours / ideal for ours, ideal in zip(decoder["patched"], decoder["ideal"], strict=True)]
    return {
        "method": name,
        "budget": budget,
        "average_tokens": report.average_tokens,
        **{f"whole_{kind}_ms": statistics.median(times) for kind, times in wholes.items()},
        **{f"decoder_{kind}_ms": statistics.median(times) for kind, times in decoder.items()},
        "over_ideal": statistics.median(ratios),
        "over_ideal_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "selection_ms": selection,
        "kv_exact": report.kv_bytes == expected_bytes(model, prompt, report.rows_by_layer),
    }


def decoder_runs(model, prompt: dict, rows: list[int]) -> dict[str, Callable[[], None]]:
    """The decoder as patched (features ready-made, selection inside), ideal, and with nothing dropped."""
    batch = prompt["input_ids"].shape[0]
    features = model.model.get_image_features(prompt["pixel_values"], return_dict=True)
    ready = {name: value for name, value in prompt.items() if name != "pixel_values"}

    def patched() -> None:
        model.model(**ready, mm_encoder_outputs={"image": features}, use_cache=True)

    return {
        "patched": patched,
        "ideal": Ideal(model, rows, batch),
        "full": Ideal(model, [TEXT + 576] * len(rows), batch),
    }


def expected_bytes(model, prompt: dict, rows: list[int]) -> int:
    """Keys and values of exactly the kept rows."""
    config = model.config.text_config
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    return prompt["input_ids"].shape[0] * sum(rows) * 2 * width * model.dtype.itemsize


HEADER = (
    "| method | tokens | whole: unpatched → patched ms | decoder: full / patched / ideal ms "
    "| patched ÷ ideal (quartiles) | selection ms | KV exact |\n|---|---|---|---|---|---|---|"
)


def line(row: dict) -> str:
    if "least" in row:
        return f"| {row['method']} | {row['budget']} | least {row['least']} | | | | |"
    low, high = row["over_ideal_quartiles"]
    cells = [
        row["method"],
        str(row["budget"]),
        f"{row['whole_unpatched_ms']:.0f} → {row['whole_patched_ms']:.0f}",
        f"{row['decoder_full_ms']:.0f} / {row['decoder_patched_ms']:.0f} / {row['decoder_ideal_ms']:.0f}",
        f"{row['over_ideal']:.2f} ({low:.2f}–{high:.2f})",
        f"{row['selection_ms']:.1f}",
        "yes" if row["kv_exact"] else "NO",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--methods", default=",".join([*registry, "divprune+share"]))
    parser.add_argument("--budgets", default="192,128,64")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="write the rows as JSON lines")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = build(args.shape, device, dtype)
    prompt = inputs(model, args.batch)
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device == "cuda" else threads
    print(f"{args.shape}, {name}, {dtype}, torch {torch.__version__}, batch {args.batch}, median of {args.repeats}")
    rows = []
    cells = [(m, int(b)) for m in args.methods.split(",") for b in args.budgets.split(",")]
    for spec, budget in tqdm(cells, unit="cell"):
        method, _, shared = spec.partition("+")
        rows.append(compare(model, prompt, method, budget, bool(shared), args.repeats))
    print("\n" + HEADER)
    print("\n".join(line(row) for row in rows))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
