"""What else the default could have been, simulated with masks on a testbed model: slow, plain, apart from the engine.

    python scripts/simulate_keys.py scenes --budgets 24,6  # the rule, and one change at a time
    python scripts/simulate_keys.py scenes-qwen --budgets 24 --questions 180 --only choose=2,stop=0.25+running=0
    python scripts/simulate_keys.py runs/scenes-deep  # a folder with another model that was trained on scenes

A picture's tokens are cut to ``candidates`` times the budget (diversity, with share), run up to ``stop`` of the depth,
from where on the part ``running`` of them does, and from layer ``choose`` on text sees in each layer those keys that
its question ranks first; layers before see all candidates, which the later ones pay for. ``mean=1``: one of the keys is
the mean of the candidates that are none. ``runs=most``: the whole picture runs in as many layers as before, but in
those where it changes the next token's distribution most when it does not (ShortV's layer contribution, arXiv
2504.00502, on 24 other dev prompts). In brackets: how far the next token's distribution is from the unpatched model's,
total variation, in %.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from vtc.eval import scenes
from vtc.kernels.greedy_diverse import greedy_diverse


@dataclass(frozen=True)
class Rule:
    """``rank``: the question's largest row, its last row, the sum over its rows; the largest of rows that each give the
    candidates together the same (``same``), of heads that each give their most the same (``even``), of weights without
    the sizes (``unsized``); each key head by its own largest row (``group``)."""

    candidates: float = 6.0
    stop: float = 0.125  # of the depth
    running: float = 0.33
    who: str = "cover"  # the picture goes on, or "asked": what the question looks at most where they stop
    until: float = 1.0  # of the depth: then they stop, too
    runs: str = ""  # layers, like 0+5, instead of those before ``stop``
    choose: int = 0
    rank: str = "max"
    mean: int | None = None  # None: as the engine decides
    groups: int = 1  # key heads of the model

    def __str__(self) -> str:
        said = {k: v for k, v in vars(self).items() if k != "groups" and v != getattr(Rule(), k)}
        return ",".join(f"{k}={v}" for k, v in said.items()) or "the rule"


CHANGES = ("stop=1+candidates=1", "stop=0.25+running=0", "stop=0.5+running=0", "stop=1", "stop=0.25", "running=0")
CHANGES += ("running=0.17", "running=0.5", "until=0.67", "who=asked", "candidates=3", "candidates=4", "candidates=8")
CHANGES += (
    "candidates=100",
    "stop=0.25+running=0+runs=most",
    "choose=1",
    "choose=2",
    "rank=last",
    "rank=sum",
    "rank=same",
    "rank=even",
    "rank=unsized",
)
CHANGES += ("rank=group", "mean=0", "mean=1")


class Testbed:
    """A model and its questions, their embedded prompts made once."""

    def __init__(self, name: str, questions: int):
        path = scenes.checkpoint_path(scenes.NAMES[name]) if name in scenes.NAMES else name
        self.model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False
        ).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.decoder = self.model.model.language_model
        self.groups = self.model.config.get_text_config().num_key_value_heads
        self.asked = [self.embedded(s) for s in scenes.samples("dev", questions, seed=1)]
        self.whole = [self.logits(None, 0, *one[:3]).softmax(-1) for one in self.asked]

    @torch.no_grad()
    def embedded(self, sample) -> tuple[Tensor, Tensor, Tensor, str]:
        """Embeddings ``[N, D]``, rows of the picture, positions and the answer's first word."""
        x = self.processor(images=sample.image, text=sample.prompt, return_tensors="pt")
        config, ids = self.model.config, x["input_ids"]
        rows = (ids[0] == getattr(config, "image_token_id", None)).nonzero()[:, 0]
        grid = {"image_grid_thw": x["image_grid_thw"]} if "image_grid_thw" in x else {}
        features = self.model.get_image_features(x["pixel_values"], **grid).pooler_output
        states = self.decoder.get_input_embeddings()(ids[0]).clone()
        states[rows] = torch.cat(list(features)).reshape(-1, states.shape[1])
        place = torch.arange(len(states))[None]
        if grid:
            kinds = (ids == config.image_token_id).int()
            place = self.model.model.get_rope_index(ids, mm_token_type_ids=kinds, **grid)[0]
        return states, rows, place, sample.answer.split(" ")[0]

    def cell(self, rule: Rule, budget: int) -> str:
        """Accuracy, and the distance of the next token's distribution from the whole model's, in %."""
        got = [self.logits(rule, budget, *one[:3]).softmax(-1) for one in tqdm(self.asked, leave=False)]
        apart = sum(float((a - b).abs().sum()) / 2 for a, b in zip(got, self.whole, strict=True))
        return f"{self.accuracy(got):.1f} ({100 * apart / len(got):.1f})"

    def accuracy(self, chances: list[Tensor]) -> float:
        """Of the first words that follow."""
        words = [self.processor.tokenizer.decode([int(one.argmax())]).strip() for one in chances]
        return 100 * sum(word == one[3] for word, one in zip(words, self.asked, strict=True)) / len(words)

    def contributions(self, prompts: int = 24) -> list[float]:
        """Of each layer: the divergence of the next token where the picture does not run in it alone."""
        depth, out = len(self.decoder.layers), []
        asked = [self.embedded(s)[:3] for s in scenes.samples("dev", prompts, seed=2)]
        whole = [self.logits(None, 0, *one).log_softmax(-1) for one in asked]
        for layer in range(depth):
            runs = "+".join(str(n) for n in range(depth) if n != layer)
            rule = Rule(candidates=math.inf, running=0, runs=runs)
            less = [self.logits(rule, len(one[1]), *one).log_softmax(-1) for one in asked]
            apart = [(a.exp() * (a - b)).sum() for a, b in zip(whole, less, strict=True)]
            out.append(float(sum(apart)) / prompts)
        return out

    @torch.no_grad()
    def logits(self, rule: Rule | None, budget: int, states: Tensor, rows: Tensor, place: Tensor) -> Tensor:
        depth, every = len(self.decoder.layers), len(rows)
        kept = every if rule is None else int(min(every, max(budget, rule.candidates * budget)))
        runs = range(depth if rule is None else max(1, int(rule.stop * depth + 0.5)))
        runs = [int(n) for n in rule.runs.split("+")] if rule is not None and rule.runs else runs
        states, sizes, there, vision = first_cut(states, rows, kept)
        tables = self.decoder.rotary_emb(states[None], place[..., there])
        keys = None if rule is None else max(1, (budget * depth - kept * rule.choose) // (depth - rule.choose))
        going = torch.zeros_like(vision)
        for index, layer in enumerate(self.decoder.layers):
            few = rule is not None and keys < kept and index >= rule.choose
            out, weights = one_layer(layer, states, tables, sizes, vision, keys if few else None, rule)
            if index in runs and index + 1 not in runs and rule is not None:
                going = going_on(rule, out, vision, weights)
            here = ~vision | (going if rule is not None and index < round(rule.until * depth) else False)
            states = out if index in runs else torch.where(here[:, None], out, states)
        return self.model.lm_head(self.decoder.norm(states[-1]))


def first_cut(states: Tensor, rows: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of what is left, log sizes, where it stood, and which of it is vision: diversity, with share."""
    features, count = states[rows], len(rows)
    left = torch.arange(count)
    if kept < count:
        left = greedy_diverse(features[None], kept, "maxmin", torch.ones(1, count, dtype=torch.bool))[0].sort().values
    unit = normalize(features, dim=-1)
    slot = (unit @ unit[left].T).argmax(dim=1)
    slot[left] = torch.arange(kept)
    size = torch.zeros(kept).index_add(0, slot, torch.ones(count))
    out, sizes, there = states.clone(), torch.zeros(len(states)), torch.ones(len(states), dtype=torch.bool)
    out[rows[left]] = torch.zeros(kept, states.shape[1]).index_add(0, slot, features) / size[:, None]
    sizes[rows[left]] = size.log()
    there[rows] = False
    there[rows[left]] = True
    vision = torch.zeros_like(there)
    vision[rows] = True
    return out[there], sizes[there], there.nonzero()[:, 0], vision[there]


def going_on(rule: Rule, states: Tensor, vision: Tensor, weights: Tensor) -> Tensor:
    """``[N]``: the vision rows that run on, by their states or by what text, in mean over heads, looks at."""
    every = vision.nonzero()[:, 0]
    count = min(len(every) - 1, math.ceil(rule.running * len(every)))
    if rule.who == "asked":
        order = weights[:, int(every.max()) + 1 :, every].mean(dim=0).amax(dim=0).argsort(descending=True)
    else:
        there = torch.ones(1, len(every), dtype=torch.bool)
        order = greedy_diverse(states[every][None], max(1, count), "maxmin", there)[0]
    return torch.zeros_like(vision).index_fill(0, every[order[: max(0, count)]], True)


def one_layer(layer, states, tables, sizes, vision, keys: int | None, rule: Rule | None) -> tuple[Tensor, Tensor]:
    """A decoder layer on ``states [N, D]``, of whose vision rows text sees ``keys`` (None: all), and its attention."""
    attention, x, n = layer.self_attn, layer.input_layernorm(states)[None], len(states)
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    q, k, v = (p(x).view(1, n, -1, attention.head_dim).transpose(1, 2) for p in projections)
    q, k = apply_rotary_pos_emb(q, k, *tables)
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups)[0], repeat_kv(v, groups)[0]
    logits = q[0] @ k.mT * attention.scaling + sizes
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    if keys is not None:
        logits, seen, v = chosen(q[0], k, v, logits, seen, sizes, vision, keys, rule, attention.scaling)
    weights = logits.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    states = states + attention.o_proj((weights @ v).transpose(0, 1).reshape(n, -1))
    return states + layer.mlp(layer.post_attention_layernorm(states)), weights


def chosen(q, k, v, logits, seen, sizes, vision, keys: int, rule: Rule, scale: float):
    """Logits, what sees what, and values, with those candidates out of the text's sight that are no keys."""
    candidates = vision.nonzero()[:, 0]
    question = torch.arange(int(candidates.max()) + 1, len(vision))
    asking = question[-1:] if rule.rank == "last" else question
    asked = logits[:, asking] - (sizes if rule.rank == "unsized" else 0)
    weights = asked.masked_fill(~seen[asking], -torch.inf).softmax(dim=-1)[..., candidates]
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9) if rule.rank == "same" else weights
    weights = weights / weights.amax(dim=-1, keepdim=True).clamp(min=1e-9) if rule.rank == "even" else weights
    alike = rule.groups if rule.rank == "group" else 1
    weights = weights.unflatten(0, (alike, -1)).mean(dim=1)
    score = weights.sum(dim=1) if rule.rank == "sum" else weights.amax(dim=1)
    engine = keys > 1 and (keys >= 8 or len(candidates) >= 16 * keys)
    mean = engine if rule.mean is None else bool(rule.mean)
    others = torch.ones_like(score, dtype=torch.bool)
    others.scatter_(1, score.topk(max(1, keys - mean)).indices, False)
    others = others.repeat_interleave(len(q) // alike, dim=0)  # [H, M]
    hidden = torch.zeros(len(q), len(vision), dtype=torch.bool)
    hidden[:, candidates] = others
    seen = seen & ~(~vision[:, None] & hidden[:, None])
    if not mean:
        return logits, seen, v
    weight = sizes[candidates].exp() * others
    share = (weight / weight.sum(dim=1, keepdim=True))[..., None]
    mean_k, mean_v = ((x[:, candidates] * share).sum(dim=1, keepdim=True) for x in (k, v))
    one = q @ mean_k.mT * scale + weight.sum(dim=1)[:, None, None].log()
    after = torch.zeros(len(vision), 1, dtype=torch.bool).index_fill(0, question, True)
    return torch.cat([logits, one], -1), torch.cat([seen, after.expand(len(q), -1, -1)], -1), torch.cat([v, mean_v], 1)


def changed(text: str) -> Rule:
    """``stop=0.25+running=0``: the rule with those changes."""
    kinds = {"choose": int, "mean": int, "rank": str, "runs": str, "who": str}
    pairs = [one.split("=") for one in text.split("+") if one]
    return replace(Rule(), **{name: kinds.get(name, float)(value) for name, value in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testbed", help="scenes, scenes-qwen or a folder")
    parser.add_argument("--budgets", default="49,24,12,6,3", help="keys a layer (default 49,24,12,6,3)")
    parser.add_argument("--questions", type=int, default=180, help="of the dev seeds (default 180)")
    parser.add_argument("--only", default=",".join(CHANGES), help="changes to try, comma separated (default: all)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bed, budgets = Testbed(given.testbed, given.questions), [int(n) for n in given.budgets.split(",")]
    print(f"{given.testbed}, {given.questions} dev questions, unpatched {bed.accuracy(bed.whole):.1f} %", flush=True)
    print("| accuracy % | " + " | ".join(map(str, budgets)) + " |\n|---|" + "---:|" * len(budgets), flush=True)
    for change in ("", *given.only.split(",")):
        rule = replace(changed(change), groups=bed.groups)
        if rule.runs == "most":
            found = bed.contributions()
            count = round(rule.stop * len(found))
            most = sorted(sorted(range(len(found)), key=found.__getitem__, reverse=True)[:count])
            rule = replace(rule, runs="+".join(map(str, most)))
            print("contributions: " + ", ".join(f"{x:.1e}" for x in found), flush=True)
        depth = len(bed.decoder.layers)
        reach = [rule.choose * round(rule.candidates * n) < depth * n for n in budgets]
        cells = [bed.cell(rule, n) if ok else "–" for n, ok in zip(budgets, reach, strict=True)]
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
