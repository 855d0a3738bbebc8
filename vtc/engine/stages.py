"""One stage: hand the living tokens to the method, turn its ``Reduction`` into rows, merge features at anchor rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtc.budget.schedule import keys_a_layer, solve
from vtc.budget.spend import Spend, needs
from vtc.engine.placeholders import Layout, build_layout
from vtc.engine.rows import choose_rows
from vtc.engine.state import Cut, Prefill, Remaining, Rows
from vtc.errors import BudgetError, NotReduced, UnsupportedModel
from vtc.kernels.gather import gather_rows
from vtc.kernels.merge import merge
from vtc.methods._contract import check_reduction
from vtc.methods._share import share
from vtc.methods.base import Method
from vtc.models.base import Family, TowerRun
from vtc.signals.base import Signal
from vtc.tokens import Budget, Reduction, VisionTokens, sort_padded, top


def open_prefill(
    p: Prefill,
    family: Family,
    method: Method,
    budget: Budget,
    starts: tuple[int, ...],
    runs: dict[str, TowerRun],
    states: Tensor,
) -> None:
    """Find the pictures of this forward and solve the budget for each, once, on the CPU."""
    known = [runs[m] for m in p.ids if m in runs]
    _check_known(p, runs)
    p.opened = True
    p.layout = layout = build_layout(family, known, p.ids, p.padding, p.input_ids, states.device)
    totals = p.full
    p.remaining = Remaining(
        row=layout.row,
        valid=layout.valid,
        size=torch.ones(layout.row.shape, device=states.device),
        grid=layout.grid,
        count=layout.count,
        newline_row=layout.newline_row,
        newline_grid=layout.newline_grid,
        newlines=layout.newlines,
    )
    own = [budget] * len(totals)
    if isinstance(method.spend, Spend):
        with p.clock:
            own = budgets_by_need(p, method.spend, totals, states)
    p.keeps = [keeps_of(method, b, starts, len(family.layers), [n])[0] for b, n in zip(own, totals, strict=True)]
    # Where tokens rest, all of them can be within the budget.
    least = [b.tokens(n) if method.rest else keep[-1] for b, n, keep in zip(own, totals, p.keeps, strict=True)]
    p.over = method.freezes or any(kept < total for kept, total in zip(least, totals, strict=True))


@torch.no_grad()
def budgets_by_need(p: Prefill, spend: Spend, totals: list[int], states: Tensor) -> list[Budget]:
    """The own budget of each picture, from its features alone."""
    tokens, _ = remaining_tokens(p, states)
    p.needs = needs(tokens.features, tokens.count)
    return [Budget(spend.own(total, need)) for total, need in zip(totals, p.needs, strict=True)]


def keeps_of(
    method: Method, budget: Budget, starts: tuple[int, ...], layers: int, totals: list[int]
) -> list[tuple[int, ...]]:
    """For pictures of ``totals`` tokens, how many each stage keeps."""
    stages = method.stages()
    powers, factors = zip(*((stage.power, stage.factor) for stage in stages), strict=True)
    if not stages[-1].freezes:
        return [solve(total, budget, starts, powers, layers, method.name, factors, method.rest) for total in totals]
    found = []
    for total in totals:
        keys = keys_a_layer(total, budget, layers, method.rest)
        wide = Budget(max(1, min(total, math.floor(stages[-1].candidates * budget.tokens(total)))))
        try:
            cuts = solve(total, wide, starts[:-1], powers[:-1], layers, method.name, factors[:-1]) if starts[1:] else ()
        except BudgetError as error:
            least = math.ceil((error.least or 0) / stages[-1].candidates)
            raise BudgetError(
                f"{method.name}: the cuts before tokens are frozen leave {error.least} of {total} at least, averaged "
                f"over layers, and may leave {stages[-1].candidates:g} times the budget; so the least budget is "
                f"{least} tokens, and {budget} were asked for; raise the budget or candidates, or cut at the decoder's "
                "input",
                least=least,
            ) from None
        found.append((*cuts, min(keys, *cuts) if cuts else keys))
    return found


def _check_known(p: Prefill, runs: dict[str, TowerRun]) -> None:
    """Every placeholder must belong to features that were computed (both modalities may share one placeholder id)."""
    covered = [where for modality, where in p.ids.items() if modality in runs]
    for modality, where in p.ids.items():
        if modality not in runs and not (covered and bool((torch.stack(covered).any(dim=0) | ~where).all())):
            raise NotReduced(
                f"the prompts hold {int(where.sum())} {modality} placeholders and no {modality} features were computed "
                f"(get_{modality}_features did not run); pass the {modality} itself with the prompt"
            )


def remaining_tokens(p: Prefill, states: Tensor) -> tuple[VisionTokens, Tensor]:
    """The living tokens as they stand in ``states [B, n, D]`` (all rows, or those of the last cut), and where."""
    remaining, layout, before = p.remaining, p.layout, p.last_cut
    position = remaining.row if before is None else torch.searchsorted(before.rows[layout.prompt], remaining.row)
    position = position.masked_fill(~remaining.valid, 0)
    features = gather_rows(states[layout.prompt], position)
    tokens = VisionTokens(
        features, remaining.valid, remaining.size, remaining.grid, remaining.row, layout.prompt, remaining.count
    )
    return tokens, position


def cut_stage(
    p: Prefill,
    method: Method,
    stage: int,
    tokens: VisionTokens,
    position: Tensor,
    signals: dict[Signal, Tensor],
    hybrid: bool,
) -> Cut:
    """Ask the method which of the living tokens go on, and make the rows the next layers run on."""
    cut, p.remaining = make_cut(p, method, stage, [k[stage] for k in p.keeps], tokens, position, signals, hybrid)
    return cut


def make_cut(
    p: Prefill,
    method: Method,
    stage: int,
    totals: list[int],
    tokens: VisionTokens,
    position: Tensor,
    signals: dict[Signal, Tensor],
    hybrid: bool = False,
) -> tuple[Cut, Remaining]:
    """The living tokens reduced to ``totals[i]`` a picture, newlines included, and what lives after it."""
    remaining = p.remaining
    keep, newline_keep = split_newlines(totals, remaining.count, remaining.newlines)
    if keep == remaining.count and newline_keep == remaining.newlines:
        every = torch.arange(tokens.row.shape[1], device=tokens.row.device).expand_as(tokens.row)
        reduction = Reduction.keep(every.masked_fill(~tokens.valid, -1), tokens)
    else:
        reduction = method.reduce(stage, tokens, signals, keep)
        # The library's own methods are held to it by tests, and looking at numbers makes a device wait.
        check_reduction(method.name, reduction, tokens, keep, values=not type(method).__module__.startswith("vtc."))
        if method.share and stage == 0:
            reduction = share(tokens, reduction)
    before = p.last_cut
    after = after_cut(remaining, tokens, reduction, keep, newline_keep)
    rows, valid = rows_of(p.layout, after, hybrid)
    sized = reduction.merges or (before is not None and before.log_size is not None)
    log_size = log_sizes(p, after, rows, tokens.features.dtype) if method.share and sized else None
    inside = rows if before is None else torch.searchsorted(before.rows, rows)
    tokens.features = tokens.features.new_empty(*tokens.features.shape[:2], 0)  # the pass outlives the forward
    return Cut(rows, valid, log_size, inside, tokens, reduction, keep, position), after


def after_cut(
    remaining: Remaining, tokens: VisionTokens, reduction: Reduction, keep: list[int], newline_keep: list[int]
) -> Remaining:
    """The tokens that live on after a reduction, sizes added up by slot."""
    anchor, used = reduction.anchor.clamp(min=0), reduction.anchor >= 0
    grid = gather_rows(remaining.grid, anchor).masked_fill(~used[..., None], -1)
    newline_row, newline_grid = keep_newlines(remaining, grid.masked_fill(~used[..., None], -2), newline_keep)
    row = remaining.row.gather(1, anchor)
    return Remaining(row, used, reduction.sizes(tokens), grid, keep, newline_row, newline_grid, newline_keep)


def rows_of(layout: Layout, remaining: Remaining, hybrid: bool) -> tuple[Tensor, Tensor | None]:
    """``(rows [B, K], valid)``: every real text row and the living vision rows of each prompt."""
    kept = layout.text.clone()
    for row, counted in ((remaining.row, remaining.count), (remaining.newline_row, remaining.newlines)):
        i, k = listed(counted, row.device)
        kept[layout.prompt[i], row[i, k]] = True
    count = list(layout.text_count)
    for prompt, n, m in zip(layout.prompts, remaining.count, remaining.newlines, strict=True):
        count[prompt] += n + m
    short = max(count)
    if hybrid and any(short - n > spare for n, spare in zip(count, layout.spare_count, strict=True)):
        raise UnsupportedModel(
            "the decoder has recurrent layers, and prompts of this batch shrink by different amounts: filler rows "
            "would enter their state; left-pad the batch, or run prompts with different pictures one by one"
        )
    return choose_rows(kept, layout.spare, count)


def log_sizes(p: Prefill, remaining: Remaining, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, K]``: log of how many tokens each row stands for (0 for text), in float32 (float64 for float64 states)."""
    layout = p.layout
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = torch.ones(p.batch, p.length, device=rows.device, dtype=exact)
    i, k = listed(remaining.count, rows.device)
    sizes[layout.prompt[i], remaining.row[i, k]] = remaining.size[i, k].clamp(min=1.0).to(exact)
    return sizes.gather(1, rows).log()


