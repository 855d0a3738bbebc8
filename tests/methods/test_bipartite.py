import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, reduce
from tests.tolerances import assert_close, assert_same
from vtc.kernels.merge import merge
from vtc.methods.bipartite import Bipartite, bipartite_round


@pytest.mark.parametrize(("given", "want", "params"), cases("tome"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_tome(given, want, params, dtype):
    values, size = given["x"].to(dtype), torch.ones(given["x"].shape[:2], dtype=dtype)
    owner = torch.arange(values.shape[1]).expand_as(size)
    protected = params["class_token"]
    for k, r in enumerate(params["r"], start=1):
        pictures, tokens = size.shape
        r = min(r, (tokens - protected) // 2)
        group, _ = bipartite_round(given[f"metric{k}"].to(dtype), [tokens] * pictures, [r] * pictures, protected)
        values = merge(values, group, None, size, tokens - r)
        size = merge(size[..., None], group, torch.ones_like(size), size, tokens - r)[..., 0]
        owner = group.gather(1, owner)
        assert_same(f"group{k}", owner, want[f"group{k}"])
        assert_close(f"x{k}", values, want[f"x{k}"])
        assert_close(f"size{k}", size[..., None], want[f"size{k}"])


def rounds_reference(features, size, keep):
    """The rounds in loops: lists of members of one picture's tokens, in the output order of each round."""
    groups = [([n], f, s) for n, (f, s) in enumerate(zip(features, size, strict=True))]
    while len(groups) > keep:
        a, b = groups[::2], groups[1::2]
        cosine = torch.nn.functional.cosine_similarity
        links = [max((float(cosine(f, g[1], dim=0)), -j) for j, g in enumerate(b)) for _, f, _ in a]
        by_link = sorted(range(len(a)), key=lambda n: -links[n][0])
        away = by_link[: min(len(groups) - keep, len(groups) // 2)]
        for n in away:
            j = -links[n][1]
            members, f, s = b[j]
            total = s + a[n][2]
            b[j] = (members + a[n][0], (f * s + a[n][1] * a[n][2]) / total, total)
        groups = [a[n] for n in by_link[len(away) :]] + b
    return sorted(sorted(members) for members, _, _ in groups)


@pytest.mark.parametrize("seed", range(8))
def test_rounds_equal_the_definition(seed):
    tokens = batch([picture((1, 5, 7), seed, torch.float64), picture((1, 3, 3), seed, torch.float64)])
    tokens.size[:] = tokens.size * torch.randint(1, 6, tokens.size.shape, generator=torch.Generator().manual_seed(seed))
    keep = [4, 3]
    got = reduce(Bipartite(), tokens, keep)
    for i, (k, n) in enumerate(zip(keep, tokens.count, strict=True)):
        groups = sorted((got.slot[i] == s).nonzero()[:, 0].tolist() for s in range(k))
        assert groups == rounds_reference(tokens.features[i, :n], tokens.size[i, :n].double(), k)


def test_the_prefix_never_merges():
    metric = torch.ones(1, 6, 4)  # all alike: without protection token 0 would be the first to go
    group, head = bipartite_round(metric, [6], [2], prefix=1)
    assert head.tolist() == [[0, 1, 3, 5]]
    assert group.tolist() == [[0, 1, 1, 2, 1, 3]]
    group, head = bipartite_round(metric, [6], [2], prefix=2)  # a class and a distillation token
    assert head.tolist() == [[0, 1, 3, 5]]
    assert group.tolist() == [[0, 1, 2, 2, 2, 3]]
    group, head = bipartite_round(metric.expand(1, 6, 4), [6], [1], prefix=3)  # and a register
    assert head.tolist() == [[0, 1, 2, 3, 5]]
    assert group.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert bipartite_round(metric, [6], [2])[0].tolist() == [[1, 1, 1, 2, 0, 3]]


@pytest.mark.parametrize("prefix", [0, 1, 2, 3, 5])
def test_a_round_counts_and_protects_whatever_the_metric(prefix):
    """Random, padded and all-NaN metrics: every output token has a head, the prefix stays first and alone."""
    metric = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(prefix))
    metric[1] = torch.nan
    count = [12, 12, 9]
    away = [(n - prefix) // 2 for n in count]
    group, head = bipartite_round(metric, count, away, prefix)
    for i, (n, r) in enumerate(zip(count, away, strict=True)):
        assert sorted(set(group[i, :n].tolist())) == list(range(n - r))
        assert (group[i, n:] == -1).all()
        assert group[i, head[i, : n - r]].tolist() == list(range(n - r))
        assert group[i, :prefix].tolist() == list(range(prefix))
        assert (group[i, prefix:n] >= prefix).all()


def test_one_round_by_hand():
    """Even tokens 0 and 2, odd tokens 1 and 3: 2 is nearly 1, 0 is far from both."""
    metric = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]])
    group, head = bipartite_round(metric, [4], [1])
    assert group.tolist() == [[0, 1, 1, 2]]
    assert head.tolist() == [[0, 1, 3]]


def test_alike_tokens_merge_whatever_their_place():
    """Four pairs of copies, an even and an odd one each, are merged to four."""
    tokens = batch([picture((1, 2, 4), 1)])
    tokens.features[0, 1::2] = tokens.features[0, 0::2][[2, 0, 3, 1]]
    got = reduce(Bipartite(), tokens, [4])
    slot = got.slot[0]
    assert all(slot[2 * even] == slot[2 * odd + 1] for odd, even in enumerate([2, 0, 3, 1]))
    assert got.anchor.tolist() == [[1, 3, 5, 7]]  # merged tokens stand where their odd token stood


def test_rounds_go_on_below_half():
    tokens = batch([picture((1, 10, 10), 1), picture((1, 3, 3), 2)])
    for keep in ([1, 1], [3, 9], [49, 4]):
        got = reduce(Bipartite(), tokens, keep)
        assert got.sizes(tokens).sum(1).tolist() == tokens.count


def test_sizes_the_tokens_come_with_weigh():
    tokens = batch([picture((1, 1, 2), 1)])
    tokens.size[0] = torch.tensor([3.0, 1.0])
    got = reduce(Bipartite(), tokens, [1])
    value = merge(tokens.features, got.slot, got.weight, tokens.size, 1)[0, 0]
    assert_close("value", value, (3 * tokens.features[0, 0] + tokens.features[0, 1]) / 4)
    assert got.sizes(tokens).tolist() == [[4.0]]
