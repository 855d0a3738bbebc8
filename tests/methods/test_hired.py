import pytest
import torch

import vtc
from tests import zoo
from tests.golden import cases
from tests.own import known
from tests.pictures import batch, check, merged, picture, reduce, signals, without_grid
from tests.support import engine, logits
from tests.tolerances import assert_close, assert_same
from vtc.errors import UnknownName, UnsupportedModel
from vtc.methods import registry
from vtc.methods._share import share
from vtc.methods._spelling import build
from vtc.methods.hired import HiRED, quotas, selector, tiles
from vtc.tokens import Reduction


def selects(name):
    try:
        return bool(selector(name))
    except ValueError:
        return False


SELECTORS = tuple(name for name in known(registry) if selects(name))


def in_tiles(values, split):
    """``[tiles, N]`` as ``[pictures, tiles x N]``, padded."""
    return torch.nn.utils.rnn.pad_sequence([v.flatten() for v in values.split(split)], batch_first=True)


@pytest.mark.parametrize(("given", "want", "params"), cases("hired"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Their floors lose some tokens of the budget; here these are the best that are left."""
    split, n = params["tiles_per_image"], params["tokens_per_tile"]
    tokens = batch([picture((p, 1, n), 1) for p in split])
    keep = [int(p * n * params["token_budget_rate"]) for p in split]
    early, late = (in_tiles(given[f"{name}_attn"].to(dtype).sum(1), split) for name in ("early", "late"))
    method = HiRED(alpha=params["alpha"])
    quota = quotas(early, tiles(tokens, "first"), tokens, keep, params["alpha"])
    assert_same("quota", torch.cat([q[:p] for q, p in zip(quota, split, strict=True)]), want["budget"])
    got = method.reduce(0, tokens, dict(zip(method.signals(0), (early, late), strict=True)), keep)
    theirs = in_tiles(want["mask"], split)
    assert_same("theirs are kept", (got.slot >= 0) & theirs, theirs)
    for i, k in enumerate(keep):
        more, left = ((got.slot[i] >= 0) & ~theirs[i], (got.slot[i] < 0) & tokens.valid[i])
        assert int(theirs[i].sum()) + int(more.sum()) == k
        assert not more.any() or late[i, more].min() >= late[i, left].max()


def kept(tokens, early, late, keep, **options):
    method = HiRED(**options)
    return method.reduce(0, tokens, dict(zip(method.signals(0), (early, late), strict=True)), keep).anchor.tolist()


@pytest.mark.parametrize("whole", ["first", "last"])
def test_a_tile_gets_by_the_marks_in_its_run(whole):
    """Three tiles of four tokens, one of them the whole picture, whose first half is what the early layer looks at."""
    tokens = batch([picture((3, 2, 2), 1)])
    start = 0 if whole == "first" else 8
    early = torch.zeros(1, 12)
    early[0, start : start + 2] = 1
    late = torch.linspace(1, 0, 12)[None]
    first, second = (4, 8) if whole == "first" else (0, 4)
    want = sorted([start, start + 1, start + 2, first, first + 1, first + 2])
    assert kept(tokens, early, late, [6], whole=whole) == [want]
    early[0, start + 2] = 2  # now one mark in each half; the token that is left goes to the best anywhere
    want = sorted([start, start + 1, start + 2, first, second, 3 if whole == "first" else 1])
    assert kept(tokens, early, late, [6], whole=whole) == [want]


def test_a_picture_in_one_piece_is_its_whole():
    tokens = batch([picture((1, 3, 4), 1)])
    late = torch.arange(12.0)[None]
    assert kept(tokens, torch.ones(1, 12), late, [5]) == [[7, 8, 9, 10, 11]]


def test_without_tiles_it_raises():
    tokens = without_grid(batch([picture((1, 4, 4), 1)]))
    with pytest.raises(UnsupportedModel, match="use a method that needs no grid"):
        kept(tokens, torch.ones(1, 16), torch.ones(1, 16), [5])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, float("nan"), "0.5", None])
def test_bad_options(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* is not a share in \[0, 1\]"):
        HiRED(alpha=alpha)
    with pytest.raises(ValueError, match="give 'first' or 'last'"):
        HiRED(whole="middle")


def test_most_methods_at_the_input_can_select():
    assert {"divprune", "visionzip", "vispruner", "prumerge", "grid", "pool", "bipartite", "fastvid"} < set(SELECTORS)


@pytest.mark.parametrize("name", SELECTORS)
def test_in_one_tile_the_selector_is_alone(name):
    tokens = batch([picture((1, 4, 5), 1), picture((1, 3, 3), 2)], 2)
    got, want = reduce(HiRED(select=name), tokens, [7, 4]), reduce(registry[name](), tokens, [7, 4])
    assert_same("slot", got.slot, want.slot.where(tokens.valid, -1))
    assert_same("anchor", got.anchor, want.anchor)
    assert got.merges == want.merges
    if want.weight is not None:
        used = got.slot >= 0
        assert_same("weight", got.weight[used], want.weight[used])
    assert_close("values", merged(got, tokens), merged(want, tokens))


def per_tile(reduction, tile, tokens):
    """How many anchors each tile of each picture has."""
    own = tile.gather(1, reduction.anchor.clamp(min=0)).where(reduction.anchor >= 0, -1)
    return [row[row >= 0].bincount(minlength=int(tile.max()) + 1).tolist() for row in own]


@pytest.mark.parametrize("whole", ["first", "last"])
@pytest.mark.parametrize("name", SELECTORS)
def test_each_tile_gets_its_quota(name, whole):
    """As many slots a tile as HiRED itself gives it, none with tokens of two tiles, each tile's as the selector alone
    would make them of that tile."""
    made, keep = [picture((3, 4, 4), 1), picture((5, 2, 3), 2), picture((1, 3, 3), 3)], [13, 6, 9]
    tokens = batch(made, 2)
    tile = tiles(tokens, whole)
    method = HiRED(select=name, whole=whole)
    got = reduce(method, tokens, keep)
    check(got, tokens, keep)
    quota = per_tile(reduce(HiRED(whole=whole), tokens, keep), tile, tokens)
    assert per_tile(got, tile, tokens) == quota
    for i in range(len(made)):
        for slot, anchor in enumerate(got.anchor[i, : keep[i]]):
            assert (tile[i, got.slot[i] == slot] == tile[i, anchor]).all(), "a slot with tokens of two tiles"
    shared = share(tokens, got)
    check(shared, tokens, keep)
    assert shared.sizes(tokens).sum(1).tolist() == tokens.count
    alone = reduce(method, batch([made[1]]), [keep[1]])
    assert_same("alone as in a batch", got.slot[1, : made[1].count[0]], alone.slot[0])


def test_inside_a_tile_it_is_the_selector():
    tokens = batch([picture((3, 4, 4), 1)])
    method = HiRED(select="divprune")
    got = reduce(method, tokens, [13])
    for t, k in enumerate(per_tile(got, tiles(tokens, "first"), tokens)[0]):
        inside = slice(16 * t, 16 * t + 16)
        one = batch([picture((1, 4, 4), 9)])
        one.features = tokens.features[:, inside]
        want = reduce(registry["divprune"](), one, [k])
        assert_same(f"tile {t}", got.slot[:, inside] >= 0, want.slot >= 0)


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        ("fastv", "cuts inside the decoder"),
        ("pyramiddrop", "cuts 3 times"),
        ("adaptive", "cuts 2 times"),
        ("kvmerge", "reduces keys"),
        ("hired", "gives quotas to tiles itself"),
        ("evs", "compares frames"),
        ("tome", "merges in the tower"),
        (vtc.methods.DivPrune, "neither a method nor the name of one"),
        (3, "neither a method nor the name of one"),
    ],
)
def test_what_cannot_select_says_why(select, reason):
    with pytest.raises(ValueError, match=f"hired: select=.*{reason}.*divprune"):
        HiRED(select=select)


def test_unknown_selectors_name_their_neighbours():
    with pytest.raises(UnknownName, match="divprune"):
        HiRED(select="divprun")


def test_values_a_selector_makes_itself_are_refused():
    class Own(vtc.methods.DivPrune):
        def reduce(self, stage, tokens, signals, keep):
            r = super().reduce(stage, tokens, signals, keep)
            return Reduction(r.slot, r.anchor, refine=lambda features, values: values)

    tokens, method = batch([picture((2, 2, 2), 1)]), HiRED(select=Own())
    with pytest.raises(ValueError, match="makes the values of its slots itself"):
        method.reduce(0, tokens, signals(method, tokens), [3])


def test_the_command_line_spells_it():
    assert build("hired:select=divprune:whole=last") == HiRED(select=vtc.methods.DivPrune(), whole="last")
    assert build("hired:select=visionzip+share").share
    assert HiRED(select=vtc.methods.DivPrune(share=True)).share


QUICK = {("internvl", "visionzip"), ("idefics3", "divprune"), ("llava_next", "fastvid")}
ON_TILES = [
    pytest.param(family, name, marks=() if (family, name) in QUICK else [pytest.mark.slow])
    for family in ("llava_next", "internvl", "idefics3")
    for name in SELECTORS
]


@pytest.mark.parametrize(("family", "name"), ON_TILES)
def test_selectors_on_tiled_models(family, name, model_of):
    model, whole = model_of(family), "first" if family == "llava_next" else "last"
    prompt = zoo.prompt(model, 2)
    plain = logits(model, prompt)
    vtc.patch(model, HiRED(select=name, whole=whole), budget=1.0)
    assert_same("all kept", logits(model, prompt), plain)
    for shared in (False, True):
        vtc.patch(model, HiRED(select=name, whole=whole, share=shared), budget=0.4)
        assert logits(model, prompt).isfinite().all()
        cut = engine(model).current.cuts[0]
        got, tile = per_tile(cut.reduction, tiles(cut.tokens, whole), cut.tokens), tiles(cut.tokens, whole)
        assert all(p.average <= 0.4 * p.tokens_in for p in vtc.report(model).pictures)
        if shared:
            assert cut.reduction.sizes(cut.tokens).sum(1).tolist() == cut.tokens.count
    vtc.patch(model, HiRED(whole=whole), budget=0.4)
    logits(model, prompt)
    assert got == per_tile(engine(model).current.cuts[0].reduction, tile, cut.tokens)


def test_saved_with_its_selector(tmp_path):
    model = zoo.build("internvl")
    method = HiRED(select=vtc.methods.VisionZip(contextual=0.25), whole="last")
    prompt = zoo.prompt(model, 1)
    want = logits(vtc.patch(model, method, budget=0.5), prompt)
    vtc.save(model, tmp_path / "out")
    loaded = vtc.load(tmp_path / "out")
    assert vtc.patch_of(loaded).method == method
    assert torch.equal(logits(loaded, prompt), want)
