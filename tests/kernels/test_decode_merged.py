import pytest
import torch

from tests.kernels.attention import close, define, draw, each_dtype, inputs, name
from tests.kernels.interpreter import run_interpreted
from tests.tolerances import assert_same
from vtc.kernels.decode_merged import decode_merged
from vtc.kernels.merged_attention import merged_attention

# batch, query heads, key heads, rows, keys, width
CASES = [
    (2, 14, 2, 1, 333, 128),
    (1, 4, 4, 1, 100, 32),
    (2, 8, 1, 1, 65, 80),
    (1, 6, 2, 1, 1, 16),
    (1, 5, 1, 1, 1500, 64),
    (2, 6, 6, 1, 64, 72),
    (1, 4, 2, 1, 90, 256),
    (1, 3, 3, 1, 129, 96),
]


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=name)
def test_equals_the_definition(case, dtype):
    q, k, v, size = inputs(*case, dtype)
    out, lse = decode_merged(q, k, v, size)
    want = define(*(t.double() for t in (q, k, v, size)), None)
    assert out.dtype == dtype and lse.dtype == size.dtype
    close("out", out, want[0])
    close("lse", lse, want[1])


@each_dtype
def test_without_sizes_with_a_scale(dtype):
    q, k, v, _ = inputs(1, 4, 2, 1, 70, 32, dtype)
    out, lse = decode_merged(q, k, v, scale=0.3)
    want = define(q.double(), k.double(), v.double(), None, None, 0.3)
    close("out", out, want[0])
    close("lse", lse, want[1])


def test_is_merged_attention_of_one_row():
    given = inputs(2, 4, 2, 1, 200, 64, torch.float32)
    for a, b in zip(decode_merged(*given), merged_attention(*given), strict=True):
        close("result", a, b)


def test_a_cache_of_holes():
    """ReducingMask splits of holes weigh nothing; nothing but holes gives 0."""
    q, k, v, size = inputs(2, 4, 2, 1, 500, 32, torch.float32)
    size[0, 40:450] = -torch.inf
    size[1] = -torch.inf
    out, lse = decode_merged(q, k, v, size)
    want = define(*(t.double() for t in (q, k, v, size)), None)
    close("out", out, want[0])
    close("lse", lse, want[1])
    assert (out[1] == 0).all() and (lse[1] == -torch.inf).all()
    out, lse = decode_merged(q, k[:, :, :0], v[:, :, :0], size[:, :0])
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_strides_do_not_matter_and_bits_repeat():
    q = draw(1, 4, 1, 32).expand(2, -1, -1, -1)
    k, v, size = draw(2, 2, 32, 140).mT, draw(2, 2, 140, 64)[..., ::2], draw(1, 140).expand(2, -1)
    first = decode_merged(q, k, v, size)
    for again in (decode_merged(q, k, v, size), decode_merged(*(t.contiguous() for t in (q, k, v, size)))):
        for a, b in zip(first, again, strict=True):
            assert_same("result", a, b)


def test_opcheck():
    q, k, v, size = inputs(2, 4, 2, 1, 9, 16, torch.float32)
    torch.library.opcheck(torch.ops.vtc.decode_merged.default, (q, k, v, size, 0.25))
    torch.library.opcheck(torch.ops.vtc.decode_merged.default, (q, k, v, None, 0.25))


def test_many_rows_are_refused():
    q, k, v, size = inputs(1, 4, 2, 3, 9, 16, torch.float32)
    with pytest.raises(ValueError, match="q has 3 rows; decode_merged takes one"):
        decode_merged(q, k, v, size)


def test_kernels_in_the_interpreter():
    run_interpreted("test_decode_merged", "(definition and bfloat16) or holes or bits")


@pytest.mark.slow
def test_kernels_in_the_interpreter_all():
    run_interpreted("test_decode_merged", "not interpreter")
