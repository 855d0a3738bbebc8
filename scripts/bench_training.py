"""What a training step costs through a patch, relative to the unpatched one: forward, backward and AdamW, interleaved.

LLaVA's second stage: projector, decoder and what the method learns are trained, the vision tower is frozen. 576 vision
tokens and 64 of text, weights random: speed does not depend on them. On CPUs the time is the processor time of this
process, so that what else runs there counts less; on a GPU it is the clock's.

    OMP_NUM_THREADS=1 python scripts/bench_training.py      # 6 x 768 decoder, float32, one core (about 5 min)
    python scripts/bench_training.py --shape large          # 16 x 2048 decoder, bfloat16, on a GPU
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

import vtc
from vtc.methods._spelling import build as method_of

IMAGE, TOKENS, TEXT, ANSWER = 3, 576, 64, 16
SHAPES = {  # (depth, width, heads) of the tower and (..., inner) of the decoder, in proportion to LLaVA-1.5-7B
    "tiny": ((2, 64, 4), (2, 64, 4, 128), torch.float32),  # to see that the script works
    "small": ((2, 384, 6), (6, 768, 12, 2048), torch.float32),
    "large": ((8, 768, 12), (16, 2048, 16, 5504), torch.bfloat16),
}


def build(shape: str, device: str):
    """A LLaVA of random weights, its tower frozen."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    (depth, width, heads), (layers, hidden, attention, inner), dtype = SHAPES[shape]
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
    tower |= {"num_attention_heads": heads, "image_size": 336, "patch_size": 14, "model_type": "clip_vision_model"}
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "model_type": "llama"}
    text |= {"num_attention_heads": attention, "num_key_value_heads": attention, "vocab_size": 1024}
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE, image_seq_length=TOKENS)
    model = LlavaForConditionalGeneration(config).to(device, dtype).train()
    model.model.vision_tower.requires_grad_(False)
    return model


def stepping(model, batch: int) -> Callable[[], None]:
    """One training step of ``model``."""
    ids = torch.full((batch, TOKENS + TEXT), 5, device=model.device)
    ids[:, 8 : 8 + TOKENS] = IMAGE
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    pixels = torch.randn(batch, 3, 336, 336).to(model.device, model.dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        model(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None]) -> float:
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    wait()
    start = clock()
    step()
    wait()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--methods", default="divprune+share,perceiver,perceiver:width=192", help="as in vtc eval")
    parser.add_argument("--budget", type=float, default=0.25, help="share of the vision tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {"unpatched": build(given.shape, device)}
    for name in given.methods.split(","):
        models[name] = vtc.patch(build(given.shape, device), method_of(name), given.budget)
    steps = {name: stepping(model, given.batch) for name, model in models.items()}
    times: dict[tuple[str, bool], list[float]] = {(name, saved): [] for name in models for saved in (False, True)}
    for repeat in range(given.repeats + 1):
        for (name, saved), found in times.items():
            kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if saved else {}
            getattr(models[name], f"gradient_checkpointing_{'enable' if saved else 'disable'}")(**kwargs)
            taken = seconds(steps[name])
            found += [taken] if repeat else []  # the first of each warms up
    report = vtc.report(models[given.methods.split(",")[0]])
    print(f"{platform.machine()}, {device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, ", end="")
    print(f"{report.average_tokens:.0f} of {TOKENS} tokens, {given.repeats} steps each")
    print("| | checkpointing | seconds a step (median) | of the unpatched step (median, lowest – highest) |")
    print("|---|---|---|---|")
    for (name, saved), found in times.items():
        ratios = [one / whole for one, whole in zip(found, times["unpatched", saved], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
        print(f"| {name} | {'on' if saved else 'off'} | {statistics.median(found):.2f} | {spread} |")


if __name__ == "__main__":
    main()
