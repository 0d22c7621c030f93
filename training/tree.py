"""What the rows of a batch begin with in common is computed once: tree packing.

The rows of a batch (tools, date, earlier turns, request, reply) become a radix tree. A node holds tokens that all rows
below it have at the same positions, and stands once among the row's T tokens; each branch sees its ancestors and
itself, and its positions go on after them. Every trained token stands in a branch of its own, so loss and gradient are
those of the rows one by one. `training.attention` computes what the layout describes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.dataset import IGNORED

Ids = np.ndarray

# A node costs a few small products in each layer; it must save so many tokens.
_MIN_SAVED_TOKENS = 16


@dataclass(frozen=True)
class Node:
    """Tokens that stand once; `start` is the first one's position. `labels` are not shifted; only leaves have any."""

    ids: Ids
    labels: Ids
    start: int


@dataclass(frozen=True)
class _Row:
    ids: Ids
    labels: Ids
    shareable: int  # so many tokens may lie in a shared node


def tree_nodes(rows: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The tree of some rows in preorder, a leaf for each row.

    Args:
        rows: each with `input_ids` and, of the same length and not shifted, `labels`.
    """
    nodes: list[Node] = []
    _grow([_row(row) for row in rows], 0, nodes)
    return nodes


def _row(row: Mapping[str, Any]) -> _Row:
    ids, labels = np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["labels"], dtype=np.int64)
    return _Row(ids, labels, shareable_tokens(labels))


def shareable_tokens(labels: Ids) -> int:
    """How many tokens of a row may be shared: all before the one whose next token is the first trained one.

    That one has a target, which belongs to its row alone.
    """
    trained = np.flatnonzero(labels[1:] != IGNORED)
    return int(trained[0]) if len(trained) else len(labels) - 1


def _grow(rows: list[_Row], depth: int, nodes: list[Node]) -> None:
    """Append the nodes of rows that agree up to `depth`, and whose tokens up to there have been placed."""
    if len(rows) == 1:
        nodes.append(Node(rows[0].ids[depth:], rows[0].labels[depth:], depth))
        return
    common = _common_beginning(rows, depth)
    if (common - depth) * (len(rows) - 1) >= _MIN_SAVED_TOKENS:
        ids = rows[0].ids[depth:common]
        nodes.append(Node(ids, np.full(len(ids), IGNORED), depth))
        depth = common
    branches: dict[Any, list[_Row]] = {}
    for number, row in enumerate(rows):
        # A row whose own part begins here is a leaf of its own, even beside one of the same tokens.
        at = ("leaf", number) if row.shareable <= common else ("inner", int(row.ids[common]))
        branches.setdefault(at, []).append(row)
    for branch in branches.values():
        _grow(branch, depth, nodes)


def _common_beginning(rows: list[_Row], depth: int) -> int:
    end = min(row.shareable for row in rows)
    if end <= depth:
        return depth
    first = rows[0].ids[depth:end]
    differs = np.zeros(end - depth, dtype=bool)
    for row in rows[1:]:
        differs |= row.ids[depth:end] != first
    return depth + int(differs.argmax()) if differs.any() else end


def tree_batch(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch as a tree in one row of T tokens, in the words of transformers and of `training.attention`.

    `shift_labels` holds each token's target, so the model shifts nothing. `key_index` lists the places of each node's
    keys: its ancestors' tokens from the root on, then its own.
    """
    nodes = tree_nodes(rows)
    lengths = np.array([len(node.ids) for node in nodes])
    ends = np.concatenate([[0], lengths.cumsum()])
    n_keys = lengths + np.array([node.start for node in nodes])
    path = np.empty(n_keys.max(), dtype=np.int64)  # place of the token at each depth, from the root to the present node
    keys = []
    for node, first, end in zip(nodes, ends[:-1], ends[1:], strict=True):
        depth = node.start + len(node.ids)
        path[node.start : depth] = np.arange(first, end)
        keys.append(path[:depth].copy())
    targets = [part for node in nodes for part in (node.labels[1:], [IGNORED])]
    return {
        "input_ids": torch.from_numpy(np.concatenate([node.ids for node in nodes]))[None],
        "labels": torch.from_numpy(np.concatenate([node.labels for node in nodes]))[None],
        "shift_labels": torch.from_numpy(np.concatenate(targets).astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n.start, n.start + len(n.ids)) for n in nodes]))[
            None
        ],
        "cu_seq_lens_q": torch.from_numpy(ends.astype(np.int32)),
        "cu_seq_lens_k": torch.from_numpy(np.concatenate([[0], n_keys.cumsum()]).astype(np.int32)),
        "max_length_q": int(lengths.max()),
        "max_length_k": int(n_keys.max()),
        "key_index": torch.from_numpy(np.concatenate(keys)),
    }


# ------------------------------------------------------------------------------------------ which rows go together

# Rows are compared in pieces of so many tokens when they are grouped for a whole data set.
_PIECE = 16
# A common beginning that is longer by so many pieces makes a group of its own.
_MIN_PIECES = 2


@dataclass
class Group:
    """Rows with one beginning: `rows` go on each in its own way, those of `groups` share more."""

    rows: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def group_rows(dataset: Dataset) -> Group:
    """All rows by their common beginnings, which may be nested: the tools, then the date, then earlier turns.

    Compared are pieces of 16 tokens before a row's first trained token; 32 further tokens in common make a group.
    """
    beginnings = _beginnings(dataset)
    root = Group()
    _divide(list(range(len(beginnings))), 0, 0, beginnings, root)
    return root


