"""Rows of token ids of different lengths in one flat array, and batches of rows of similar length.

If random batches of texts are padded to their longest row, up to 89 % of all tokens are padding (Krell et al. 2021,
https://arxiv.org/abs/2107.02027). Batches of rows of similar length need little padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from datamodules.parts.batches import EpochOrder, derive_seed, to_device

# N rows, B batch, T tokens in the longest row of a batch, rounded up

Lengths = TypeVar("Lengths", int, Tensor)

GPU_MULTIPLE = 8  # matrix units need lengths that are multiples of 8 in half precision
XLA_LENGTHS = 4  # XLA compiles a graph for each length of a batch


@dataclass(eq=False)
class TokenRows:
    """Rows of token ids in one flat array, which may be a memory-mapped file.

    ``rows[indices]`` is a batch: ``input_ids`` (B, T) of int64, and ``attention_mask`` (B, T) of bool if there is padding.
    Pairs of texts also have ``token_type_ids`` (B, T), which are 1 in the second text.

    Args:
        ids: Token ids of all rows as int32, one row after another.
        starts: (N,) index in `ids` of the first token of each row.
        lengths: (N,) number of tokens in each row.
        second_starts: (N,) index in each row of the first token of the second text; None for single texts.
        pad_id: Token id for padding.
        multiple: T is rounded up to a multiple of this number; None for `GPU_MULTIPLE` on a GPU and 1 on other devices.
    """

    ids: Tensor
    starts: Tensor
    lengths: Tensor
    second_starts: Tensor | None = None
    pad_id: int = 0
    multiple: int | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        device = self.ids.device
        column = torch.arange(int(self.padded(self.lengths[indices].max())))  # (T,)
        mask = column < self.lengths[indices, None]  # (B, T)
        positions = torch.where(mask, self.starts[indices, None] + column, 0)
        batch = {"input_ids": self.ids[to_device(positions, device)].long()}
        if not mask.all():
            batch["attention_mask"] = to_device(mask, device)
            batch["input_ids"].masked_fill_(~batch["attention_mask"], self.pad_id)
        if self.second_starts is not None:
            is_second = (column >= self.second_starts[indices, None]) & mask
            batch["token_type_ids"] = to_device(is_second.long(), device)
        return batch

    def select(self, indices: Tensor) -> "TokenRows":
        """Return the rows at `indices`. They share the array `ids`."""
        second_starts = None if self.second_starts is None else self.second_starts[indices]
        return replace(self, starts=self.starts[indices], lengths=self.lengths[indices], second_starts=second_starts)

    def to(self, device: torch.device) -> "TokenRows":
        """Return the same rows with their ids on `device`. The other tensors stay on the CPU."""
        return replace(self, ids=self.ids.to(device))

    @staticmethod
    def join(parts: "Sequence[TokenRows]") -> "TokenRows":
        """Return the rows of all parts, one part after another."""
        lengths, ids = (torch.cat([getattr(part, name) for part in parts]) for name in ("lengths", "ids"))
        seconds = [part.second_starts for part in parts if part.second_starts is not None]
        second_starts = torch.cat(seconds) if seconds else None
        return replace(
            parts[0], ids=ids, starts=lengths.cumsum(0) - lengths, lengths=lengths, second_starts=second_starts
        )

    def padded(self, lengths: Tensor) -> Tensor:
        """Return the lengths of rows including padding."""
        return round_up(lengths, self.multiple or (GPU_MULTIPLE if self.ids.is_cuda else 1))

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [self.ids, self.starts, self.lengths, *([] if self.second_starts is None else [self.second_starts])]


class LengthOrder(EpochOrder):
    """The order of rows in an epoch, as batches of rows of similar length.

    Rows are shuffled, sorted by length, and divided into batches. Then the batches are shuffled. In training, the result
    depends only on (seed, epoch). In evaluation, rows are not shuffled, and batches always have the same random order, so
    that the first few batches are a random sample.

    With several processes, each batch is divided among them, so that all processes make the same number of steps. If the
    number of rows is not a multiple of `world_size`, training leaves out the remaining rows. Every epoch leaves out
    different rows. In evaluation, every row is used exactly once.

    Args:
        lengths: (N,) number of tokens in each row, including padding.
        batch_size: Maximum number of rows in a batch of one process.
        max_tokens: Maximum number of tokens in a batch of one process, including padding. A longer row is a batch by itself.
        shuffle: Whether the batches are for training.
        seed: Seed of the order.
        rank: Number of this process.
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
        rest = len(lengths) % world_size if shuffle else 0
        # leave out rows of the most frequent length; the shuffle selects different rows in each epoch
        first = min(int(torch.searchsorted(ordered, ordered.mode().values)), len(lengths) - rest) if rest else 0
        self.left_out = slice(first, first + rest)
        self.edges = self._find_edges(_without(ordered, self.left_out).tolist())

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the indices (B,) of each batch."""
        generator = Generator().manual_seed(derive_seed(self.seed, self.epoch) if self.shuffle else 0)
        count = self.num_samples
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = _without(order[self.lengths[order].sort(stable=True).indices], self.left_out)
        for i in torch.randperm(len(self), generator=generator).tolist():
            yield order[self.edges[i] : self.edges[i + 1]][self.rank :: self.world_size]

    def _find_edges(self, ordered: list[int]) -> list[int]:
        """Return where the batches of all processes begin and end. `ordered` contains the sorted lengths of the rows."""
        edges, count, rows = [0], len(ordered), 0
        for end in range(self.world_size, count + self.world_size, self.world_size):
            rows += 1  # per process, if the batch ends here
            longest = ordered[min(end, count) - 1]
            if rows > 1 and (rows > self.batch_size or rows * longest > self.max_tokens):
                edges.append(end - self.world_size)
                rows = 1
        if len(edges) > 1 and count - edges[-1] < self.world_size:  # too few rows for a batch on every process
            if edges[-1] - edges[-2] > self.world_size:
                edges[-1] = count - self.world_size  # make a separate batch, because these rows are the longest
            else:
                edges.pop()
        return [*edges, count] if count else edges


def round_up(lengths: Lengths, multiple: int) -> Lengths:
    """Round a number, or each number of a tensor, up to a multiple of `multiple`."""
    return -(-lengths // multiple) * multiple


def _without(values: Tensor, left_out: slice) -> Tensor:
    return torch.cat([values[: left_out.start], values[left_out.stop :]])
