"""Families that cut a picture into tiles of one size, an entry each; the prompt says where a picture ends."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor

from vtc.errors import UnsupportedModel
from vtc.models import register
from vtc.models.base import TowerRun
from vtc.models.generic import Merging


def placeholder_runs(ids: Tensor, token: int) -> list[list[tuple[int, int]]]:
    """For each prompt of ``ids [B, N]``: (token before the run, length of the run) of every run of ``token``."""
    prompts = []
    for row in ids.tolist():
        runs, before = [], -1
        for value, group in groupby(row):
            length = len(list(group))
            if value == token:
                runs.append((before, length))
            before = value
        prompts.append(runs)
    return prompts


class Tiles(Merging):
    """One picture is several entries, in one run of placeholders or many."""

    def picture_runs(self, runs: list[tuple[int, int]]) -> list[int]:
        """How many placeholders each picture of one prompt has, from its (token before, length) runs."""
        raise NotImplementedError

    def pictures(self, run: TowerRun, ids: Tensor | None) -> list[int]:
        if len(run.counts) < 2:
            return [1] * len(run.counts)
        if ids is None:
            raise UnsupportedModel(
                f"{self.name} cuts pictures into tiles and only input_ids say which tiles form a picture; pass "
                "input_ids, not inputs_embeds"
            )
        prompts = placeholder_runs(ids, self.token_ids[run.modality])
        wanted = [length for runs in prompts if runs for length in self.picture_runs(runs)]
        return self.group(run.counts, wanted)

    def group(self, counts: list[int], wanted: list[int]) -> list[int]:
        """How many consecutive ``counts`` make up each of the ``wanted`` sums."""
        groups, start = [], 0
        for length in wanted:
            stop = start
            while stop < len(counts) and sum(counts[start:stop]) < length:
                stop += 1
            if sum(counts[start:stop]) != length:
                raise self._mismatch(counts, wanted)
            groups.append(stop - start)
            start = stop
        if start != len(counts):
            raise self._mismatch(counts, wanted)
        return groups

    def _mismatch(self, counts: list[int], wanted: list[int]) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.name}: tiles of {counts} tokens do not fill pictures of {wanted} placeholders; make the prompt "
            "with the model's own processor"
        )


@register("internvl")
@register("cohere2_vision")
@register("ovis2")
class TilesFromStart(Tiles):
    """A picture begins at every run that follows the token before the prompt's first run (start-of-image)."""

    def picture_runs(self, runs: list[tuple[int, int]]) -> list[int]:
        start, pictures = runs[0][0], []
        for before, length in runs:
            if before == start:
                pictures.append(0)
            pictures[-1] += length
        return pictures


@register("aya_vision")
class TilesThenGlobal(Tiles):
    """The whole picture comes last: a picture ends with every run that follows the token before the prompt's last."""

    def picture_runs(self, runs: list[tuple[int, int]]) -> list[int]:
        last, pictures, open_length = runs[-1][0], [], 0
        for before, length in runs:
            open_length += length
            if before == last:
                pictures.append(open_length)
                open_length = 0
        return pictures