def _beginnings(dataset: Dataset) -> list[Ids]:
    """The shareable part of every row, read in place: as Python lists 187,542 rows would take minutes."""
    found = []
    columns = (dataset.data.column(name).chunks for name in ("input_ids", "labels"))
    for ids, labels in zip(*columns, strict=True):
        id_values, label_values = ids.values.to_numpy(), labels.values.to_numpy()
        id_ends, label_ends = ids.offsets.to_numpy(), labels.offsets.to_numpy()
        for row in range(len(ids)):
            n_shareable = shareable_tokens(label_values[label_ends[row] : label_ends[row + 1]])
            found.append(id_values[id_ends[row] : id_ends[row] + n_shareable])
    if dataset._indices is not None:  # of a data set of selected rows
        found = [found[row] for row in dataset._indices.column(0).to_numpy()]
    return found


def _divide(members: list[int], piece: int, since: int, beginnings: list[Ids], into: Group) -> None:
    """Put rows that agree in their first `piece` pieces into a group, or into groups of it.

    Args:
        since: in how many pieces the rows of `into` agree.
    """
    while True:
        branches: dict[bytes, list[int]] = {}
        alone: list[int] = []
        first, end = piece * _PIECE, (piece + 1) * _PIECE
        for row in members:
            ids = beginnings[row]
            if len(ids) < end:
                alone.append(row)
            else:
                branches.setdefault(ids[first:end].tobytes(), []).append(row)
        if alone or len(branches) != 1:
            break
        piece += 1
    if piece - since >= _MIN_PIECES:
        into.groups.append(Group())
        into, since = into.groups[-1], piece
    into.rows += alone
    for branch in branches.values():
        if len(branch) == 1:
            into.rows += branch
        else:
            _divide(branch, piece + 1, since, beginnings, into)


def arrange(group: Group, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """All rows once, as batches that share much: all but the last hold `batch_size` rows.

    A group's rows are shuffled and cut into whole batches; the rest goes to the group around it, so that no batch
    shares less than it must. The batches come in random order.
    """
    batches: list[list[int]] = []
    rest = _cut(group, batch_size, rng, batches)
    order = [batches[place] for place in rng.permutation(len(batches))]
    return [*order, rest] if rest else order


def _cut(group: Group, batch_size: int, rng: np.random.Generator, batches: list[list[int]]) -> list[int]:
    """Append the group's whole batches; the rows that are left over."""
    rows: list[int] = []
    for place in rng.permutation(len(group.groups)):
        rows += _cut(group.groups[place], batch_size, rng, batches)
    rows += [group.rows[place] for place in rng.permutation(len(group.rows))]
    n_whole = len(rows) // batch_size * batch_size
    batches += [rows[first : first + batch_size] for first in range(0, n_whole, batch_size)]
    return rows[n_whole:]


class SharedBeginnings(Sampler[int]):
    """Every row once an epoch, those of a batch with much in common; the order follows from seed and epoch alone.

    So a run that continues in the middle of an epoch meets the same batches, and so does each process of several.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        self._group, self._n_rows = group_rows(dataset), len(dataset)
        self._batch_size, self._seed, self._epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration gives."""
        self._epoch = epoch

    def batches(self) -> list[list[int]]:
        """The epoch's batches."""
        return arrange(self._group, self._batch_size, np.random.default_rng([self._seed, self._epoch]))

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self.batches())

    def __len__(self) -> int:
        return self._n_rows


class EvenlyFilled(Sampler[int]):
    """Another sampler's rows, and after the last one as many times a row without loss as fill the last batches.

    So each process gets the same number of batches, and none of the rows a second time.
    """

    def __init__(self, inner: Any, filler: int, multiple: int) -> None:
        """Args:
        inner: a sampler whose order follows from its epoch (`set_epoch`) alone.
        filler: index of the row without loss.
        multiple: rows that all processes take at a time.
        """
        self._inner, self._filler = inner, filler
        self._n_filled = -len(inner) % multiple

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration gives."""
        self._inner.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return itertools.chain(self._inner, itertools.repeat(self._filler, self._n_filled))

    def __len__(self) -> int:
        return len(self._inner) + self._n_filled


class TellEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler its epoch: accelerate finds it only where it wraps it no more than twice."""

    def __init__(self, sampler: SharedBeginnings | EvenlyFilled) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Before the epoch's first batch is drawn."""
        self._sampler.set_epoch(int(state.epoch or 0))


@dataclass(frozen=True)
class Sharing:
    """Tokens of some batches: all of them, those that a tree computes, and of the largest tree."""

    tokens: int
    computed: int
    largest: int

    @property
    def saved(self) -> float:
        """The share of all tokens that need not be computed."""
        return 1 - self.computed / self.tokens


def measure_sharing(dataset: Dataset, batch_size: int, seed: int, max_batches: int = 64) -> Sharing:
    """What trees would save on these rows; of many batches, some spread evenly are looked at."""
    batches = SharedBeginnings(dataset, batch_size, seed).batches()
    tokens, trees = 0, []
    for place in sorted(set(np.linspace(0, len(batches) - 1, max_batches).astype(int).tolist())):
        rows = dataset[batches[place]]
        rows = [{"input_ids": i, "labels": j} for i, j in zip(rows["input_ids"], rows["labels"], strict=True)]
        tokens += sum(len(row["input_ids"]) for row in rows)
        trees.append(sum(len(node.ids) for node in tree_nodes(rows)))
    return Sharing(tokens, sum(trees), max(trees))
