import pytest
import torch

import vtc.kernels.merged_attention as module
from tests.kernels.attention import DEVICE, close, define, draw, each_dtype, ends, inputs, name
from tests.kernels.interpreter import run_interpreted
from tests.tolerances import assert_close, assert_same
from vtc.kernels.merged_attention import causal_end, merged_attention

# batch, query heads, key heads, rows, keys, width
CASES = [
    (2, 4, 2, 33, 97, 64),
    (1, 2, 2, 70, 70, 32),
    (2, 6, 1, 40, 65, 80),
    (1, 1, 1, 1, 200, 16),
    (1, 8, 1, 17, 31, 72),
    (1, 7, 1, 20, 45, 96),
    (1, 2, 2, 130, 130, 128),
    (1, 2, 1, 9, 40, 256),
    (3, 5, 5, 16, 64, 24),
    (1, 2, 1, 3, 5, 320),  # wider than the kernels have tiles for
]


@each_dtype
@pytest.mark.parametrize("kind", ["all", "causal", "any"])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_equals_the_definition_with_gradients(case, kind, dtype):
    given = inputs(*case, dtype)
    end = ends(kind, case[0], *case[3:5])
    ours = [t.detach().requires_grad_() for t in given]
    true = [t.detach().double().requires_grad_() for t in given]
    out, lse = merged_attention(*ours, end)
    want, want_lse = define(*true, end)
    assert out.dtype == dtype and lse.dtype == given[3].dtype
    close("out", out, want)
    close("lse", lse, want_lse)
    grads = draw(*out.shape, dtype=dtype, seed=5), draw(*lse.shape, dtype=lse.dtype, seed=6)
    got = torch.autograd.grad((out, lse), ours, grads)
    right = torch.autograd.grad((want, want_lse), true, [g.double() for g in grads])
    for tensor, a, b in zip(("q", "k", "v", "log_size"), got, right, strict=True):
        close(f"gradient of {tensor}", a.to(dtype), b)


@each_dtype
def test_without_sizes_with_a_scale(dtype):
    q, k, v, _ = inputs(2, 4, 2, 20, 30, 32, dtype)
    out, lse = merged_attention(q, k, v, scale=0.3)
    want = define(q.double(), k.double(), v.double(), None, None, 0.3)
    close("out", out, want[0])
    close("lse", lse, want[1])


def test_a_size_is_as_good_as_copies():
    """The exact meaning of a size: the result equals repeating the row that often."""
    q, k, v, _ = inputs(1, 2, 2, 6, 3, 16, torch.float64)
    size = torch.tensor([3, 1, 2], device=DEVICE)
    out, lse = merged_attention(q, k, v, size.double().log()[None])
    copies = merged_attention(q, k.repeat_interleave(size, 2), v.repeat_interleave(size, 2))
    assert_close("out", out, copies[0])
    assert_close("lse", lse, copies[1])


def test_causal_end_is_causal():
    """Equal positions see each other, gaps count for nothing, and with no gaps it is what SDPA calls causal."""
    query, key = torch.tensor([[0, 3, 3, 7]]), torch.tensor([[0, 3, 3, 5, 9]])
    assert causal_end(query, key).tolist() == [[1, 3, 3, 4]]
    q, k, v, _ = inputs(2, 4, 4, 12, 12, 16, torch.float64)
    place = torch.arange(12, device=DEVICE).expand(2, -1)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close("out", merged_attention(q, k, v, end=causal_end(place, place))[0], want)


def test_chunks_of_a_prefill_are_the_whole():
    q, k, v, size = inputs(2, 4, 2, 30, 30, 32, torch.float32)
    end = torch.arange(1, 31, device=DEVICE).int().expand(2, -1)
    whole = merged_attention(q, k, v, size, end)[0]
    parts = [
        merged_attention(q[:, :, a:b], k[:, :, :b], v[:, :, :b], size[:, :b], end[:, a:b])[0]
        for a, b in ((0, 11), (11, 12), (12, 30))
    ]
    assert_close("out", torch.cat(parts, 2), whole)


@pytest.mark.parametrize("how", ["no keys", "holes", "end"])
def test_rows_that_see_nothing(how):
    q, k, v, size = inputs(2, 4, 2, 5, 20, 16, torch.float32)
    if how == "no keys":
        k, v, size = k[:, :, :0], v[:, :, :0], size[:, :0]
    size = torch.full_like(size, -torch.inf) if how == "holes" else size
    end = torch.zeros(2, 5, dtype=torch.int32, device=DEVICE) if how == "end" else None
    given = [t.detach().requires_grad_() for t in (q, k, v, size)]
    out, lse = merged_attention(*given, end)
    assert (out == 0).all() and (lse == -torch.inf).all()
    out.sum().backward()
    assert all((t.grad == 0).all() for t in given)


