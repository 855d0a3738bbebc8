"""Where the pictures of one forward stand: placeholder rows matched with the tower's pictures, counted on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import NotReduced, UnsupportedModel
from vtc.models.base import Family, Place, TowerRun
from vtc.signals.base import Signal


@dataclass
class Entry:
    """One run of the tower's output as it stands in the prompt: ``rows [n]`` in batch row ``prompt``."""

    run: TowerRun
    index: int  # which of the run's entries (before beams repeated the prompts)
    prompt: int
    rows: Tensor
    place: Place


@dataclass
class Layout:
    """The pictures of one forward, in order of prompt and row. Tensors stand on the model's device.

    row, valid, grid: ``[I, N]`` (``[I, N, 3]``), the scored tokens of each picture; newline_row ``[I, M]`` (-1 padded)
    and newline_grid ``[I, M, 3]``: newline tokens; prompt ``[I]``; count, newlines: how many of each, as Python ints;
    text ``[B, L]``: real rows that are no vision token; spare ``[B, L]``: padding; text_count ``[B]`` ints.
    """

    row: Tensor
    valid: Tensor
    grid: Tensor
    newline_row: Tensor
    newline_grid: Tensor
    prompt: Tensor
    prompts: list[int]
    count: list[int]
    newlines: list[int]
    text: Tensor
    spare: Tensor
    text_count: list[int]
    spare_count: list[int]
    entries: list[list[Entry]]

    def signal(self, family: Family, signal: Signal, device: torch.device) -> Tensor:
        """A tower signal on the scored tokens: ``[I, N]`` or ``[I, N, d]``, zero in padding."""
        aligned: dict[int, list[Tensor]] = {}
        pictures = []
        for entries in self.entries:
            for entry in entries:
                if id(entry.run) not in aligned:
                    aligned[id(entry.run)] = self._align(family, entry.run, signal)
            parts = [aligned[id(e.run)][e.index][~e.place.newline.to(device)] for e in entries]
            pictures.append(torch.cat(parts))
        return torch.nn.utils.rnn.pad_sequence(pictures, batch_first=True).to(device)

    @staticmethod
    def _align(family: Family, run: TowerRun, signal: Signal) -> list[Tensor]:
        if not run.captured.get(signal):
            raise NotReduced(
                f"{signal} was not seen: the {run.modality} features were computed before the model was patched; "
                "pass the pixels, or compute the features after vtc.patch"
            )
        return family.align(run, signal)


def build_layout(
    family: Family,
    runs: list[TowerRun],
    ids: dict[str, Tensor],
    padding: Tensor | None,
    input_ids: Tensor | None,
    device: torch.device,
) -> Layout:
    """Match placeholder rows with pictures. ``ids``: modality -> bool ``[B, L]``; ``padding`` bool, True = real; both
    on the CPU. Raises ``NotReduced`` when counts do not match (chunked prefill, features of another prompt)."""
    pictures = [p for run in runs for p in _pictures(family, run, ids[run.modality], input_ids)]
    pictures.sort(key=lambda entries: (entries[0].prompt, int(entries[0].rows[0])))
    vision = torch.stack(list(ids.values())).any(dim=0)
    real = torch.ones_like(vision) if padding is None else padding
    text = real & ~vision
    rows, grids, newline_rows, newline_grids = [], [], [], []
    for entries in pictures:
        row = torch.cat([e.rows for e in entries])
        newline = torch.cat([e.place.newline for e in entries])
        grid = torch.cat([_shift(e.place.grid, t) for t, e in enumerate(entries)])
        rows.append(row[~newline])
        grids.append(grid[~newline])
        newline_rows.append(row[newline])
        newline_grids.append(grid[newline])
    pad = torch.nn.utils.rnn.pad_sequence
    count = [len(r) for r in rows]
    return Layout(
        row=pad(rows, batch_first=True).to(device),
        valid=(torch.arange(max(count)) < torch.tensor(count)[:, None]).to(device),
        grid=pad(grids, batch_first=True, padding_value=-1).to(device),
        newline_row=pad(newline_rows, batch_first=True, padding_value=-1).to(device),
        newline_grid=pad(newline_grids, batch_first=True, padding_value=-1).to(device),
        prompt=torch.tensor([e[0].prompt for e in pictures], device=device),
        prompts=[e[0].prompt for e in pictures],
        count=count,
        newlines=[len(r) for r in newline_rows],
        text=text.to(device),
        spare=(~real).to(device),
        text_count=text.sum(dim=1).tolist(),
        spare_count=(~real).sum(dim=1).tolist(),
        entries=pictures,
    )


def _shift(grid: Tensor, t: int) -> Tensor:
    """Tiles that are separate runs of one picture lie one behind the other in t."""
    return grid if t == 0 else grid + torch.tensor([t, 0, 0]) * (grid >= 0)


def _pictures(family: Family, run: TowerRun, where: Tensor, input_ids: Tensor | None) -> list[list[Entry]]:
    """The run's entries as they stand in the prompts, grouped into pictures; prompts may be repeated by beams."""
    prompt, row = where.nonzero(as_tuple=True)
    total = sum(run.counts)
    if total == 0 or len(row) % total:
        raise NotReduced(
            f"the prompts hold {len(row)} {run.modality} placeholders and the tower gave {total} features; pass whole "
            "prompts with their pictures (chunked prefill and features of another prompt are not supported)"
        )
    repeats = len(row) // total
    if repeats > where.shape[0] or (repeats > 1 and where.shape[0] % repeats):
        raise UnsupportedModel(f"{where.shape[0]} prompts cannot share {len(run.counts)} {run.modality} features")
    places = family.places(run)
    per_prompt = where.sum(dim=1)[::repeats].tolist()  # beams repeat each prompt in place
    bounds = _split(run.counts, per_prompt)
    entries, cursor = [], 0
    for first, last in bounds:
        for _ in range(repeats):
            for index in range(first, last):
                stop = cursor + run.counts[index]
                owner = int(prompt[cursor])
                entries.append(Entry(run, index, owner, row[cursor:stop], places[index]))
                cursor = stop
    groups = family.pictures(run, input_ids[::repeats] if input_ids is not None else None)
    return _group(entries, groups)


def _split(counts: list[int], per_prompt: list[int]) -> list[tuple[int, int]]:
    """Which entries ``[first, last)`` fall into each prompt, by placeholder counts."""
    bounds, index = [], 0
    for placeholders in per_prompt:
        first, left = index, placeholders
        while left > 0:
            left -= counts[index]
            index += 1
        if left:
            raise NotReduced(
                f"a prompt's {placeholders} placeholders end inside a picture of {counts[index - 1]}; "
                "give every prompt exactly its own pictures' placeholders"
            )
        bounds.append((first, index))
    return bounds


def _group(entries: list[Entry], sizes: list[int]) -> list[list[Entry]]:
    starts, first = set(), 0
    for size in sizes:
        starts.add(first)
        first += size
    groups: list[list[Entry]] = []
    for entry in entries:
        if entry.index in starts or not groups or groups[-1][0].prompt != entry.prompt:
            groups.append([])
        groups[-1].append(entry)
    return groups
