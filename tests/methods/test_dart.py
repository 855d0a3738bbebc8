import pytest
import torch

from tests import zoo
from tests.golden import cases
from tests.pictures import batch, picture, plain, reduce
from tests.support import engine, logits
from tests.tolerances import assert_close, assert_same
from vtc.methods.base import Stage
from vtc.methods.dart import DART, TEXT, unlike
from vtc.patching.api import patch
from vtc.signals.key_norm import KeyNorm, l1_norm


@pytest.mark.parametrize(("given", "want", "params"), cases("dart"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """In the order of pivots that theirs has (a Python set's), which is not ours."""
    start, n = params["image_start"], params["image_len"]
    state = given["state"].to(dtype)
    norms = l1_norm(given["keys"].to(dtype).transpose(1, 2).flatten(2))[0]
    picture_pivots = norms[start : start + n].argsort(descending=True)[: params["pivot_image"]]
    assert_same("pivots", picture_pivots, want["image_pivots"])
    assert_same("text pivots", start + n + norms[start + n :].argsort(descending=True)[:4], want["text_pivots"])
    tokens = plain(state[:, start : start + n])
    kept = torch.zeros(1, n, dtype=torch.bool)
    kept[0, picture_pivots] = True
    got = unlike(state[:, want["pivot_order"]], kept, tokens, [len(want["keep"])])
    assert_same("kept", got[0].nonzero()[:, 0], want["keep"])


def slow(x, norm, text, keep, pivots=4):
    """The definition for one picture, in lists."""
    own = norm.argsort(descending=True, stable=True)[: min(keep, pivots)].tolist()
    states = [x[n] for n in own] + list(text)
    kept, left = list(own), keep - len(own)
    for p, state in enumerate(states):
        take = left // len(states) + (p < left % len(states))
        cosine = torch.nn.functional.cosine_similarity(x, state[None])
        pool = sorted((n for n in range(len(x)) if n not in kept), key=lambda n: float(cosine[n]))
        kept += pool[:take]
    return sorted(kept)


@pytest.mark.parametrize("keep", [1, 3, 9, 20])
@pytest.mark.parametrize("words", [0, 2, 4])
def test_equals_the_definition(keep, words):
    g = torch.Generator().manual_seed(keep)
    tokens = batch([picture((1, 5, 6), 1, torch.float64), picture((1, 3, 3), 2, torch.float64)], 2)
    norm = torch.rand(2, 32, generator=g, dtype=torch.float64)
    text = torch.randn(2, 4, 8, generator=g, dtype=torch.float64)
    text[:, words:] = torch.nan
    wanted = [keep, min(keep, 7)]
    got = DART().reduce(0, tokens, {KeyNorm(): norm, TEXT: text}, wanted).anchor
    for i, (n, k) in enumerate(zip(tokens.count, wanted, strict=True)):
        assert got[i, :k].tolist() == slow(tokens.features[i, :n], norm[i, :n], text[i, :words], k)


def test_the_double_of_the_pivot_goes_first():
    tokens = batch([picture((1, 4, 4), 1)])
    tokens.features[0, 8] = 3 * tokens.features[0, 0]
    norm = torch.linspace(1, 0, 16)[None]
    text = torch.full((1, 4, 8), torch.nan)
    kept = DART(pivots=1).reduce(0, tokens, {KeyNorm(): norm, TEXT: text}, [15]).anchor[0].tolist()
    assert kept == [n for n in range(16) if n != 8]


def test_layers():
    assert DART().stages() == (Stage(2 / 32),)
    assert DART(layer=0).stages() == (Stage(0),)
    assert DART(layer=0, share=True).share
    with pytest.raises(ValueError, match="share=True needs"):
        DART(share=True)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_signals_are_the_models_own_keys_and_states(family, layer, side, model_of):
    """Against the unpatched model's cache and hidden states, row by row."""
    model = model_of(family)
    prompts = [zoo.prompt(model, n, seed=n, after=k) for n, k in ((1, 7), (2, 3))]
    prompt = zoo.batch(prompts, side=side)
    with torch.no_grad():
        out = model(**prompt, use_cache=True, output_hidden_states=True)
    states = out.hidden_states[layer]
    norms = l1_norm(out.past_key_values.layers[layer - 1].keys.transpose(1, 2).flatten(2)) if layer else l1_norm(states)
    seen = []
    reduce = DART.reduce

    def spy(self, stage, tokens, signals, keep):
        seen.append((tokens, signals))
        return reduce(self, stage, tokens, signals, keep)

    patch(model, DART(layer=layer), budget=0.8)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(DART, "reduce", spy)
        logits(model, prompt)
    (tokens, signals), p = seen[0], engine(model).current
    for i, b in enumerate(tokens.prompt.tolist()):
        rows = tokens.row[i, : tokens.count[i]]
        assert_close("key norms", signals[KeyNorm()][i, : tokens.count[i]], norms[b, rows])
        behind = [r for r in p.layout.text[b].nonzero()[:, 0].tolist() if r > int(rows.max())]
        best = sorted(behind, key=lambda r: -float(norms[b, r]))[:4]
        assert_close("text pivots", signals[TEXT][i, : len(best)], states[b, best])
        assert signals[TEXT][i, len(best) :].isnan().all()


def test_a_nan_comes_last():
    tokens = batch([picture((1, 4, 4), 1)])
    tokens.features[0, 3] = torch.nan
    assert 3 not in reduce(DART(), tokens, [15]).anchor[0].tolist()


@pytest.mark.parametrize("pivots", [0, -1, 2.0, True, "4", None])
def test_bad_options(pivots):
    with pytest.raises(ValueError, match=r"pivots=.* is not an int >= 1"):
        DART(pivots=pivots)
