"""Who a prompt's raters are and what they attend to, against plain loops over an eager model."""

import pytest
import torch

from tests import zoo
from tests.reference import cuts_of, dropped_rows, masked, merged_input
from tests.support import MERGING, engine, logits
from tests.tolerances import assert_close
from vtc.methods import registry
from vtc.models import family_of
from vtc.patching.api import patch, unpatch
from vtc.signals.rater_attention import gravity

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "gemma3", "paligemma", "qwen3_vl")


def seen_by(model, prompt, method):
    """Tokens and signal of every stage of a patched forward."""
    kind, seen = registry[method], []
    reduce = kind.reduce

    def spy(self, stage, tokens, signals, keep):
        (signal,) = self.signals(stage)
        seen.append((tokens, signals[signal]))
        return reduce(self, stage, tokens, signals, keep)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(kind, "reduce", spy)
        logits(model, prompt)
    return seen


def slow_raters(embeds, vision, text):
    """The rows of ``text`` (those behind the pictures) that get more than their mean."""
    weight = (embeds[vision].double() @ embeds[text].double().T).softmax(1).mean(0)
    above = [row for row, w in zip(text, weight, strict=True) if w > weight.mean()]
    return above or text


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["sparsevlm", "sparsevlm_v2"])
def test_raters_attention_is_that_of_an_eager_model(method, family, side, model_of):
    """In every stage, of a padded batch of one and two pictures."""
    model = model_of(family, attn="eager")
    prompt = zoo.batch([zoo.prompt(model, n, seed=n, after=4 + 5 * n) for n in (1, 2)], side=side)
    patch(model, method, budget=0.6)
    seen = seen_by(model, prompt, method)
    p, at = engine(model).current, list(engine(model).stage_at)
    cuts, gone = cuts_of(engine(model)), dropped_rows(engine(model))
    unpatch(model)
    (chosen,) = p.at_input.values()
    embeds = []
    layer = family_of(model).layers[0]
    handle = layer.register_forward_pre_hook(lambda m, args: embeds.append(args[0]))
    merging = merged_input(model, cuts, method in MERGING, deepstack=family == "qwen3_vl")
    with masked(model, gone), merging, torch.no_grad():
        attentions = model(**prompt, output_attentions=True).attentions
    handle.remove()
    assert len(seen) == len(at) == 3
    for b in range(2):
        rows = [row[:n].tolist() for row, n in zip(p.layout.row, p.layout.count, strict=True)]
        vision = sum((row for row, prompt in zip(rows, p.layout.prompts, strict=True) if prompt == b), [])
        text = [n for n in p.layout.text[b].nonzero()[:, 0].tolist() if n > vision[-1]]
        raters = slow_raters(embeds[0][b], vision, text)
        assert sorted(r for r in chosen[b].tolist() if r >= 0) == raters
        assert len(raters) < len(text)
        for (tokens, got), index in zip(seen, at, strict=True):
            want = attentions[index - 1][b][:, raters]
            if method == "sparsevlm_v2":
                width = family_of(model).layers[0].self_attn.head_dim
                pull = gravity(torch.arange(p.length), width, torch.float64)
                want = want / pull[(torch.tensor(raters)[:, None] - torch.arange(p.length)).abs()]
            want = want.mean(1).float()
            for i, n in enumerate(tokens.count):
                if tokens.prompt[i] == b:
                    assert_close("attention", got[i, :n], want[:, tokens.row[i, :n]].T)


def test_a_prompt_that_ends_with_its_picture_is_rated_by_its_last_row(model_of):
    model = model_of("llava")
    prompts = [zoo.prompt(model, 1, after=0), zoo.prompt(model, 1, after=1)]
    patch(model, "sparsevlm", budget=0.5)
    logits(model, zoo.batch(prompts))
    p = engine(model).current
    (chosen,) = p.at_input.values()
    assert [[r for r in row if r >= 0] for row in chosen.tolist()] == [[p.length - 1]] * 2


def test_gravity_is_the_product_of_rotated_ones():
    width, length = 128, 700
    angle = torch.arange(length)[:, None] * 10000 ** (-torch.arange(width // 2) / (width // 2))
    ones = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()], dim=1)
    assert_close("gravity", gravity(torch.arange(length), width, torch.float64), (ones @ ones[0]) / width)
    assert gravity(torch.arange(5000), 8, torch.float64).min() == 0.1