def merge_rows(states: Tensor, cut: Cut) -> Tensor:
    """The rows of ``cut`` out of the incoming ``states``, with merged values at the anchors. Differentiable."""
    out = gather_rows(states, cut.inside)
    reduction, tokens = cut.reduction, cut.tokens
    if not reduction.merges:
        return out
    incoming = gather_rows(states[tokens.prompt], cut.position)
    value = merge_slots(incoming, cut)
    if reduction.refine is not None:
        value = reduction.refine(incoming, value)
    return at_anchors(out, cut, value, accumulate=False)


def regather(states: Tensor, p: Prefill, cut: Rows) -> Tensor:
    """The rows of ``cut`` from states that were restored to full length; what was added to a slot's tokens in between
    (DeepStack features) merges by the same slots as the tokens did."""
    if p.restored is not None and states is p.restored[0]:
        return p.restored[1]
    taken = gather_rows(states, cut.rows)
    if not isinstance(cut, Cut):  # text alone, to which nothing merges
        return taken
    past = p.cuts[: p.cuts.index(cut) + 1]  # a stage at this very layer is not among them
    if not any(c.reduction.merges for c in past):
        return taken
    if p.restored is None:
        raise UnsupportedModel(
            "a layer after DeepStack is replayed for its gradient, and what was added to merged tokens is gone; use "
            "model.gradient_checkpointing_enable() of transformers 5.23 or later, or a method that only drops"
        )
    full = p.restored[0]
    first = past[0].tokens
    group = own = gather_rows((states - full)[first.prompt], first.row)
    for c in past:
        group, own = merge_slots(group, c), gather_rows(own, c.reduction.anchor.clamp(min=0))
    return at_anchors(taken, cut, group - own, accumulate=True)


