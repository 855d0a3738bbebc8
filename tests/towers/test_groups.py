"""Groups of merged tokens: the golden results of ToMe, and values that go out and come back."""

from __future__ import annotations

import pytest
import torch

from tests.golden import cases
from tests.tolerances import assert_close, assert_same
from vtc.towers.groups import Groups, merge_groups, merge_values


@pytest.mark.parametrize(("given", "want", "params"), cases("tome"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_tome(given, want, params, dtype):
    values, groups = given["x"].to(dtype), Groups.alone(given["x"])
    prefix = int(params["class_token"])
    for k, r in enumerate(params["r"], start=1):
        before, away = groups, min(r, (groups.count[0] - prefix) // 2)
        groups, slot = merge_groups(before, given[f"metric{k}"].to(dtype), [away] * len(values), prefix)
        values = merge_values(values, slot, before, groups)
        assert_same(f"group{k}", groups.owner, want[f"group{k}"])
        assert_close(f"x{k}", values, want[f"x{k}"])
        assert_close(f"size{k}", groups.size[..., None], want[f"size{k}"])
        assert_same("shrunk again", groups.shrink(groups.spread(values)), values)


def test_sequences_may_shrink_by_different_amounts():
    """Each as it does alone; what is padding weighs nothing and belongs to nobody."""
    draw = torch.Generator().manual_seed(3)
    states, metric = torch.randn(3, 9, 5, generator=draw), torch.randn(3, 9, 4, generator=draw)
    away = [4, 0, 2]
    before = Groups.alone(states)
    groups, slot = merge_groups(before, metric, away, 1)
    values = merge_values(states, slot, before, groups)
    assert groups.count == [5, 9, 7] and groups.size.sum(dim=1).tolist() == [9, 9, 9]
    for i, r in enumerate(away):
        one, own = merge_groups(Groups.alone(states[:1]), metric[i : i + 1], [r], 1)
        n = one.count[0]
        assert_same("owner", groups.owner[i], one.owner[0])
        assert_same("size", groups.size[i, :n], one.size[0])
        assert_close("value", values[i, :n], merge_values(states[i : i + 1], own, Groups.alone(states[:1]), one)[0])
        assert (groups.log_size(states.dtype)[i, 0, 0, n:] == -torch.inf).all()
    again, _ = merge_groups(groups, metric, [1, 1, 1], 1)
    assert again.count == [4, 8, 6] and again.size.sum(dim=1).tolist() == [9, 9, 9]
    assert all(sorted(set(owner.tolist())) == list(range(n)) for owner, n in zip(again.owner, again.count, strict=True))


def test_tokens_that_stand_alone_need_no_mask_and_no_copy():
    states = torch.randn(2, 5, 3)
    groups = Groups.alone(states)
    assert groups.log_size(torch.float32) is None
    assert groups.shrink(states) is states and groups.spread(states) is states
