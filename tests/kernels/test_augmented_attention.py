import pytest
import torch

from tests.kernels.attention import close, define, draw, each_dtype, inputs, name
from vtc.kernels.augmented_attention import augment, augmented_attention
from vtc.kernels.merged_attention import merged_attention

# batch, query heads, key heads, rows, keys, width
CASES = [(2, 4, 2, 33, 97, 64), (1, 6, 1, 20, 30, 80), (1, 2, 2, 9, 9, 72), (1, 7, 1, 1, 50, 128), (1, 2, 1, 5, 7, 16)]


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=name)
def test_equals_the_definition_with_gradients(case, dtype):
    given = inputs(*case, dtype)
    ours = [t.detach().requires_grad_() for t in given]
    true = [t.detach().double().requires_grad_() for t in given]
    out, (want, _) = augmented_attention(*ours), define(*true, None)
    assert out.dtype == dtype and out.shape == want.shape
    close("out", out, want)
    grad = draw(*out.shape, dtype=dtype, seed=5)
    got, right = torch.autograd.grad(out, ours, grad), torch.autograd.grad(want, true, grad.double())
    seen = given[3] > -torch.inf
    for tensor, a, b in zip(("q", "k", "v", "log_size"), got, right, strict=True):
        a, b = (a[seen], b[seen]) if tensor == "log_size" else (a, b)
        close(f"gradient of {tensor}", a.to(dtype), b)


@pytest.mark.parametrize("width", [16, 72, 80, 96, 126, 128, 256])
def test_the_logits_are_the_logits(width):
    """And heads are as wide as flash attention wants them."""
    q, k, v, size = inputs(1, 4, 2, 3, 5, width, torch.float64)
    size[size == -torch.inf] = 0
    wide_q, wide_k, wide_v = augment(q, k, v, size, 0.3)
    assert wide_q.shape[-1] == wide_k.shape[-1] == wide_v.shape[-1] == -(-(width + 2) // 8) * 8
    logits = 0.3 * wide_q[:, ::2] @ wide_k.mT
    close("logits", logits, 0.3 * q[:, ::2] @ k.mT + size[:, None, None])


def test_the_low_part_matters():
    """A size of 1000 needs more bits than bfloat16 has."""
    q, k, v, size = inputs(1, 1, 1, 1, 4, 64, torch.float64)
    size = torch.tensor([[1000.0, 1.0, 900.0, 33.0]], device=q.device).log()
    _, wide_k, _ = augment(q.bfloat16(), k.bfloat16(), v.bfloat16(), size, 0.125)
    high, low = wide_k[0, 0, :, 64].float(), wide_k[0, 0, :, 65].float()
    error = (high * 0.125 - size).abs().max(), ((high + low) * 0.125 - size).abs().max()
    assert error[0] > 1e-2 and error[1] < 1e-4


def test_causal_and_masked_as_sdpa():
    q, k, v, size = inputs(2, 4, 2, 12, 12, 16, torch.float64)
    size = size.clamp(min=0)
    end = torch.arange(1, 13, device=q.device).expand(2, -1)
    want, _ = merged_attention(q, k, v, size, end)
    close("causal", augmented_attention(q, k, v, size, is_causal=True), want)
    mask = torch.ones(12, 12, dtype=torch.bool, device=q.device).tril()
    close("mask", augmented_attention(q, k, v, size, attn_mask=mask), want)


def test_without_sizes_it_is_sdpa():
    q, k, v, _ = inputs(2, 4, 2, 5, 9, 16, torch.float32)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    close("out", augmented_attention(q, k, v), want.double())
