"""Invariants 2, 3 and the share: a reduced forward equals a slow reference, before the last norm, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import vtc
from tests import zoo
from tests.reference import (
    before_norm,
    cuts_of,
    dropped_rows,
    equals_the_whole,
    log_sizes,
    longer,
    masked,
    merged_input,
    tower_output,
)
from tests.support import (
    KEYS,
    KINDS,
    MERGING,
    MERGING_TOWER,
    PAIRS,
    SKIPPING,
    SOME_PAIRS,
    STOPPING,
    engine,
    exact_dtype,
    generate,
    logits,
)
from tests.tolerances import assert_close
from vtc.models import family_of


def run(model, prompt: dict) -> Tensor:
    with before_norm(model) as seen:
        logits(model, prompt)
    return seen[0]


def of_rows(pairs: list, *but: str) -> list:
    """The pairs of methods that drop rows, without the families ``but``."""
    return [p for p in pairs if p.values[0] not in but and p.values[1] not in (*KEYS, *SKIPPING, *STOPPING)]


@pytest.mark.parametrize(("family", "method"), of_rows(PAIRS, "qwen3_5"))
def test_dropping_equals_masking(family, method, model_of):
    """Dropped columns masked from their layer on, merged values put at their anchors by a plain loop."""
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, method, budget=0.5)
    with tower_output(model) as seen:
        ours = run(model, prompt)
    seen = seen if method in MERGING_TOWER else []
    cuts, gone, sizes = cuts_of(engine(model)), dropped_rows(engine(model)), log_sizes(engine(model))
    vtc.unpatch(model)
    merged = partial(merged_input, model, cuts, method in MERGING, deepstack=family == "qwen3_vl")
    with masked(model, gone, sizes), tower_output(model, seen), merged():
        want = run(model, prompt)
    kept = ~gone[max(gone)]
    assert_close("kept rows", ours[kept], want[kept])
    swapped = {layer: _swap_one(drop, cuts) for layer, drop in gone.items()}
    with masked(model, swapped, sizes), tower_output(model, seen), merged():
        control = run(model, prompt)
    assert (control[:, -1] - ours[:, -1]).abs().max() > 1e-3, "one swapped token must show, or the check proves nothing"


def _swap_one(gone: Tensor, cuts) -> Tensor:
    """The same count dropped, but one dropped row is kept instead of one kept vision row, of whose slot it is not: what
    merged in a tower is alike."""
    out, first = gone.clone(), cuts[min(cuts)]
    slots = dict(zip(first.tokens.row[0].tolist(), first.reduction.slot[0].tolist(), strict=True))
    kept, dropped = ([row for row in slots if bool(gone[0, row]) == away] for away in (False, True))
    inside, outside = next((a, b) for a in kept for b in dropped if slots[a] != slots[b])
    out[0, inside], out[0, outside] = True, False
    return out


@pytest.mark.parametrize("method", ["random", "grid", "divprune"])
def test_recurrent_layers_equal_a_shorter_sequence(method, model_of):
    """Qwen3.5 mixes recurrent layers in: dropping must equal never having had the rows (positions kept)."""
    model = model_of("qwen3_5")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5)
    ours = run(model, prompt)
    rows = engine(model).current.cuts[0].rows
    vtc.unpatch(model)
    decoder, seen = family_of(model).decoder, {}

    def note(module, args, kwargs):
        seen.update(kwargs)

    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    full = run(model, prompt)
    handle.remove()
    shorter = dict(inputs_embeds=seen["inputs_embeds"][:, rows[0]], position_ids=seen["position_ids"][..., rows[0]])
    with before_norm(model) as states, torch.no_grad():
        decoder(**shorter, use_cache=False)
    assert_close("kept rows", ours[:, rows[0]], states[0])
    assert (full[:, -1] - ours[:, -1]).abs().max() > 1e-3


# PaliGemma reads everything it is given in one forward as a bidirectional prefix, so no such forward equals decoding.
@pytest.mark.parametrize(("family", "method"), of_rows(SOME_PAIRS, "paligemma"))
def test_cached_decoding_equals_masking_the_whole_sequence(family, method, model_of):
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5)
    with tower_output(model) as seen:
        logits(model, prompt)
    seen = seen if method in MERGING_TOWER else []
    gone, sizes = dropped_rows(engine(model)), log_sizes(engine(model))
    cuts = cuts_of(engine(model))
    out = generate(model, prompt, tokens=4, suppress_tokens=list(family_of(model).token_ids.values()))
    vtc.unpatch(model)
    gone, sizes = (longer(one, out.sequences.shape[1] - 1) for one in (gone, sizes))
    merged = merged_input(model, cuts, method in MERGING, deepstack=family == "qwen3_vl")
    with masked(model, gone, sizes), tower_output(model, seen), merged:
        equals_the_whole(model, prompt, out)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_the_cache_holds_exactly_the_kept_rows(family, method, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 2)
    budget = 0.5
    vtc.patch(model, method, budget=budget)
    with torch.no_grad():
        cache = model(**prompt, use_cache=True).past_key_values
    report = vtc.report(model)
    held = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
    text = prompt["input_ids"].shape[1] - sum(p.tokens_in for p in report.pictures)
    bytes_held = 0
    for index, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if not isinstance(keys, Tensor) or keys.dim() != 4:
            continue  # recurrent state
        rows = text + sum(p.tokens_by_layer[index] for p in report.pictures)
        window = getattr(layer, "sliding_window", None)
        assert keys.shape[-2] == (rows if window is None else min(rows, window - 1))
        assert layer.get_seq_length() == prompt["input_ids"].shape[1]
        bytes_held += keys.numel() * keys.element_size() + layer.values.numel() * layer.values.element_size()
    assert held and bytes_held == report.kv_bytes
    spent = [(max(1, int(budget * picture.tokens_in)), picture.average) for picture in report.pictures]
    if method in STOPPING:  # the pictures of a prompt share their keys
        spent = [tuple(map(sum, zip(*spent, strict=True)))]
    for allowed, average in spent:
        assert average <= allowed
        assert average >= 0.9 * allowed or allowed - average <= 1, "the budget is not used"


def test_a_shared_row_equals_repeating_it(model_of):
    """A row that stands for s tokens = s copies of the merged row at its position, at prefill and decode."""
    model = model_of("llava", dtype=torch.float64)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.25, share=True)
    with before_norm(model) as seen, torch.no_grad():
        logits(model, prompt)
    cut = engine(model).current.cuts[0]
    out = generate(model, prompt, tokens=3)
    rows, sizes = cut.rows[0], cut.log_size[0].exp().round().long()
    assert int(sizes.sum()) == prompt["input_ids"].shape[1], "the picture weighs what it weighed"
    vtc.unpatch(model)
    decoder, embed = family_of(model).decoder, model.get_input_embeddings()
    tower_output = []
    handle = decoder.register_forward_pre_hook(
        lambda m, a, k: tower_output.append(k["inputs_embeds"]), with_kwargs=True
    )
    logits(model, prompt)
    handle.remove()
    merged = merged_states(tower_output[0], cut)[:, rows]
    new = embed(out.sequences[:, prompt["input_ids"].shape[1] : -1])
    position = torch.cat([rows.repeat_interleave(sizes), prompt["input_ids"].shape[1] + torch.arange(new.shape[1])])
    states = torch.cat([merged.repeat_interleave(sizes, dim=1), new], dim=1)
    mask = torch.zeros(1, 1, len(position), len(position), dtype=torch.float64)
    mask = mask.masked_fill(position[None, :] > position[:, None], torch.finfo(torch.float64).min)
    with before_norm(model) as repeated, torch.no_grad():
        decoder(inputs_embeds=states, position_ids=position[None], attention_mask=mask, use_cache=False)
    first = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
    assert_close("prefill", seen[0][:, rows], repeated[0][:, first])
    with torch.no_grad():
        want = model.lm_head(decoder.norm(repeated[0][:, -1]))
    assert_close("decode", out.logits[-1], want)  # generate() gives float32
    vtc.patch(model, "divprune", budget=0.25)
    plain = generate(model, prompt, tokens=3)
    assert (plain.logits[-1] - out.logits[-1]).abs().max() > 1e-3, (
        "share changes nothing here, so the check proves nothing"
    )


def merged_states(states: Tensor, cut) -> Tensor:
    """Slots as plain means over their tokens."""
    out = states.clone()
    tokens, slot = cut.tokens, cut.reduction.slot
    for k, anchor in enumerate(cut.reduction.anchor[0]):
        members = tokens.row[0, slot[0] == k]
        out[0, tokens.row[0, anchor]] = states[0, members].mean(dim=0)
    return out


@pytest.mark.parametrize("family", (*KINDS, "qwen3_5"))
def test_share_runs_on_every_kind_of_model(family, model_of):
    """Sizes add up to the tokens there were, alone and in a padded batch, with a cache."""
    model = model_of(family)
    prompts = [zoo.prompt(model, n, seed=n) for n in (0, 2, 1)]
    alone = []
    for prompt in prompts:
        vtc.patch(model, "divprune", budget=0.3, share=True)
        alone.append(generate(model, prompt).sequences[0, prompt["input_ids"].shape[1] :])
    together = generate(model, zoo.batch(prompts)).sequences[:, -4:]
    assert torch.equal(together, torch.stack(alone))
    p = engine(model)
    logits(model, prompts[1])
    cut = p.current.cuts[0]
    assert cut.log_size.exp().sum().round() == prompts[1]["input_ids"].shape[1] - sum(
        m - k for m, k in zip(p.current.layout.newlines, p.current.remaining.newlines, strict=True)
    )


def test_deepstack_features_merge_with_their_group(model_of):
    """Qwen3-VL adds features after its first layers: a merged slot gets its group's, not its anchor's alone."""
    model = model_of("qwen3_vl", dtype=torch.float64)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "bipartite", budget=0.5)
    ours = run(model, prompt)
    cuts, gone = cuts_of(engine(model)), dropped_rows(engine(model))
    assert engine(model).current.between == 3
    vtc.unpatch(model)
    with masked(model, gone), merged_input(model, cuts, True, deepstack=True):
        want = run(model, prompt)
    kept = ~gone[max(gone)]
    assert_close("kept rows", ours[kept], want[kept])
    with masked(model, gone), merged_input(model, cuts, True, deepstack=False):
        control = run(model, prompt)
    assert (control - ours)[kept].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "llava_next"])
@pytest.mark.parametrize("method", ["divprune", "pyramiddrop"])
def test_hidden_states_are_full_length_and_a_dropped_row_outputs_its_predecessor(family, method, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    length = prompt["input_ids"].shape[1]
    plain = model(**prompt, output_hidden_states=True).hidden_states
    vtc.patch(model, method, budget=0.5)
    with torch.no_grad():
        out = model(**prompt, output_hidden_states=True)
    assert [h.shape[1] for h in out.hidden_states] == [length] * 5
    assert torch.equal(out.hidden_states[0], plain[0]), "the first hidden state is the decoder's input, untouched"
    gone = dropped_rows(engine(model))[3][0].nonzero()[:, 0]
    last = out.logits[0]
    assert len(gone) and all(torch.equal(last[r], last[r - 1]) for r in gone.tolist())
    assert torch.equal(out.logits, logits(model, prompt)), "asking for hidden states changes nothing"