def merge_slots(features: Tensor, cut: Cut) -> Tensor:
    """``[I, K, D]``: features of the cut's tokens, merged by its slots."""
    return slot_values(cut.reduction, features, cut.tokens)


def slot_values(r: Reduction, features: Tensor, tokens: VisionTokens) -> Tensor:
    """``[I, K, D]``: what the slots of a reduction of ``tokens`` make of ``features [I, N, D]``."""
    value = merge(features, r.slot.where(tokens.valid, -1), r.weight, tokens.size, r.anchor.shape[1])
    total = value if not r.also else value.to(torch.promote_types(value.dtype, torch.float32))
    for source, slot, weight in r.also:
        total = total + merge(gather_rows(features, source), slot, weight, weight, r.anchor.shape[1])
    return total.to(value.dtype)


def at_anchors(states: Tensor, cut: Cut, value: Tensor, accumulate: bool) -> Tensor:
    """``states [B, K, D]`` of the cut's rows with ``value [I, K', D]`` put (or added) at the anchors' rows."""
    tokens = cut.tokens
    row = tokens.row.gather(1, cut.reduction.anchor.clamp(min=0))
    place = torch.searchsorted(cut.rows[tokens.prompt].contiguous(), row)
    i, k = listed(cut.keep, states.device)
    where = (tokens.prompt[i], place[i, k])
    return states.index_put(where, value[i, k].to(states.dtype), accumulate=accumulate)


def listed(count: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Picture and slot of every slot in use, from counts known on the CPU: a mask would make the device wait."""
    picture = torch.arange(len(count)).repeat_interleave(torch.tensor(count))
    slot = torch.cat([torch.arange(n) for n in count])
    return picture.to(device, non_blocking=True), slot.to(device, non_blocking=True)


def split_newlines(keep: list[int], count: list[int], newlines: list[int]) -> tuple[list[int], list[int]]:
    """Newline tokens count too: how many scored tokens and newlines each picture keeps, in proportion to what lives,
    with at least one scored token."""
    scored, lines = [], []
    for k, c, n in zip(keep, count, newlines, strict=True):
        scored.append(min(c, k - min(n, k * n // (c + n), k - 1)))
        lines.append(k - scored[-1])
    return scored, lines


def keep_newlines(remaining: Remaining, grid: Tensor, keep: list[int]) -> tuple[Tensor, Tensor]:
    """The newlines of the grid rows that kept the most tokens (``grid [I, K, 3]`` of the kept ones)."""
    if remaining.newline_row.shape[1] == 0:
        return remaining.newline_row, remaining.newline_grid
    same_row = (remaining.newline_grid[:, None, :, :2] == grid[:, :, None, :2]).all(dim=-1)
    chosen = sort_padded(top(same_row.sum(dim=1).float(), keep, remaining.newline_row >= 0))
    index, used = chosen.clamp(min=0), chosen >= 0
    row = remaining.newline_row.gather(1, index).masked_fill(~used, -1)
    return row, gather_rows(remaining.newline_grid, index).masked_fill(~used[..., None], -1)