def test_no_rows():
    given = [draw(2, 4, 0, 16), draw(2, 2, 5, 16), draw(2, 2, 5, 16), draw(2, 5)]
    given = [t.requires_grad_() for t in given]
    out, lse = merged_attention(*given)
    assert out.shape == (2, 4, 0, 16) and lse.shape == (2, 4, 0)
    (out.sum() + lse.sum()).backward()
    assert all((t.grad == 0).all() for t in given)


def test_strides_do_not_matter():
    """Expanded, sliced and transposed tensors give the bits that their copies give; so do expanded gradients."""
    q = draw(1, 4, 20, 32).expand(2, -1, -1, -1)
    k = draw(2, 2, 32, 40).mT
    v = draw(2, 2, 40, 64)[..., ::2]
    size = draw(1, 40).abs().expand(2, -1)
    end = torch.arange(20, 40, device=DEVICE).expand(2, -1)  # int64, and stride 0
    results = []
    for copy in (False, True):
        given = [(t.contiguous() if copy else t).detach().requires_grad_() for t in (q, k, v, size)]
        out, lse = merged_attention(*given, end.contiguous() if copy else end)
        (out.sum() + lse.sum()).backward()  # gradients of stride 0
        results.append([out, lse, *(t.grad for t in given)])
    for a, b in zip(*results, strict=True):
        assert_same("result", a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_the_same_bits_on_every_run(dtype):
    runs = []
    for _ in range(2):
        given = [t.detach().requires_grad_() for t in inputs(2, 4, 2, 50, 70, 32, dtype)]
        out, lse = merged_attention(*given, ends("causal", 2, 50, 70))
        (out.float().square().sum() + lse.square().masked_fill(lse == -torch.inf, 0).sum()).backward()
        runs.append([out, lse, *(t.grad for t in given)])
    for a, b in zip(*runs, strict=True):
        assert_same("result", a, b)


def test_half_precision_errs_no_more_than_torch():
    """At most twice the error of the same mathematics in bfloat16 torch."""
    q, k, v, size = inputs(1, 4, 2, 64, 96, 64, torch.bfloat16)
    want = define(q.double(), k.double(), v.double(), size.double(), None)[0]
    ours = (merged_attention(q, k, v, size)[0].double() - want).norm()
    theirs = (define(q, k, v, size.bfloat16(), None)[0].double() - want).norm()
    assert ours <= 2 * theirs


def test_the_reference_holds_one_block_of_weights(monkeypatch):
    given = [t.detach().requires_grad_() for t in inputs(2, 4, 2, 13, 20, 16, torch.float64)]
    results = []
    for block in (1, 700, 1 << 22):
        monkeypatch.setattr(module, "BLOCK", block)
        out, lse = merged_attention(*given)
        results.append([out, lse, *torch.autograd.grad((out.square() + lse[..., None]).sum(), given)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_close("result", a, b)


@pytest.mark.parametrize("given", ["plain", "sizes and ends"])
def test_opcheck(given):
    q, k, v, size = (t.detach().requires_grad_() for t in inputs(2, 4, 2, 7, 9, 16, torch.float32))
    end = torch.full((2, 7), 9, dtype=torch.int32, device=DEVICE)
    more = (None, None) if given == "plain" else (size, end)
    torch.library.opcheck(torch.ops.vtc.merged_attention.default, (q, k, v, *more, 0.25))
    q, k, v = (t.detach() for t in (q, k, v))
    out, lse = torch.ops.vtc.merged_attention(q, k, v, None, end, 0.25)
    arguments = (q, k, v, None, end, out, lse, torch.ones_like(out), torch.ones_like(lse), 0.25)
    torch.library.opcheck(torch.ops.vtc.merged_attention_backward.default, arguments)


def test_what_does_not_fit_is_refused():
    q, k, v, size = inputs(2, 4, 2, 5, 6, 16, torch.float32)
    end = torch.full((2, 5), 6, device=DEVICE)
    for wrong, message in (
        ((q[:, :3], k, v), "3 query heads over 2 key heads"),
        ((q, k, v[:, :, 1:]), "must be alike and fit q"),
        ((q, k.half(), v), "give them one dtype"),
        ((q, k, v, size[:, 1:]), r"log_size is \(2, 5\); give one value a key: \(2, 6\)"),
        ((q, k, v, size, end[:, 1:]), r"end is \(2, 4\); give one count of keys a row: \(2, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            merged_attention(*wrong)


def test_kernels_in_the_interpreter():
    some = "(definition and bfloat16 and (33-97 or 40-256 or 5-320)) or strides or bits or nothing or no_rows"
    run_interpreted("test_merged_attention", some)


@pytest.mark.slow
def test_kernels_in_the_interpreter_all():
    run_interpreted("test_merged_attention", "not interpreter and not block")
