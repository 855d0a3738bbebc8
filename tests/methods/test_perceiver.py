"""The perceiver: untrained a selection, trained whatever its latents read; positions, padding and exact gradients."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import vtc
from tests import zoo
from tests.pictures import batch, check, merged, picture, ready, reduce, without_grid
from tests.support import REFUSED, logits
from tests.tolerances import assert_close, assert_same
from vtc.errors import BudgetError, UnsupportedModel, VTCError
from vtc.methods import DivPrune, Perceiver
from vtc.methods._resampler import HEAD, Places, angles, nearness_bias, rotate
from vtc.methods._share import share
from vtc.tokens import Reduction

FAMILIES = [name for name in zoo.NAMES if (name, "perceiver") not in REFUSED]


def stirred(**options) -> Perceiver:
    """A perceiver in float64 whose parameters are all away from where they start."""
    torch.manual_seed(1)
    method = ready(Perceiver(**options))
    module = method.module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method


def values(method: Perceiver, tokens, keep: list[int]) -> torch.Tensor:
    """``[I, K, D]``: what goes on, tokens of padding as whatever they are."""
    reduction = share(tokens, reduce(method, tokens, keep))
    return reduction.refine(tokens.features, merged(reduction, tokens))


def drawn(*shapes, pad: int = 0):
    return batch([picture(shape, seed, torch.float64) for seed, shape in enumerate(shapes)], pad)


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_it_is_divprune_with_share(family, model_of):
    model = model_of(family)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    with vtc.patched(model, "divprune", budget=0.4, share=True):
        want = logits(model, prompt)
    vtc.patch(model, "perceiver", budget=0.4)
    assert torch.equal(logits(model, prompt), want)
    with torch.no_grad():
        model.vtc_learned.write.bias.add_(0.1)
    assert not torch.equal(logits(model, prompt), want), "what it learns never reaches the logits"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_with_a_second_cut_it_starts_as_adaptive(family, model_of):
    model = model_of(family)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    cuts = {"layer": 3, "candidates": 2}
    with vtc.patched(model, "adaptive", budget=0.4, **cuts):
        want, spent = logits(model, prompt), vtc.report(model).average_tokens
    vtc.patch(model, "perceiver", budget=0.4, **cuts)
    assert torch.equal(logits(model, prompt), want) and vtc.report(model).average_tokens == spent
    with torch.no_grad():
        model.vtc_learned.write.bias.add_(0.1)
    assert not torch.equal(logits(model, prompt), want), "what it learns never reaches the logits"


def test_without_share_it_starts_from_the_chosen_tokens_alone():
    tokens, method = drawn((1, 4, 5)), ready(Perceiver(share=False))
    got, want = reduce(method, tokens, [6]), reduce(DivPrune(), tokens, [6])
    assert_same("slot", got.slot, want.slot)
    method.module.double()
    assert_same("values", got.refine(tokens.features, merged(got, tokens)), merged(want, tokens))


def test_fewer_latents_are_a_prefix_of_more():
    method, tokens = stirred(), drawn((1, 6, 6))
    many, few = reduce(method, tokens, [12]), reduce(method, tokens, [5])
    by_rank = {int(r): int(a) for r, a in zip(many.refine.keywords["rank"][0], many.anchor[0], strict=True)}
    for rank, anchor in zip(few.refine.keywords["rank"][0], few.anchor[0], strict=True):
        assert by_rank[int(rank)] == int(anchor)


def test_ragged_pictures_in_a_batch_get_what_they_get_alone():
    shapes, keep = [(1, 4, 5), (3, 2, 3), (1, 1, 1)], [7, 4, 1]
    method, tokens = stirred(), drawn(*shapes, pad=2)
    got = values(method, tokens, keep)
    for i, (shape, k) in enumerate(zip(shapes, keep, strict=True)):
        one = batch([picture(shape, i, torch.float64)])
        assert_close(f"picture {i}", got[i, :k], values(method, one, [k])[0])


def test_a_picture_without_tokens_makes_no_nan():
    method, tokens = stirred(), drawn((1, 0, 0), (1, 3, 3))
    got = values(method, tokens, [0, 4])
    got[1, :4].sum().backward()
    assert got[1].isfinite().all()
    assert all(p.grad.isfinite().all() for p in method.module.parameters())


def test_every_token_is_read_and_the_place_of_a_picture_does_not_matter():
    """Positions are relative: a picture that begins elsewhere in its grid is the same picture."""
    method, tokens = stirred(), drawn((2, 4, 4))
    tokens.features.requires_grad_()
    reduction = reduce(method, tokens, [3])
    got = reduction.refine(tokens.features, merged(reduction, tokens))
    (grad,) = torch.autograd.grad(got.sum(), tokens.features)
    assert (grad.abs().sum(2) > 0).all()
    with torch.no_grad():
        tokens.grid += torch.tensor([3, 100, 50])
        moved = reduce(method, tokens, [3])
        again = moved.refine(tokens.features, merged(moved, tokens))
        torch.testing.assert_close(again, got.detach(), atol=1e-4, rtol=1e-4)  # angles are float32
        tokens.grid[0, 0, 1] += 2
        other = reduce(method, tokens, [3]).refine(tokens.features, merged(moved, tokens))
        assert (other - got).abs().max() > 1e-3, "positions do not matter at all"


def test_no_picture_is_too_large():
    """There is no table of positions to leave: 36 times the testbed's tokens, and 90 frames."""
    method = stirred()
    for shape in ((1, 84, 84), (90, 4, 4)):
        tokens = drawn(shape)
        assert values(method, tokens, [12]).isfinite().all()


