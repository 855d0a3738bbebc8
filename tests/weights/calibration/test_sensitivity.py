"""What an error in a layer's weights does to the answer: against divergences computed in full, in float64."""

import itertools

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests import zoo
from vtc.errors import WeightsError
from vtc.patching.calibration import divergence
from vtc.weights.calibration.block_walk import Walk
from vtc.weights.calibration.sensitivity import Sensitivity, doubt, doubtful, sensitivities, weighed_margins
from vtc.weights.planning.plan import Probe
from vtc.weights.select import layers_of

WIDTH, OUT = 5, 3


class Tiny:
    """Two answers from a linear layer of three outputs, one row a prompt: its divergence can be computed in full."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.x, self.weight, self.head = draw(40, WIDTH), 0.5 * draw(OUT, WIDTH), draw(2, OUT)

    def logits(self, outputs):
        return outputs @ self.head.T

    def sensitivity(self):
        layer = nn.Linear(WIDTH, OUT, bias=False)
        outputs = (self.x @ self.weight.T).requires_grad_()
        (gradient,) = torch.autograd.grad(weighed_margins(self.logits(outputs)).sum(), outputs)
        found = Sensitivity.empty(layer)
        found.add(self.x, gradient)
        return found

    def true(self, change):
        before, after = (self.logits(self.x @ w.T).log_softmax(-1) for w in (self.weight, self.weight + change))
        return float(divergence(before, after).sum())


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_divergence_over_all_signs_of_the_rows_of_a_change(seed):
    tiny = Tiny(seed)
    change = 1e-3 * torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)
    signs = [torch.tensor(s, dtype=torch.float64)[:, None] for s in itertools.product((-1, 1), repeat=OUT)]
    true = sum(tiny.true(change * s) for s in signs) / len(signs)
    assert tiny.sensitivity().divergence(change) == pytest.approx(true, rel=2e-3)
    assert tiny.sensitivity().divergence(2 * change) == pytest.approx(4 * tiny.sensitivity().divergence(change))


def test_inputs_that_no_prompt_in_doubt_has_cost_nothing():
    """The control: an error on them is as large as any other to the plain moment of the inputs."""
    tiny = Tiny()
    tiny.x[:, 0] = 0
    tiny.x[0] = torch.tensor([1.0, 0, 0, 0, 0])
    tiny.weight[:, 0] = 40 * torch.linalg.pinv(tiny.head) @ torch.tensor([1.0, -1.0], dtype=torch.float64)  # sure
    heard, unheard = torch.zeros(2, OUT, WIDTH, dtype=torch.float64)
    unheard[:, 0], heard[:, 1] = 1e-3, 1e-3
    assert tiny.sensitivity().divergence(unheard) < 1e-9 * tiny.sensitivity().divergence(heard)
    assert tiny.true(unheard) < 1e-6 * tiny.true(heard)


def test_a_model_is_read_and_left_as_it_was():
    model = zoo.build("llava")
    flags = [p.requires_grad for p in model.parameters()]
    prompts = [zoo.prompt(model, pictures=n) for n in (1, 2)]
    walk = Walk(model, prompts)
    layers = layers_of(model, walk.family)
    found = sensitivities(walk, layers)
    assert found.keys() == layers.keys() and all(float(s.outputs.sum()) > 0 for s in found.values())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(layer._forward_hooks for layer in layers.values())
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    frozen = sensitivities(walk, layers)
    for name in layers:
        torch.testing.assert_close(frozen[name].moment, found[name].moment)


def test_prompts_padded_into_a_batch_weigh_as_they_do_alone():
    model = zoo.build("llava")
    prompts = [zoo.prompt(model, pictures=n) for n in (1, 2)]
    layers = layers_of(model, Walk(model, prompts).family)
    apart, together = (sensitivities(Walk(model, given), layers) for given in (prompts, [zoo.batch(prompts)]))
    for name in layers:
        torch.testing.assert_close(apart[name].moment, together[name].moment, rtol=1e-3, atol=1e-7)


def test_the_fewest_prompts_that_hold_the_doubt_are_kept():
    model = zoo.build("llava")
    walk = Walk(model, [zoo.prompt(model, seed=n) for n in range(6)])
    doubts = torch.cat([doubt(logits) for logits in walk.next_logits()])
    assert ((0 < doubts) & (doubts <= 0.25)).all()
    best = walk.examples[int(doubts.argmax())]
    few, prompts = doubtful(walk, share=float(doubts.max() / doubts.sum()) * 0.999)
    assert prompts == 6 and [each is best for each in few.examples] == [True]
    assert len(doubtful(walk, share=1 - 1e-9)[0].examples) == 6


@pytest.mark.parametrize("read", [lambda model, prompts: doubtful(Walk(model, prompts)), Probe])
def test_logits_of_all_rows_are_held_for_one_prompt_at_a_time(read):
    """600 rows of 32,000 logits take 77 MB a prompt, and there are hundreds of prompts."""
    model, held = zoo.build("llava"), []

    def hear(module, args, output):
        assert all(each.expired() for each in held)
        held.append(StorageWeakRef(output.logits.untyped_storage()))

    model.register_forward_hook(hear)
    read(model, [zoo.prompt(model, seed=n) for n in range(3)])
    assert len(held) == 3


def test_layers_that_are_not_linear_are_refused():
    model = zoo.build("llava")
    walk = Walk(model, [zoo.prompt(model)])
    with pytest.raises(WeightsError, match="no linear layer"):
        sensitivities(walk, {"model.language_model.embed_tokens": model.model.language_model.embed_tokens})
