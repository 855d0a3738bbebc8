"""Pictures become rows, without vLLM: what is kept, what it stands for and what stands between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from vtc.integrations.vllm.rows import Picture, packed, reduced, unpacked
from vtc.integrations.vllm.span import HERE, Span, cut
from vtc.methods._spelling import build
from vtc.models.base import Place
from vtc.models.patches_to_tokens import raster_place

WIDTH = 8


def picture(rows: int, columns: int, keep: int, between: int | None = None, newline: bool = False) -> Picture:
    """``rows`` by ``columns`` tokens; a word, or a newline token, behind each row."""
    place, one = raster_place(1, rows, columns), [HERE] * columns
    if newline:
        lines = torch.tensor(([False] * columns + [True]) * rows)
        place = Place(raster_place(1, rows, columns + 1).grid, lines)
    ids = one * rows if between is None else (one + [between]) * (rows - 1) + one
    if newline:
        ids = [HERE] * len(place.newline)
    draw = torch.Generator().manual_seed(rows * 31 + columns)
    return Picture(torch.randn(len(place.newline), WIDTH, generator=draw), place, Span(keep, tuple(ids)))


def words(ids: torch.Tensor) -> torch.Tensor:
    return ids[:, None].float().expand(-1, WIDTH)


def rows_of(pictures: list[Picture], method: str, module: torch.nn.Module | None = None) -> list:
    asked = build(method) if module is None else build(method).bound(module)
    return reduced(pictures, asked, WIDTH, {}, words)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_channels_hold_every_number_that_a_row_may_carry(dtype):
    numbers = torch.tensor([[0, 1, 255, 256], [257, 4095, 16384, 65535]])
    assert torch.equal(unpacked(packed(numbers, dtype)), numbers)


def test_sizes_sum_to_the_picture_and_places_are_those_that_were_kept():
    pictures = [picture(3, 4, keep=4), picture(1, 7, keep=3)]
    for own, one in zip(rows_of(pictures, "divprune+share"), pictures, strict=True):
        assert own.features.shape == (one.span.keep, WIDTH) and own.size.sum() == one.span.count
        alone = own.size == 1
        assert torch.equal(own.features[alone], one.features[own.index[alone]])
        assert torch.equal(own.grid, one.place.grid[own.index])
    assert all((own.size == 1).all() for own in rows_of(pictures, "divprune"))


def test_the_words_between_rows_stand_where_they_stood():
    one = picture(3, 4, keep=5, between=77)
    (own,) = rows_of([one], "divprune+share")
    assert len(own.index) == one.span.rows == 5 + 2
    assert own.index.tolist() == sorted(own.index.tolist())
    said = torch.isin(own.index, torch.tensor([4, 9]))
    assert said.sum() == 2 and (own.features[said] == 77).all() and (own.size[said] == 1).all()
    assert own.size[~said].sum() == 12


def test_newlines_count_and_are_never_scored():
    """As in transformers: in proportion, those of the rows that kept the most."""
    one = picture(3, 4, keep=5, newline=True)
    (own,) = rows_of([one], "divprune+share")
    lines = one.place.newline[own.index]
    assert len(own.index) == 5 and lines.sum() == 1 and own.size[~lines].sum() == 12
    kept = own.grid[~lines, 1].bincount(minlength=3)
    assert kept[own.grid[lines, 1]] == kept.max()


def test_with_a_budget_for_all_nothing_changes():
    one = picture(3, 4, keep=12, between=77)
    for method in ("divprune+share", "pool", "bipartite"):
        (own,) = rows_of([one], method)
        here = torch.tensor(one.span.ids) == HERE
        assert torch.equal(own.features[here], one.features) and (own.size == 1).all()


def test_what_rides_behind_the_features_merges_by_the_same_slots():
    """DeepStack: a method looks at the decoder's input alone."""
    one = picture(3, 4, keep=4)
    wide = Picture(torch.cat([one.features, one.features * 2], dim=1), one.place, one.span)
    (own,), (alone,) = rows_of([wide], "divprune+share"), rows_of([one], "divprune+share")
    assert torch.equal(own.index, alone.index)
    assert torch.equal(own.features[:, :WIDTH], alone.features)
    assert torch.allclose(own.features[:, WIDTH:], alone.features * 2)


class Adds(torch.nn.Module):
    """In place of a resampler."""

    def __init__(self, by: int):
        super().__init__()
        self.by = by

    def forward(self, tokens: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        assert tokens.shape[-1] == value.shape[-1] == WIDTH
        return value + self.by


def test_what_was_learned_refines_the_decoders_input_alone():
    one = picture(3, 4, keep=4)
    wide = Picture(torch.cat([one.features, one.features * 2], dim=1), one.place, one.span)
    (plain,), (own,) = (rows_of([wide], "perceiver:latents=8", Adds(by)) for by in (0, 1))
    assert torch.equal(own.features[:, :WIDTH], plain.features[:, :WIDTH] + 1)
    assert torch.equal(own.features[:, WIDTH:], plain.features[:, WIDTH:])


@dataclass
class Content:
    """As vLLM's ``PromptUpdateDetails``."""

    full: list[int]
    is_embed: Callable | None = None


def of_id(wanted: int) -> Callable:
    return lambda full: torch.tensor(full) == wanted


@pytest.mark.parametrize(
    ("full", "is_embed", "fewer", "embeds", "ids"),
    [
        ([4] * 6, None, [4] * 2, [1, 1], [HERE] * 6),
        ([1, 4, 4, 4, 2], of_id(4), [1, 4, 4, 2], [0, 1, 1, 0], [HERE] * 3),
        ([4, 4, 8, 4, 4, 8, 4, 4, 9], of_id(4), [4] * 4 + [9], [1] * 4 + [0], [-1, -1, 8, -1, -1, 8, -1, -1]),
        ([7, 4, 7, 8, 4], of_id(4), [7, 4, 4, 4, 4], [0, 1, 1, 1, 1], [-1, 7, 8, -1]),
    ],
)
def test_placeholders_are_as_many_as_the_rows(full, is_embed, fewer, embeds, ids):
    """Words before the first feature and behind the last stay words."""
    content, span = cut(Content(full, is_embed), lambda count: 2)
    assert content.full == fewer and content.is_embed(content.full).int().tolist() == embeds
    assert list(span.ids) == ids and span.rows == sum(embeds) and Span.of(span.data) == span


def test_a_picture_that_does_not_fill_its_placeholders_is_an_error():
    one = picture(3, 4, keep=4)
    with pytest.raises(ValueError, match="gave 11 tokens, 12 have a place, and the prompt has 12 placeholders"):
        Picture(one.features[1:], one.place, one.span)
