"""Straight-through gates: the relaxation has exact gradients, a key's credit is what it makes of the output."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from tests.tolerances import assert_close
from vtc.engine.attention.gates import Gates, key_credit
from vtc.methods._soft_top_k import soft_top_k


def drawn(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gates_add_up_to_what_is_kept_and_harden():
    score, keep = drawn(2, 9), torch.tensor([3.0, 5.0], dtype=torch.float64)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 6:] = False
    soft = soft_top_k(score, keep, valid)
    assert_close("sums", soft.sum(1), keep)
    assert (soft[~valid] == 0).all()
    assert (soft.argsort(dim=1)[1] == score.argsort(dim=1)[1]).all()
    hard = soft_top_k(score, keep, valid, temperature=1e-3)
    best = score.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True)
    assert [best[i, : int(k)].sort().values.tolist() for i, k in enumerate(keep)] == [
        (row > 0.5).nonzero()[:, 0].tolist() for row in hard
    ]


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_relaxation_has_an_exact_gradient_in_scores_and_in_how_many_stay(temperature):
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1, 4:] = False
    score, keep = drawn(3, 7).requires_grad_(), torch.tensor([1.0, 2.5, 6.0], dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda s, k: soft_top_k(s, k, valid, temperature), (score, keep))


@pytest.mark.parametrize("keep", [1e-9, 7.0])
def test_nearly_nothing_and_everything_stay_finite(keep):
    score = (40 * drawn(1, 7)).requires_grad_()
    soft_top_k(score, torch.tensor([keep], dtype=torch.float64), torch.ones(1, 7, dtype=torch.bool)).sum().backward()
    assert score.grad.isfinite().all()


def attention(q, k, v, bias, kept, scale, softcap=None):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logit = q @ k.transpose(2, 3) * scale
    logit = logit if softcap is None else softcap * (logit / softcap).tanh()
    return ((logit + bias).masked_fill(~kept[:, None, None], -torch.inf).softmax(dim=3) @ v).transpose(1, 2)


def example(cap=None):
    """Two prompts, two heads to a key head, past columns, sizes, a causal mask, and some keys left out."""
    q, k, v = drawn(2, 4, 5, 8), drawn(2, 2, 9, 8, seed=1), drawn(2, 2, 9, 8, seed=2)
    seen = torch.arange(9) <= torch.arange(5)[:, None] + 4
    bias = torch.zeros(2, 1, 5, 9, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    bias = bias + torch.tensor([1.0] * 5 + [3.0] + [1.0] * 3, dtype=torch.float64).log()
    kept = torch.ones(2, 9, dtype=torch.bool)
    kept[0, [2, 5, 6]] = kept[1, [1, 8]] = False
    return q, k, v, bias, kept, 0.4, cap


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_credit_is_the_output_with_a_key_less_the_output_without(cap, block, monkeypatch):
    monkeypatch.setattr("vtc.engine.attention.gates.BLOCK", block)
    given = example(cap)
    out, grad, kept = attention(*given), drawn(2, 5, 4, 8, seed=3), given[4]
    want = torch.empty(2, 9, dtype=torch.float64)
    for j in range(9):
        there, gone = kept.clone(), kept.clone()
        there[:, j], gone[:, j] = True, False
        made = attention(*given[:4], there, *given[5:]) - attention(*given[:4], gone, *given[5:])
        want[:, j] = (grad * made).sum(dim=(1, 2, 3))
    got = key_credit(grad, out, *given)
    assert_close("credit", got, want)
    assert want.abs().min() > 1e-6


def test_an_output_goes_through_unchanged_and_its_gradient_reaches_gate_and_model():
    q, k, v, bias, kept, scale, _ = example()
    value = v.clone().requires_grad_()
    out = attention(q, k, value, bias, kept, scale)
    gate = torch.zeros(2, 9, dtype=torch.float64, requires_grad=True)
    through = Gates(gate, k, value, bias, kept).through(out, q, scale)
    assert torch.equal(through, out)
    grad = drawn(*out.shape, seed=3)
    (through * grad).sum().backward()
    assert_close("gate", gate.grad, key_credit(grad, out.detach(), q, k, v, bias, kept, scale))
    alone = v.clone().requires_grad_()
    (attention(q, k, alone, bias, kept, scale) * grad).sum().backward()
    assert torch.equal(value.grad, alone.grad)


def test_one_key_with_all_attention_and_a_row_that_sees_nothing_stay_finite():
    q, k, v, bias, kept, _, _ = (x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in example())
    bias[0, :, 0] = torch.finfo(torch.float32).min
    out = attention(q, k, v, bias, kept, 50.0)
    assert key_credit(torch.ones_like(out), out, q, k, v, bias, kept, 50.0).isfinite().all()
