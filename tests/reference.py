"""Slow references: what a reduced model must equal, computed by masking columns of the unpatched model."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.tolerances import assert_close
from vtc.engine.capture.attention_hook import hook_attention
from vtc.models import family_of


@contextmanager
def removed(handles: list):
    """Hooks, gone afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def before_norm(model):
    """Collects what enters the decoder's last norm: ``[B, N, D]`` per forward. Many norms compute in float32
    and would round differences of 1e-16 (and worse) away."""
    decoder = family_of(model).decoder
    norm = next(getattr(decoder, n) for n in ("norm", "final_layernorm", "ln_f") if hasattr(decoder, n))
    seen: list[Tensor] = []
    with removed([norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))]):
        yield seen


@contextmanager
def tower_output(model, instead: list | None = None):
    """Collects what ``get_image_features`` returns, once a forward; or puts the first of ``instead`` in its place, for
    methods that change the vision tower."""
    base, seen = family_of(model).base, []
    older, features = base.__dict__.get("get_image_features"), base.get_image_features

    def call(*args, **kwargs):
        seen.append(instead[0] if instead else features(*args, **kwargs))
        return seen[-1]

    object.__setattr__(base, "get_image_features", call)
    try:
        yield seen
    finally:
        base.__dict__.pop("get_image_features")
        if older is not None:
            object.__setattr__(base, "get_image_features", older)


