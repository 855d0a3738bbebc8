from itertools import product

import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, check, merged, picture, reduce, video
from tests.tolerances import assert_close, assert_same
from vtc.methods.holitom import HoliTom, windows
from vtc.signals.tower_attention import TowerAttention


@pytest.mark.parametrize(("given", "want", "params"), cases("holitom"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Their tokens come window by window, what stands still first."""
    tokens = video(given["x"].to(dtype))
    method, keep = HoliTom(alike=params["tau"], own=params["Beta"]), len(want["tokens"])
    got = method.reduce(0, tokens, {TowerAttention(-2): given["attn"].flatten()[None].to(dtype)}, [keep])
    check(got, tokens, [keep])

    begin, _ = method.standing(tokens, tokens.grid[..., 0], len(given["x"]))
    assert_same("windows", begin[0].unique(), want["windows"][:, 0])
    anchor, size = got.anchor[0], got.sizes(tokens)[0]
    order = sorted(range(keep), key=lambda s: (int(begin[0, anchor[s]]), size[s] == 1, int(anchor[s])))
    assert_close("tokens", merged(got, tokens)[0, order], want["tokens"])


def test_windows_save_the_most_tokens():
    """Against every way to cut six frames."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        alike = torch.rand(6, 12, generator=draw) < 0.75
        alike[0] = False
        run = torch.zeros(6, 12, dtype=torch.int64)
        for t in range(1, 6):
            run[t] = (run[t - 1] + 1) * alike[t]
        frame = torch.arange(6)[:, None].expand_as(run)

        def saved(begins: list[bool], alike: torch.Tensor = alike) -> int:
            edges = [t for t in range(6) if begins[t]] + [6]
            spans = zip(edges, edges[1:], strict=False)
            return sum(int(alike[a + 1 : b].all(0).sum()) * (b - a - 1) for a, b in spans)

        first, _ = windows(run.reshape(1, -1), frame.reshape(1, -1), 6)
        ours = (first[0] == torch.arange(6)).tolist()
        assert saved(ours) == max(saved([True, *map(bool, cut)]) for cut in product((0, 1), repeat=5))


def test_a_still_scene_is_kept_once():
    still = picture((1, 4, 4), 1).features
    tokens = video(still[0].repeat(6, 1, 1))
    got = reduce(HoliTom(), tokens, [16])
    assert got.anchor[0].tolist() == list(range(16))
    assert (got.sizes(tokens) == 6).all()
    assert_close("values", merged(got, tokens), still)


@pytest.mark.parametrize("keep", [1, 5, 15, 16, 17, 40, 95, 96])
def test_every_budget_is_kept_on_a_still_scene(keep):
    """With more slots than places tokens stand alone again; with fewer, places join."""
    still = picture((1, 4, 4), 1).features
    tokens = video(still[0].repeat(6, 1, 1) + 0.01 * picture((6, 4, 4), 2).features[0].view(6, 16, -1))
    got = reduce(HoliTom(), tokens, [keep])
    check(got, tokens, [keep])
    assert (got.slot >= 0).all()
    beside = batch([tokens, picture((1, 3, 3), 3)], 2)
    check(reduce(HoliTom(), beside, [keep, 4]), beside, [keep, 4])


def test_a_still_picture_keeps_what_the_tower_looks_at_most():
    tokens = batch([picture((1, 4, 5), 1)])
    looked = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    got = HoliTom().reduce(0, tokens, {TowerAttention(-2): looked}, [6])
    assert got.anchor[0].tolist() == looked[0].topk(6).indices.sort().values.tolist()


@pytest.mark.parametrize(("option", "value"), [("alike", 1.5), ("own", True), ("own", "x")])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=rf"holitom: {option}=.* is not a number in"):
        HoliTom(**{option: value})
