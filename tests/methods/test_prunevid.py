import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, check, merged, picture, reduce, video
from tests.tolerances import assert_close, assert_same
from vtc.methods.prunevid import PruneVid, refined


@pytest.mark.parametrize(("given", "want", "params"), cases("prunevid"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Their tokens come scene by scene and frame by frame, clusters in order of density: compared as sets."""
    tokens, keep = video(given["x"].to(dtype)), len(want["tokens"])
    method = PruneVid(scenes=params["temporal_segment_ratio"], alike=params["tau"])
    got = method.reduce(0, tokens, {}, [keep])
    check(got, tokens, [keep])
    begin, still = method.standing(tokens, tokens.grid[..., 0], params["frames"])
    scene = begin[0].unique(return_inverse=True)[1]
    n = tokens.count[0] // params["frames"]
    assert_same("scenes", scene.bincount() // n, want["window_sizes"])
    held, stands = scene[got.anchor[0]], still[0, got.anchor[0]]
    for name, mask in (("static", stands), ("dynamic", ~stands)):
        assert_same(name, held[mask].bincount(minlength=int(scene.max()) + 1), want[f"{name}_sizes"])
    values = merged(got, tokens)[0]
    assert_close("tokens", values[values[:, 0].argsort()], want["tokens"][want["tokens"][:, 0].argsort()])


def slow(label: list[int]) -> list[int]:
    """The rules of ``refined``, run by run."""

    def length(labels: list, at: int, step: int) -> int:
        n = 0
        while 0 <= at + n * step < len(labels) and labels[at + n * step] == labels[at]:
            n += 1
        return n

    spans = [(t, length(label, t, 1)) for t in range(len(label)) if t == 0 or label[t] != label[t - 1]]
    out: list = list(label)
    for start, n in spans:
        longest = max(m for s, m in spans if label[s] == label[start])
        if n < longest or longest == 1:
            out[start : start + n] = [None] * n
    for t in range(len(out)):
        if out[t] is None:
            n = length(out, t, 1)
            left = length(out, t - 1, -1) if t else 0
            right = length(out, t + n, 1) if t + n < len(out) else 0
            out[t : t + n] = [(out[t - 1] if left >= right else out[t + n]) if left or right else 0] * n
    return out


def test_refined_labels_are_the_rules_run_by_run():
    draw = torch.Generator().manual_seed(0)
    for frames in (1, 2, 5, 9, 16):
        label = torch.randint(0, min(3, frames), (40, frames), generator=draw)
        assert refined(label).tolist() == [slow(row) for row in label.tolist()]


def test_a_still_scene_is_one_token_a_place():
    still = picture((1, 4, 4), 1).features
    tokens = video(still[0].repeat(6, 1, 1))
    got = reduce(PruneVid(), tokens, [16])
    assert got.anchor[0].tolist() == list(range(16))
    assert (got.sizes(tokens) == 6).all()
    assert_close("values", merged(got, tokens), still)


@pytest.mark.parametrize("keep", [1, 5, 15, 16, 17, 40, 95, 96])
def test_every_budget_is_kept_on_a_still_scene(keep):
    still = picture((1, 4, 4), 1).features
    tokens = video(still[0].repeat(6, 1, 1) + 0.01 * picture((6, 4, 4), 2).features[0].view(6, 16, -1))
    got = reduce(PruneVid(), tokens, [keep])
    check(got, tokens, [keep])
    assert (got.slot >= 0).all()


def test_a_still_picture_is_clustered():
    tokens = batch([picture((1, 5, 5), 1)])
    tokens.features[0] = tokens.features[0, :5].repeat(5, 1)
    got = reduce(PruneVid(), tokens, [5])
    assert got.slot[0].view(5, 5).unique(dim=0).shape[0] == 1
    assert got.slot[0].unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("option", "value"), [("alike", 1.5), ("scenes", True), ("scenes", "x")])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=rf"prunevid: {option}=.* is not a number in"):
        PruneVid(**{option: value})
