"""How completions are laid out for a forward pass: a row each, several to a row, or all of one prompt in a row that holds the prompt once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.core.rollouts import Ragged


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


def lay_out_shared(prompts: Ragged, completions: Ragged, pad_id: int, row: Tensor) -> Layout:
    """Completions in the rows (B,) 0, 1, … that they are given, those of one row after their common prompt, which is there once.

    `attention_mask` (R, 1, L, L) is true where a token may look. A completion sees the prompt and itself, and its positions continue those of the
    prompt, so its states are those of a row of its own.
    """
    before, after = prompts.lengths, completions.lengths
    end, starts = [0] * (int(row.max()) + 1), list[int]()  # of each row so far; of each completion
    for place, prompt, completion in zip(row.tolist(), before.tolist(), after.tolist(), strict=True):
        starts.append(max(end[place], prompt))
        end[place] = starts[-1] + completion
    start, shape = torch.tensor(starts), (len(end), max(end))
    ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.int64)
    owner = torch.full(shape, -1)  # of a token: 0 the prompt, i + 1 completion i, -1 nobody
    example, inside = _places(before)
    ids[row[example], inside], positions[row[example], inside], owner[row[example], inside] = prompts.values, inside, 0
    example, inside = _places(after)
    rows, columns = row[example], start[example] + inside
    ids[rows, columns], positions[rows, columns], owner[rows, columns] = completions.values, before[example] + inside, example + 1
    looks = (owner[:, None] == 0) | (owner[:, None] == owner[:, :, None])  # (R, query, key)
    looks &= torch.ones(shape[1], shape[1], dtype=torch.bool).tril()  # a token of nobody sees such tokens before it: some it must
    predicts = torch.where(inside > 0, columns - 1, before[example] - 1)
    return Layout({"input_ids": ids, "position_ids": positions, "attention_mask": looks[:, None]}, rows, predicts)


def bundles(prompts: Ragged, completions: Ragged, width: int, budget: float = math.inf) -> tuple[list[Tensor], Tensor]:
    """Row indices that are best laid out together, and the tokens each bundle takes: rows of one prompt where that is less work, else one each.

    Work is counted in multiplications: 6 * `width` (the hidden size of the model) for each token and layer of a usual block, one for each pair of
    tokens that attention may compare, which in a row are all. A bundle that would exceed `budget` tokens is cut.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts.to_lists()):
        members.setdefault(tuple(prompt), []).append(i)
    after, found, sizes = completions.lengths.tolist(), list[list[int]](), list[int]()
    for prompt, rows in members.items():
        bundle, size = list[int](), 0
        for i in [*rows, None]:
            if bundle and (i is None or size + after[i] > budget):
                alone = sum((n := len(prompt) + after[j]) * (6 * width + n) for j in bundle)
                together = size * (6 * width + size) < alone
                found += [bundle] if together else [[j] for j in bundle]
                sizes += [size] if together else [len(prompt) + after[j] for j in bundle]
                bundle = []
            if i is not None:
                size = after[i] + (size if bundle else len(prompt))
                bundle.append(i)
    return [torch.tensor(bundle) for bundle in found], torch.tensor(sizes, dtype=torch.int64)


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
