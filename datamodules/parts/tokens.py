"""Rows of token ids of unequal length: one flat array, and batches of rows that are alike in length.

Padding every batch to its longest row wastes most of the work on text, where lengths differ tenfold; rows of like length
in one batch waste next to none (Krell et al. 2021, https://arxiv.org/abs/2107.02027, count up to 89 % of padding).
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Generator, Tensor

from datamodules.parts.batches import EpochOrder, mixed_seed, to_device

# N rows, B batch, T tokens in the longest row of a batch, rounded up

Lengths = TypeVar("Lengths", int, Tensor)

GPU_MULTIPLE = 8  # of the matrix units in half precision


class TokenRows:
    """Rows of one flat array of token ids, which may be a file that is mapped into memory.

    ``rows[indices]`` is a batch: ``input_ids`` (B, T) of int64, ``attention_mask`` (B, T) of bool where there is padding,
    and for pairs of texts ``token_type_ids`` (B, T), 1 in the second text.

    Args:
        ids: Of all rows, int32, one row after another.
        starts: (N,) where each row begins in `ids`.
        lengths: (N,) tokens in each row.
        second_starts: (N,) where in each row the second text of a pair begins; null for single texts.
        pad_id: Fills up the shorter rows of a batch.
        multiple: T is rounded up to a multiple of it; null for `GPU_MULTIPLE` on a GPU, else 1.
    """

    def __init__(
        self,
        ids: Tensor,
        starts: Tensor,
        lengths: Tensor,
        second_starts: Tensor | None = None,
        pad_id: int = 0,
        multiple: int | None = None,
    ) -> None:
        self.ids, self.starts, self.lengths, self.second_starts = ids, starts, lengths, second_starts
        self.pad_id, self.multiple = pad_id, multiple

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        device = self.ids.device
        column = torch.arange(int(self.rounded(self.lengths[indices].max())))  # (T,)
        mask = column < self.lengths[indices, None]  # (B, T)
        places = torch.where(mask, self.starts[indices, None] + column, 0)
        batch = {"input_ids": self.ids[to_device(places, device)].long()}
        if not mask.all():
            batch["attention_mask"] = to_device(mask, device)
            batch["input_ids"].masked_fill_(~batch["attention_mask"], self.pad_id)
        if self.second_starts is not None:
            second = (column >= self.second_starts[indices, None]) & mask
            batch["token_type_ids"] = to_device(second.long(), device)
        return batch

    def select(self, indices: Tensor) -> "TokenRows":
        """Some of the rows; their ids stay where they are."""
        second_starts = None if self.second_starts is None else self.second_starts[indices]
        return self._with(self.ids, self.starts[indices], self.lengths[indices], second_starts)

    def to(self, device: torch.device) -> "TokenRows":
        """The same with the ids on `device`; lengths stay with the host, which cuts batches by them."""
        return self._with(self.ids.to(device), self.starts, self.lengths, self.second_starts)

    def rounded(self, lengths: Tensor) -> Tensor:
        """`lengths` as they are in a batch of their own."""
        return round_up(lengths, self.multiple or (GPU_MULTIPLE if self.ids.is_cuda else 1))

    def tensors(self) -> list[Tensor]:
        """All that decides what the rows are."""
        given = (self.ids, self.starts, self.lengths, self.second_starts)
        return [one for one in given if one is not None]

    def _with(self, ids: Tensor, starts: Tensor, lengths: Tensor, second_starts: Tensor | None) -> "TokenRows":
        return TokenRows(ids, starts, lengths, second_starts, self.pad_id, self.multiple)


class LengthOrder(EpochOrder):
    """Batches of rows of like length, at most `max_tokens` tokens and `batch_size` rows each.

    Rows are sorted by length, those of one length in random order, and cut into batches, which come in random order: both
    functions of (seed, epoch). Of `world_size` processes each takes an equal share of every such cut, so that all make
    equally many steps; in training the rows that cannot be shared out (fewer than there are processes) are left out, other
    ones in every epoch. In evaluation no row is left out or repeated, and the order of the batches is always the same random
    one, so that the first few stand for all.

    Args:
        lengths: (N,) tokens of each row, rounded up as they will be in a batch.
        batch_size: Most rows in a batch of one process.
        max_tokens: Most tokens in a batch of one process, padding included; a longer row is a batch of its own.
        shuffle: In training.
        seed: Of the order.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        lengths: Tensor,
        batch_size: int,
        max_tokens: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(lengths), batch_size, shuffle, seed, rank, world_size)
        self.lengths, self.max_tokens = lengths, max_tokens
        ordered = lengths.sort().values
        self.left_out = slice(0, 0)
        if shuffle and (
            rest := len(lengths) % world_size
        ):  # of the most frequent length, which has most to choose from
            first = min(int(torch.searchsorted(ordered, ordered.mode().values)), len(lengths) - rest)
            self.left_out = slice(first, first + rest)
        self.edges = self._cut(_without(ordered, self.left_out).tolist())

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __iter__(self) -> Iterator[Tensor]:
        """Indices (B,) of each batch."""
        generator = Generator().manual_seed(mixed_seed(self.seed, self.epoch) if self.shuffle else 0)
        count = self.num_samples
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = _without(order[self.lengths[order].sort(stable=True).indices], self.left_out)
        for i in torch.randperm(len(self), generator=generator).tolist():
            yield order[self.edges[i] : self.edges[i + 1]][self.rank :: self.world_size]

    def _cut(self, ordered: list[int]) -> list[int]:
        """Where the batches of all processes together begin and end in rows of ascending length."""
        edges, count, rows = [0], len(ordered), 0
        for end in range(self.world_size, count + self.world_size, self.world_size):
            rows += 1  # of each process, were the batch to end here
            longest = ordered[min(end, count) - 1]
            if rows > 1 and (rows > self.batch_size or rows * longest > self.max_tokens):
                edges.append(end - self.world_size)
                rows = 1
        if len(edges) > 1 and count - edges[-1] < self.world_size:  # a batch for every process, or for none
            if edges[-1] - edges[-2] > self.world_size:
                edges[-1] = count - self.world_size  # the last rows are the longest: they go alone
            else:
                edges.pop()
        return [*edges, count] if count else edges


def round_up(lengths: Lengths, multiple: int) -> Lengths:
    """The next multiple of `multiple`, of one number or of each of a tensor."""
    return -(-lengths // multiple) * multiple


def _without(values: Tensor, left_out: slice) -> Tensor:
    return torch.cat([values[: left_out.start], values[left_out.stop :]])