@contextmanager
def masked(model, gone: dict[int, Tensor], sizes: dict[int, Tensor] | None = None):
    """The unpatched model with columns masked: ``gone[i] [B, N]`` are the rows nobody sees in decoder layer i (a gone
    row still sees itself, so that no softmax is empty); ``sizes[i] [B, N]`` is added to its logits."""
    handles = []

    def blocker(index: int, drop: Tensor):
        def hook(layer, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            n = states.shape[1]
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
            if mask.dtype != torch.bool:
                mask = mask > torch.finfo(mask.dtype).min / 2
            seen = mask & ~drop[:, None, None, :] | torch.eye(n, dtype=torch.bool)
            low = torch.finfo(states.dtype).min
            mask = torch.zeros(seen.shape, dtype=states.dtype).masked_fill(~seen, low)
            kwargs["attention_mask"] = mask + sizes[index][:, None, None] if sizes and index in sizes else mask
            return args, kwargs

        return hook

    for index, drop in gone.items():
        layer = family_of(model).layers[index]
        handles.append(layer.register_forward_pre_hook(blocker(index, drop), with_kwargs=True))
    with removed(handles):
        yield


@contextmanager
def restored(model, gone: dict[int, Tensor]):
    """The layers of the unpatched model, of which the rows ``gone[i] [B, N]`` leave layer i as they came."""
    handles = []

    def put_back(drop, layer, args, kwargs, output):
        came = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        out = torch.where(drop[..., None], came, out)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    for index, drop in gone.items():
        layer = family_of(model).layers[index]
        handles.append(layer.register_forward_hook(partial(put_back, drop), with_kwargs=True))
    with removed(handles):
        yield


def longer(by_layer: dict[int, Tensor], columns: int) -> dict[int, Tensor]:
    """``[B, columns]`` for each decoder layer: rows that come later are not dropped and weigh one."""
    return {i: torch.nn.functional.pad(t, (0, columns - t.shape[1])) for i, t in by_layer.items()}


def equals_the_whole(model, prompt: dict, out) -> None:
    """Every step that ``generate`` took (``out``) on ``prompt`` gave the logits of one forward over all of its tokens,
    as ``model`` is now."""
    ids, start = out.sequences[:, :-1], prompt["input_ids"].shape[1] - 1
    whole = {**prompt, "input_ids": ids}
    for key in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in prompt:
            extra = (0, ids.shape[1] - prompt["input_ids"].shape[1])
            whole[key] = torch.nn.functional.pad(prompt[key], extra, value=int(key == "attention_mask"))
    with torch.no_grad():
        want = model(**whole).logits
    for step, got in enumerate(out.logits):
        assert_close(f"step {step}", got, want[:, start + step])  # generate() gives float32


def dropped_rows(engine) -> dict[int, Tensor]:
    """``[B, N]`` for each decoder layer: the rows the last patched forward left out, as candidates for keys, too."""
    p = engine.current
    out = {}
    for index in range(engine.depth):
        plan = p.plans[index]
        if engine.freezes_at is not None:
            out[index] = stopped_rows(engine) & ~candidate_rows(p, plan.candidates)
            continue
        cut = plan.runs or plan.rows
        if cut is None:
            continue
        kept = torch.zeros(p.batch, p.length, dtype=torch.bool)
        rows = cut.rows if cut.valid is None else cut.rows.where(cut.valid, cut.rows[:, -1:])
        out[index] = ~kept.scatter(1, rows, True)
    return out


def stopped_rows(engine) -> Tensor:
    """``[B, N]``: the vision rows of the last patched forward."""
    return torch.stack(list(engine.current.ids.values())).any(dim=0)


def still_rows(engine) -> Tensor:
    """``[B, N]``: those that ran no more from the layer on in which vision tokens stop."""
    going, out = engine.current.going, stopped_rows(engine)
    for prompt in range(len(out) if going is not None else 0):
        rows, valid = going.rows.rows[prompt], going.rows.valid
        out[prompt, rows if valid is None else rows[valid[prompt]]] = False
    return out


def candidate_rows(p, of, chosen: Tensor | None = None) -> Tensor:
    """``[B, N]``: the candidates of a layer that chooses its keys; those that ``chosen [B, K]`` names."""
    out = torch.zeros(p.batch, p.length, dtype=torch.bool)
    for prompt in range(p.batch if of is not None else 0):
        rows = of.place.rows[prompt]
        real = rows[:0] if of.count[prompt] == 0 else rows if of.place.valid is None else rows[of.place.valid[prompt]]
        out[prompt, real if chosen is None else rows[[n for n in chosen[prompt].tolist() if n >= 0]]] = True
    return out


@dataclass
class Chosen:
    """What text sees in one layer: all but ``others [B, N]``, for which, where there are ``means``, one key stands. Of
    turns that each chose, those rows from ``first`` up to the next one's."""

    vision: Tensor
    others: Tensor
    sizes: Tensor
    means: list[bool]
    first: int = 0
    later: Chosen | None = None

    @classmethod
    def of(cls, engine, index: int, columns: int) -> Chosen | None:
        p, plan = engine.current, engine.current.plans[index]
        if plan.chosen is None:
            return None
        others = candidate_rows(p, plan.candidates) & ~candidate_rows(p, plan.candidates, plan.chosen)
        logs = log_sizes(engine).get(index, torch.zeros(others.shape))
        padded = (torch.nn.functional.pad(t, (0, columns - t.shape[1])) for t in (stopped_rows(engine), others, logs))
        return cls(*padded, plan.candidates.with_mean)

    def attend(self, q, k, v, mask, scale, run, **kwargs):
        k, v, bias = self.seen(k, v, mask.expand(q.shape[0], -1, -1, -1).clone())
        return run(q, k, v, bias, **{**kwargs, "scaling": scale})

    def seen(self, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values with the means behind them, and the mask."""
        batch, end = self.vision.shape
        low = torch.finfo(bias.dtype).min
        bias = torch.cat([bias, torch.full_like(bias[..., :1], low)], dim=-1)
        k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (k, v))
        end = end if self.later is None else self.later.first
        for prompt in range(batch):
            others = self.others[prompt].nonzero()[:, 0].tolist()
            text = [row for row in range(self.first, end) if not self.vision[prompt, row]]
            for row in text:
                bias[prompt, :, row, others] = low
            if not others or not self.means[prompt]:
                continue
            sizes = [self.sizes[prompt, row].double().exp() for row in others]
            for x in (k, v):
                x[prompt, :, -1] = sum(s * x[prompt, :, row] for s, row in zip(sizes, others, strict=True)) / sum(sizes)
            last = int(self.vision[prompt].nonzero().max())
            bias[prompt, :, [row for row in text if row > last], -1] = float(sum(sizes).log())
        return (k, v, bias) if self.later is None else self.later.seen(k, v, bias)


@contextmanager
def choosing(model, chosen: dict[int, Chosen | None]):
    """The unpatched model whose text sees in each layer what was chosen there. Inside ``masked``, which makes masks."""
    module = family_of(model).decoder_attention
    undo = [hook_attention(module(index), attend=one.attend) for index, one in chosen.items() if one is not None]
    try:
        yield
    finally:
        for one in undo:
            one()


def cuts_of(engine) -> dict:
    """The cuts of the last patched forward, by the layer they stand before."""
    return {index: plan.enter for index, plan in engine.current.plans.items() if plan.enter is not None}


def log_sizes(engine) -> dict[int, Tensor]:
    """``[B, N]`` for each decoder layer of the last patched forward: log of the tokens each of its rows stands for."""
    p, out = engine.current, {}
    for index in range(engine.depth):
        stopped = engine.freezes_at is not None and index >= engine.freezes_at
        cut = p.last_cut if stopped else p.plans[index].rows
        if cut is not None and cut.log_size is not None:
            out[index] = torch.zeros(p.batch, p.length, dtype=cut.log_size.dtype).scatter(1, cut.rows, cut.log_size)
    return out


@contextmanager
def merged_input(model, cuts: dict, merging: bool, deepstack: bool | None = None):
    """The decoder layers with a cut get, at each anchor's row, what a plain loop over the slot's tokens makes of them
    (and with ``deepstack`` what was added to those after the layers before goes by the cuts before likewise)."""
    layers, handles = family_of(model).layers, []
    out: dict[int, Tensor] = {}

    def enter(index, layer, args, kwargs):
        states = args[0]
        if deepstack and index > 0:
            added = states - out[index - 1]
            for at, cut in cuts.items():
                added = merge_by_loop(added, cut) if at < index else added
            states = out[index - 1] + added
        return (merge_by_loop(states, cuts[index]) if index in cuts else states, *args[1:]), kwargs

    for index, layer in enumerate(layers if merging else ()):
        handles.append(layer.register_forward_pre_hook(partial(enter, index), with_kwargs=True))
        handles.append(layer.register_forward_hook(lambda m, a, o, index=index: out.update({index: o})))
    with removed(handles):
        yield


def merge_by_loop(states: Tensor, cut) -> Tensor:
    out, tokens, r = states.clone(), cut.tokens, cut.reduction
    for i, prompt in enumerate(tokens.prompt.tolist()):
        for k, anchor in enumerate(r.anchor[i].tolist()):
            if anchor < 0:
                continue
            members = [n for n in range(tokens.count[i]) if int(r.slot[i, n]) == k]
            rows = [int(tokens.row[i, n]) for n in members]
            sizes = tokens.size[i, members].double()
            weights = (sizes / sizes.sum() if r.weight is None else r.weight[i, members]).tolist()
            for source, slot, weight in r.also:
                more = [n for n in range(slot.shape[1]) if int(slot[i, n]) == k]
                rows += [int(tokens.row[i, source[i, n]]) for n in more]
                weights += [float(weight[i, n]) for n in more]
            value = sum(w * states[prompt, row] for w, row in zip(weights, rows, strict=True))
            out[prompt, int(tokens.row[i, anchor])] = value
    return out


@contextmanager
def regrouped(model, cuts: dict, merging: bool = True):
    """The unpatched model whose attention in decoder layer i takes the keys and values ``cuts[i]`` leaves, by a plain
    loop: the key and value of each token of a slot become their mean and are seen where its anchor is seen, what is in
    no slot is seen by nobody. Without ``merging`` anchors stay as they are, and what joined them is dropped."""
    module = family_of(model).decoder_attention
    undo = [hook_attention(module(i), attend=partial(_attend_groups, cut, merging)) for i, cut in cuts.items()]
    try:
        yield
    finally:
        for one in undo:
            one()


def _attend_groups(cut, merging: bool, q, k, v, mask, scale, run, **kwargs):
    n, tokens = k.shape[2], cut.tokens
    seen = torch.ones(n, n, dtype=torch.bool).tril()[None, None] if mask is None else mask
    seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    seen = seen.expand(len(k), -1, -1, -1)
    gone = torch.arange(n).expand(len(k), -1) < cut.rows[:, -1:]  # what came later is all there
    gone = gone.scatter(1, cut.rows, False)
    seen, anchors, k, v = seen & ~gone[:, None, None], seen, k.clone(), v.clone()
    for i, prompt in enumerate(tokens.prompt.tolist()):
        for slot, anchor in enumerate(cut.reduction.anchor[i, : cut.keep[i]].tolist()):
            rows = [row for j, row in enumerate(model_rows(tokens, i)) if int(cut.reduction.slot[i, j]) == slot]
            if merging and len(rows) > 1:
                at = int(tokens.row[i, anchor])
                for x in (k, v):
                    x[prompt, :, rows] = x[prompt, :, rows].mean(dim=1, keepdim=True)
                seen[prompt, :, :, rows] = anchors[prompt, :, :, at : at + 1]
    bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
    return run(q, k, v, bias, **{**kwargs, "scaling": scale})


def model_rows(tokens, i: int) -> list[int]:
    """The rows of picture i's tokens."""
    return tokens.row[i, : tokens.count[i]].tolist()
