"""How completions are laid out for a forward pass: a row each, several to a row, or all in one row that holds every prompt once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.core.rollouts import Ragged
from tacit.core.treeattention import Tree


def micro_batches(lengths: Tensor, budget: int) -> list[Tensor]:
    """Cuts rows (B,) into micro-batches of at most `budget` padded tokens, longest first so that neighbours are of like length.

    A row longer than the budget is a micro-batch of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    parts, start = [], 0
    widths = lengths[order].tolist()
    while start < len(order):
        size = max(1, budget // max(1, widths[start]))
        parts.append(order[start : start + size])
        start += size
    return parts


@dataclass(slots=True)
class Layout:
    """Model inputs (R, L), and for each completion token the (row, column) whose state predicts it, (T,) each."""

    inputs: dict[str, Tensor]
    rows: Tensor
    columns: Tensor
    tree: Tree | None = None


def lay_out(prompts: Ragged, completions: Ragged, pad_id: int, width: int | None) -> Layout:
    """Each example in a row of its own from column 0, or several to a row of `width` columns."""
    before, after = prompts.lengths, completions.lengths
    assert (before > 0).all(), "the first token of a completion is predicted from the prompt, which must not be empty"
    row, start = _bins(before + after, width) if width else (torch.arange(len(before)), torch.zeros_like(before))
    shape = int(row.max()) + 1, int((start + before + after).max())
    ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.int64)
    example, inside = _places(before)
    ids[row[example], start[example] + inside] = prompts.values
    positions[row[example], start[example] + inside] = inside
    example, inside = _places(after)
    rows, inside = row[example], inside + before[example]
    columns = start[example] + inside
    ids[rows, columns] = completions.values
    positions[rows, columns] = inside
    shared = shape[0] < len(before)  # positions tell examples apart, and cost a mask: only where rows are shared
    return Layout({"input_ids": ids} | ({"position_ids": positions} if shared else {}), rows, columns - 1)


def lay_out_tree(prompts: Ragged, completions: Ragged) -> Layout:
    """One row that holds every prompt once, then every completion but its last token, which predicts nothing: no padding.

    Positions of a completion continue those of its prompt; `tree` says which token looks at which. See `treeattention`.
    """
    first: dict[tuple[int, ...], int] = {}
    prompt = torch.tensor([first.setdefault(tuple(ids), len(first)) for ids in prompts.to_lists()], dtype=torch.int64)
    trunk = Ragged.from_lists([list(ids) for ids in first])
    before, kept = trunk.lengths, (completions.lengths - 1).clamp(min=0)
    order = torch.argsort(kept, descending=True, stable=True)[: int((kept > 0).sum())]
    start = torch.zeros_like(kept)  # of each completion in the row
    start[order] = len(trunk.values) + kept[order].cumsum(0) - kept[order]
    example, inside = _places(completions.lengths)
    stays = inside < kept[example]
    ids = torch.cat([trunk.values, completions.values.new_empty(int(kept.sum()))])
    positions = torch.cat([_places(before)[1], torch.empty_like(ids[len(trunk.values) :])])
    at = start[example[stays]] + inside[stays]
    ids[at], positions[at] = completions.values[stays], (before[prompt[example]] + inside)[stays]
    predicts = torch.where(inside > 0, start[example] + inside - 1, before.cumsum(0)[prompt[example]] - 1)
    tree = Tree.of(before, kept[order], prompt[order])
    return Layout({"input_ids": ids[None], "position_ids": positions[None]}, torch.zeros_like(predicts), predicts, tree)


def tree_tokens(prompts: Ragged, completions: Ragged) -> int:
    """Tokens of the row that `lay_out_tree` would make."""
    return sum(map(len, {tuple(ids) for ids in prompts.to_lists()})) + int((completions.lengths - 1).clamp(min=0).sum())


def families(prompts: Ragged, completions: Ragged, budget: float = math.inf) -> tuple[list[Tensor], Tensor]:
    """Row indices of each prompt's completions, and their tokens with the prompt counted once. What would exceed `budget` tokens is cut."""
    members: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts.to_lists()):
        members.setdefault(tuple(prompt), []).append(i)
    after, found, sizes = completions.lengths.tolist(), list[list[int]](), list[int]()
    for prompt, rows in members.items():
        for place, i in enumerate(rows):
            if place == 0 or sizes[-1] + after[i] > budget:
                found.append([])
                sizes.append(len(prompt))
            found[-1].append(i)
            sizes[-1] += after[i]
    return [torch.tensor(family) for family in found], torch.tensor(sizes, dtype=torch.int64)


def dealt(sizes: Tensor, ranks: int) -> list[list[int]]:
    """Indices of what each rank gets, the largest first to whoever has the least so far."""
    shares, loads = [list[int]() for _ in range(ranks)], [0] * ranks
    for i in torch.argsort(sizes, descending=True, stable=True).tolist():
        rank = loads.index(min(loads))
        shares[rank].append(i)
        loads[rank] += int(sizes[i])
    return shares


def filled(indices: Sequence[int], sizes: Tensor, budget: int) -> list[list[int]]:
    """Cuts indices into runs of at most `budget` tokens; what is larger stays alone."""
    runs, used = list[list[int]](), 0
    for i in indices:
        if not runs or used + int(sizes[i]) > budget:
            runs.append([])
            used = 0
        runs[-1].append(i)
        used += int(sizes[i])
    return runs


def _bins(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(row, first column) of each example when rows of `width` are filled, longest first, each into the first row with room."""
    used: list[int] = []
    row, start = torch.empty_like(lengths), torch.empty_like(lengths)
    for example in torch.argsort(lengths, descending=True, stable=True).tolist():
        length = int(lengths[example])
        place = next((i for i, n in enumerate(used) if n + length <= width), len(used))
        if place == len(used):
            used.append(0)
        row[example], start[example] = place, used[place]
        used[place] += length
    return row, start


def _places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(row, position inside the row) of every token of ragged rows."""
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = lengths.cumsum(0) - lengths
    return rows, torch.arange(len(rows)) - starts[rows]