def test_heads_begin_with_different_reach():
    method = ready(Perceiver(width=4 * HEAD))
    at = torch.tensor([[[0, 0, 0]]])
    grid = torch.tensor([[[0, 0, 0], [0, 0, 4], [1, 0, 0]]])
    block = method.module.blocks[0]
    where = Places(at, grid, torch.ones(1, 3, dtype=torch.bool), torch.ones(1))
    bias = nearness_bias(where.far, where.frames, block.nearness, block.same_frame)[0, :, 0]
    assert (bias[:, 0] == 0).all()
    assert (bias[:, 1].diff() > 0).all()  # each head sees farther than the one before
    assert (bias[:, 1:] < 0).all()


def test_gradients_are_exact():
    method, tokens = stirred(latents=4, depth=1), drawn((1, 2, 3), (2, 1, 2), pad=1)
    keep = [3, 2]
    features = tokens.features.nan_to_num().requires_grad_()
    reduction = share(tokens, reduce(method, tokens, keep))
    start = merged(reduction, tokens).nan_to_num().detach().requires_grad_()
    learned = [method.module.latents, method.module.crowd, method.module.blocks[0].nearness, method.module.write.weight]

    def made(features, start, *_):
        out = reduction.refine(features, start)
        return out[0, :3], out[1, :2]

    assert gradcheck(made, (features, start, *learned), eps=1e-6, atol=1e-6)


def test_gradients_of_the_parts_are_exact():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, HEAD, dtype=torch.float64, requires_grad=True)
    grid = torch.randint(0, 9, (1, 3, 3))
    assert gradcheck(lambda x: rotate(x, angles(grid)), (x,))
    far, frames = torch.rand(1, 2, 3, dtype=torch.float64), torch.rand(1, 2, 3, dtype=torch.float64)
    slopes = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: nearness_bias(far, frames, s[0], s[1]), (slopes,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_of_the_decoder_and_of_its_own(dtype):
    method, tokens = stirred(), batch([picture((1, 4, 5), 1, dtype), picture((1, 3, 3), 2, dtype)], 1)
    for own in (dtype, torch.float32):
        method.module.to(own)
        got = values(method, tokens, [5, 2])
        assert got.dtype == dtype
        assert got[0].isfinite().all() and got[1, :2].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": 0}, "latents=0 is not an int >= 1"),
        ({"latents": True}, "latents=True"),
        ({"depth": 1.5}, r"depth=1\.5"),
        ({"width": 40}, "width=40 is not a multiple of 32"),
        ({"width": 0}, "width=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Perceiver(**options)


def test_what_it_cannot_do_is_refused():
    tokens = drawn((1, 4, 4))
    with pytest.raises(BudgetError, match=r"keep 5 tokens .* 4 latents; .* latents=5"):
        reduce(ready(Perceiver(latents=4)), tokens, [5])
    with pytest.raises(UnsupportedModel, match="place in its picture"):
        reduce(ready(Perceiver()), without_grid(tokens), [5])
    with pytest.raises(VTCError, match=r"vtc\.patch"):
        Perceiver().reduce(0, tokens, {}, [5])


def test_videos_and_their_frames(model_of):
    model = model_of("qwen2_5_vl")
    prompt = zoo.video_prompt(model)
    vtc.patch(model, "perceiver", budget=0.25)
    want = logits(model, prompt)
    with torch.no_grad():
        model.vtc_learned.write.bias.add_(0.1)
    assert not torch.equal(logits(model, prompt), want)
    assert vtc.report(model).average_tokens == vtc.report(model).pictures[0].tokens_in // 4


def test_the_contract_holds_with_newly_made_values():
    tokens = drawn((1, 4, 5), (1, 2, 2), pad=1)
    got = reduce(stirred(), tokens, [6, 2])
    check(got, tokens, [6, 2])
    assert isinstance(got, Reduction) and got.merges and got.refine is not None
