"""Arrays in files. Rows are read when they are needed, so an array may be larger than memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

# N rows, B batch

ROWS_AT_A_TIME = 1024  # copied to a device at a time


class MappedRows:
    """Chosen rows of a memory-mapped array. It is read like a tensor (N, ...).

    The operating system caches the pages that were read while memory is free. Several processes share them.

    Args:
        array: The array, as `numpy.load` with ``mmap_mode`` returns it.
        rows: (N,) indices of the rows.
    """

    def __init__(self, array: np.ndarray, rows: Tensor) -> None:
        self.array, self.rows = np.asarray(array), rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def num_bytes(self) -> int:
        """Size of the chosen rows in bytes."""
        return len(self.rows) * self.array[:1].nbytes

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Return a batch of rows (B, ...). NumPy copies them in one thread, so the other cores stay free for training."""
        return torch.from_numpy(self.array.take(self.rows[indices].numpy(), axis=0))

    def select(self, rows: Tensor) -> "MappedRows":
        """Return some of the rows. They share the array."""
        return MappedRows(self.array, self.rows[rows])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in parts of at most `size` rows, as `Tensor.split` does."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Tensor:
        """Copy all rows to the memory of a device."""
        result = torch.empty(self.shape, dtype=self[:0].dtype, device=device)
        for start in range(0, len(self), ROWS_AT_A_TIME):
            result[start : start + ROWS_AT_A_TIME] = self[start : start + ROWS_AT_A_TIME]
        return result


class GrowingArray:
    """Writes a one-dimensional array to a .npy file, part after part.

    NumPy leaves space in the header of such a file, so that it has the same size for every length of the array.

    Args:
        path: The file.
        dtype: Type of the elements.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.file, self.dtype, self.length = path.open("wb"), dtype, 0

    def __enter__(self) -> Self:
        self._write_header()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def append(self, array: np.ndarray) -> None:
        """Write a part of the array."""
        self.file.write(array.astype(self.dtype).data)
        self.length += len(array)

    def _write_header(self) -> None:
        header: dict[str, Any] = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)
