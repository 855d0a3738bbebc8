"""What every registered signal must do; a new signal is tested without editing this file."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import vtc
from tests import zoo
from tests.own import walked
from tests.support import logits
from tests.tolerances import assert_close
from vtc.methods import Method, Stage
from vtc.signals import Signal, registry
from vtc.signals.base import DecoderHook, TowerHook
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import Reduction

SITES = ("input", "rows", "keys", "skipped")
FAMILIES = ("llava", "qwen2_5_vl")


@dataclass(frozen=True)
class Probe(Method):
    """Asks for one signal and keeps what it was shown."""

    name = "probe"

    signal: Signal
    site: str = "rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "seen", [])
        object.__setattr__(self, "reduces_keys", self.site == "keys")
        object.__setattr__(self, "skips_layers", self.site == "skipped")

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(0 if self.site == "input" else 2),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (self.signal,)

    def reduce(self, stage, tokens, signals, keep) -> Reduction:
        self.seen.append((tokens, signals[self.signal]))
        order = -torch.arange(tokens.valid.shape[1], device=tokens.row.device).expand(tokens.valid.shape)
        return Reduction.top(order, keep, tokens)


def shown(model, prompt: dict, signal: Signal, site: str) -> tuple:
    probe = Probe(signal, site=site)
    vtc.patch(model, probe, budget=0.7)
    logits(model, prompt)
    vtc.unpatch(model)
    return probe.seen[0]


def cases() -> list:
    """Every signal at every site it can be had at: before the first layer there is no layer to look at, and where
    tokens skip layers, not all of them are in the one before."""
    found = []
    for name, kind in walked(registry).items():
        for site in SITES:
            stage = 0 if site == "input" else 2
            hook = kind().hook(stage)
            if site in ("input", "skipped") and isinstance(hook, DecoderHook) and hook.layer < stage:
                continue
            if not (kind is TowerGroups and site in ("keys", "skipped")):  # the tower merges for rows
                found.append(pytest.param(kind(), site, id=f"{name}-{site}"))
    return found


def test_signals_are_values():
    """Equal instances are one signal, whatever asks for it; a hook is a place and nothing else."""
    for _, kind in walked(registry).items():
        one, same = kind(), kind()
        assert one == same and hash(one) == hash(same) and one.words()
        assert isinstance(one.hook(2), TowerHook | DecoderHook | None)
        assert one.source == one.source.source
        with pytest.raises(AttributeError):
            one.anything = 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("signal, site", cases())
def test_a_prompt_is_seen_alone_as_in_any_batch(signal, site, family, model_of):
    """A value a token (or a picture), 0 in padding, whatever stands beside the prompt, on either side of the
    padding."""
    model = model_of(family)
    prompts = [zoo.prompt(model, n, seed=n, after=4 + 3 * n) for n in (1, 2)]
    alone = [shown(model, prompt, signal, site) for prompt in prompts]
    for side in ("left", "right"):
        tokens, together = shown(model, placed(zoo.batch(prompts, side=side), family), signal, site)
        assert together.shape[0] == 3
        if not signal.per_picture:
            assert together.shape[:2] == tokens.valid.shape
            assert not together[~tokens.valid].any(), "padding has a value"
        expected = [(alone[0], 0), (alone[1], 0), (alone[1], 1)]
        for i, ((own, value), j) in enumerate(expected):
            n = own.count[j]
            got, want = (together[i], value[j]) if signal.per_picture else (together[i, :n], value[j, :n])
            assert_close(f"{signal} of picture {i}, padded on the {side}", *map(comparable, (got, want)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("signal, site", cases())
def test_what_depends_on_the_question_says_so(signal, site, family, model_of):
    """Or a picture would be remembered, or cached by a server, with the choice of one question."""
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    other = {**prompt, "input_ids": prompt["input_ids"].clone()}
    other["input_ids"][:, -6:] = torch.tensor(zoo.words(6, seed=77))
    (_, one), (_, two) = (shown(model, given, signal, site) for given in (prompt, other))
    same = torch.equal(one.nan_to_num(), two.nan_to_num())
    assert signal.asks != same


def placed(prompt: dict, family: str) -> dict:
    """With the positions that ``generate`` gives a padded prompt; models with M-RoPE find them themselves."""
    if family != "llava":
        return prompt
    return {**prompt, "position_ids": (prompt["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


def comparable(x: Tensor) -> Tensor:
    """NaN as a number; of the numbers of groups, which are names, who is in one group with whom."""
    return x.nan_to_num(nan=-7.0) if x.is_floating_point() else (x[:, None] == x).float()


@dataclass(frozen=True)
class TwoStages(Probe):
    """A first cut before layer 2 by any signal, and a second before layer 3 that keeps what it was shown."""

    first: Signal | None = None

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(2), Stage(3, power=2))

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return tuple(s for s in (self.first,) if s) if stage == 0 else (self.signal,)

    def reduce(self, stage, tokens, signals, keep) -> Reduction:
        if stage:
            return super().reduce(stage, tokens, signals, keep)
        order = -torch.arange(tokens.valid.shape[1]).expand(tokens.valid.shape)
        return Reduction.top(order, keep, tokens)


@pytest.mark.parametrize("name", ["text_attention", "key_norm", "rater_attention"])
def test_looking_ahead_leaves_no_trace(name, model_of):
    """A layer that ran ahead for a cut before it had rows that are gone when it runs; the next stage sees it as it
    ran."""
    model, signal = model_of("llava"), registry[name]()
    seen = []
    for first in (None, registry["text_attention"](of="next")):
        probe = TwoStages(signal, first=first)
        vtc.patch(model, probe, budget=0.7)
        logits(model, zoo.prompt(model, 2))
        vtc.unpatch(model)
        seen.append(probe.seen[0])
    (_, plain), (tokens, behind) = seen
    assert max(tokens.count) < 20
    assert_close(f"{name} after a cut that looked ahead", behind, plain)


def test_a_signal_that_was_not_captured_raises(model_of):
    """Where a layer's attention is not that of the patch, nothing is made up."""
    from vtc.engine.capture.attention_hook import ATTRIBUTE
    from vtc.errors import NotReduced
    from vtc.signals.key_norm import KeyNorm

    model = model_of("llava")
    vtc.patch(model, Probe(KeyNorm()), budget=0.7)
    family = vtc.patch_of(model).family
    family.decoder_attention(1).__dict__[ATTRIBUTE].capture.clear()
    with pytest.raises(NotReduced, match="KeyNorm.* was not captured in layer 1"):
        logits(model, zoo.prompt(model, 1))


def test_a_stage_that_has_no_layer_before_it_is_refused(model_of):
    from vtc.signals.text_attention import TextAttention

    with pytest.raises(ValueError, match="looks at the layer before its stage"):
        vtc.patch(model_of("llava"), Probe(TextAttention(), site="input"), budget=0.7)
    with pytest.raises(ValueError, match="its tokens skip layers"):
        vtc.patch(model_of("llava"), Probe(TextAttention(), site="skipped"), budget=0.7)
