import pytest
import torch

from tests import zoo
from tests.golden import cases
from tests.pictures import batch, picture, plain
from tests.support import engine, logits
from tests.tolerances import assert_close, assert_same
from vtc.methods.cdpruner import CDPruner, scaled
from vtc.patching.api import patch
from vtc.signals.text_relevance import TextRelevance


@pytest.mark.parametrize(("given", "want", "params"), cases("cdpruner"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """With the authors' relevance: minus the mean cosine in CLIP's space."""
    x, patches, words = (given[name].to(dtype) for name in ("x", "image_embeds", "text_embeds"))
    unit = torch.nn.functional.normalize
    relevance = -(unit(patches, dim=-1) @ unit(words, dim=-1).T).mean(-1)
    tokens = plain(x)
    got = CDPruner().reduce(0, tokens, {TextRelevance(): relevance}, [params["T"]] * len(x))
    assert_same("kept", got.anchor, want["keep"])
    assert_close("relevance", scaled(relevance, tokens.valid), want["relevance"])


def test_is_the_slow_determinant():
    """Each choice makes the determinant of the chosen kernel largest."""
    tokens = batch([picture((1, 4, 5), 1, torch.float64)])
    relevance = torch.rand(1, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = torch.nn.functional.normalize(tokens.features[0], dim=1) * scaled(relevance, tokens.valid)[0, :, None]
    kernel, chosen = unit @ unit.T, []
    while len(chosen) < 6:
        left = [n for n in range(20) if n not in chosen]
        chosen.append(max(left, key=lambda n: float(torch.det(kernel[chosen + [n]][:, chosen + [n]]))))
    assert CDPruner().reduce(0, tokens, {TextRelevance(): relevance}, [6]).anchor[0].tolist() == sorted(chosen)


def test_relevance_is_scaled_by_picture():
    tokens = batch([picture((1, 2, 2), 1), picture((1, 1, 2), 2), picture((1, 1, 2), 3)])
    score = torch.tensor([[1.0, 3.0, torch.nan, 2.0], [5.0, 5.0, 9.0, 9.0], [-1.0, 0.0, torch.nan, 7.0]])
    want = torch.tensor([[0.0, 1.0, 0.0, 0.5], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert_close("scaled", scaled(score, tokens.valid), want)


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3", "qwen2_5_vl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_relevance_is_the_mean_cosine_with_the_prompts_own_text(family, side, model_of):
    model = model_of(family)
    prompts = [zoo.prompt(model, n, seed=n, after=3 * n) for n in (1, 2)]
    prompt = zoo.batch(prompts, side=side)
    patch(model, "cdpruner", budget=0.5)
    p, seen = engine(model), []
    reduce = CDPruner.reduce

    def spy(self, stage, tokens, signals, keep):
        seen.append((tokens.features.clone(), signals[TextRelevance()], tokens))
        return reduce(self, stage, tokens, signals, keep)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(CDPruner, "reduce", spy)
        logits(model, prompt)
    features, got, tokens = seen[0]
    ids, embed = prompt["input_ids"], model.get_input_embeddings()
    vision = torch.stack([ids == token for token in p.family.token_ids.values()]).any(0)
    for i, b in enumerate(tokens.prompt.tolist()):
        words = embed(ids[b, prompt["attention_mask"][b].bool() & ~vision[b]])
        n = tokens.count[i]
        want = torch.nn.functional.cosine_similarity(features[i, :n, None], words[None], dim=2).mean(1)
        assert_close("relevance", got[i, :n], want)
