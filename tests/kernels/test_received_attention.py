from itertools import product

import pytest
import torch

import vtc.kernels.received_attention as module
from tests.tolerances import TOL, assert_close, assert_same
from vtc.kernels.received_attention import received_attention


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(q, k, rows=None, end=None, allowed=None, log_size=None, scale=None):
    """The definition in loops."""
    (batch, heads, n, width), keys = q.shape, k.shape[2]
    out = torch.zeros(batch, heads, keys, dtype=torch.float64)
    for b, h in product(range(batch), range(heads)):
        listed = torch.arange(n) if rows is None else rows if rows.dim() == 1 else rows[b]
        for r, i in enumerate(listed.tolist()):
            if i < 0:
                continue
            logits = k[b, h // (heads // k.shape[1])].double() @ q[b, h, i].double()
            logits = logits * (width**-0.5 if scale is None else scale)
            if log_size is not None:
                logits = logits + log_size[b]
            seen = torch.ones(keys, dtype=torch.bool) if allowed is None else allowed[b].clone()
            if end is not None:
                seen[end[b, r] :] = False
            if seen.any():
                out[b, h, seen] += logits[seen].softmax(0)
    return out


OPTIONS = {
    "plain": {},
    "rows": {"rows": torch.tensor([6, 0])},
    "rows of each picture": {"rows": torch.tensor([[6, 2], [3, -1]])},
    "end": {"end": torch.tensor([[1, 2, 3, 4, 5, 6, 7], [3, 3, 9, 9, 0, 1, 2]])},
    "allowed": {"allowed": torch.tensor([[True] * 9, [False] * 4 + [True] * 5])},
    "log_size": {"log_size": draw(2, 9, seed=5)},
    "scale": {"scale": 0.7},
    "all": {
        "rows": torch.tensor([[6, 2, 6], [3, -1, 1]]),
        "end": torch.tensor([[9, 3, 1], [6, 9, 4]]),
        "allowed": torch.tensor([[True] * 9, [False] * 4 + [True] * 5]),
        "log_size": draw(2, 9, seed=5),
        "scale": 0.7,
    },
}


@pytest.mark.parametrize("block", [1, 60, 1 << 22])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("option", OPTIONS)
def test_equals_the_definition(option, heads, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    q, k = draw(2, heads[0], 7, 5), draw(2, heads[1], 9, 5, seed=1)
    got = received_attention(q, k, **OPTIONS[option])
    assert_close("received", got, reference(q, k, **OPTIONS[option]))


@pytest.mark.parametrize("dtype", TOL)
def test_every_dtype_sums_wide(dtype):
    q, k = draw(1, 2, 300, 8, dtype=dtype), draw(1, 2, 300, 8, seed=1, dtype=dtype)
    got = received_attention(q, k)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close("received", got, reference(q, k).to(got.dtype))
    assert_close("all that is given", got.sum(-1), torch.full((1, 2), 300.0))


def test_a_size_and_a_weight_of_each_pair():
    """Row by row, the sizes and weights of that row."""
    shapes = (2, 4, 7, 5), (2, 2, 9, 5), (2, 3, 9), (2, 3, 9)
    q, k, bias, weight = (draw(*shape, seed=n) for n, shape in enumerate(shapes))
    rows = torch.tensor([[6, 2, 6], [3, -1, 1]])
    got = received_attention(q, k, rows, log_size=bias, weights=weight)
    want = sum(reference(q, k, rows[:, r, None], log_size=bias[:, r]) * weight[:, None, r] for r in range(3))
    assert_close("received", got, want)


def test_a_size_is_as_good_as_copies():
    """A key of size s receives what s copies of it receive together."""
    q, k = draw(1, 2, 4, 5), draw(1, 2, 3, 5, seed=1)
    size = torch.tensor([[3.0, 1.0, 2.0]]).double()
    got = received_attention(q, k, log_size=size.log())
    copies = received_attention(q, k.repeat_interleave(torch.tensor([3, 1, 2]), dim=2))
    assert_close("received", got, torch.stack([copies[..., :3].sum(-1), copies[..., 3], copies[..., 4:].sum(-1)], -1))


def test_a_row_that_sees_nothing_gives_nothing():
    q, k = draw(1, 1, 2, 4), draw(1, 1, 3, 4, seed=1)
    got = received_attention(q, k, end=torch.tensor([[0, 3]]))
    assert_same("received", got, received_attention(q, k, rows=torch.tensor([1])))
    assert (received_attention(q, k, allowed=torch.zeros(1, 3, dtype=torch.bool)) == 0).all()


def test_what_is_hidden_can_be_nan():
    q, k = draw(1, 1, 2, 4), draw(1, 1, 3, 4, seed=1)
    k[:, :, 2] = torch.nan
    got = received_attention(q, k, allowed=torch.tensor([[True, True, False]]))
    assert_close("received", got[..., :2], received_attention(q, k[:, :, :2]))
    assert (got[..., 2] == 0).all()


def test_head_counts_that_do_not_divide():
    with pytest.raises(ValueError, match=r"4 query heads over 3 key heads; give a multiple"):
        received_attention(draw(1, 4, 2, 4), draw(1, 3, 2, 4))


def kernel_case(dtype, heads, key_heads, width, batch=2, n=37, keys=70):
    """Odd lengths, heads strided as models have them, and every option at once."""
    q = draw(batch, n, heads, width, dtype=dtype).transpose(1, 2)
    k = draw(batch, keys, key_heads, width, seed=1, dtype=dtype).transpose(1, 2)
    options = {
        "rows": torch.tensor([[36, 0, 5, -1, 5], [3, 7, -1, -1, 30]])[:batch],
        "end": torch.tensor([[70, 1, 0, 4, 33], [65, 64, 9, 9, 69]])[:batch],
        "allowed": draw(batch, keys, seed=2) > -0.5,
        "log_size": draw(batch, keys, seed=3).float().abs(),
    }
    return q, k, options


HEADS = [(1, 1, 16), (4, 2, 72), (8, 1, 80), (6, 2, 96), (4, 4, 128), (2, 1, 256), (7, 1, 64), (3, 3, 5)]


@pytest.mark.parametrize("dtype", [t for t in TOL if t != torch.float64])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_kernel_equals_float64(heads, dtype):
    q, k, options = kernel_case(dtype, *heads)
    want = reference(q, k, **options).float()
    got = received_attention(q, k, **options)
    assert_close("received", got, want)
    assert_same("again", received_attention(q, k, **options), got)


@pytest.mark.parametrize("rows", [1, 20, 37])
def test_kernel_takes_weights_and_lse(rows):
    q, k, _ = kernel_case(torch.float32, 4, 2, 32)
    options = {"rows": torch.arange(rows), "end": torch.arange(rows).expand(2, -1) * 2}  # row 0 sees nothing
    logits = q[:, :, :rows].double() @ k.double().repeat_interleave(2, 1).mT * 32**-0.5
    hidden = torch.arange(70) >= options["end"][:, None, :, None]
    logits = logits.masked_fill(hidden, -torch.inf)
    lse, weights = logits.logsumexp(-1), torch.rand(2, rows, generator=torch.Generator().manual_seed(3))
    want = (logits - lse[..., None]).exp().masked_fill(hidden, 0) * weights[:, None, :, None]
    for given in (None, lse.float()):
        got = received_attention(q, k, **options, lse=given, weights=weights)
        assert_close("received", got, want.sum(2).float())


def test_kernel_takes_strides_of_any_kind():
    q, k = draw(1, 4, 33, 24, dtype=torch.float32), draw(1, 2, 65, 24, seed=1, dtype=torch.float32)
    want = received_attention(q, k)
    assert_close("columns first", received_attention(q.mT.contiguous().mT, k.mT.contiguous().mT), want)
    assert_close("every second", received_attention(q.repeat_interleave(2, 2)[:, :, ::2], k), want)
    one = k[:, :, :1].expand(-1, -1, 65, -1)  # stride 0: all keys are one
    assert_close("one key", received_attention(q, one), torch.full((1, 4, 65), 33 / 65))


def test_kernel_gives_nothing_where_nothing_is_seen():
    q, k, _ = kernel_case(torch.float16, 4, 2, 32)
    k[:, :, 3] = torch.nan
    hidden = torch.zeros(2, 70, dtype=torch.bool)
    for options in (
        {"allowed": hidden},
        {"rows": torch.tensor([-1, -1])},
        {"end": torch.zeros(2, 37, dtype=torch.int64)},
    ):
        assert (received_attention(q, k, **options) == 0).all()
    got = received_attention(q, k, allowed=torch.arange(70).expand(2, -1) != 3)
    assert got.isfinite().all() and (got[..., 3] == 0).all()


@pytest.mark.parametrize("option", ["plain", "all"])
def test_kernel_opcheck(option):
    options = {"rows": None, "end": None, "allowed": None, "log_size": None} | OPTIONS[option]
    scale = options.pop("scale", 0.3)
    rows = options["rows"]
    q, k = draw(2, 4, 7 if rows is None else 3, 5, dtype=torch.float32), draw(2, 2, 9, 5, seed=1, dtype=torch.float32)
    torch.library.opcheck(torch.ops.vtc.received_attention.default, (q, k, *options.values(), None, None, scale))
