"""What a pickle of a checkpoint says about tensors whose numbers lie elsewhere in the file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True, slots=True)
class Storage:
    """A stretch of numbers elsewhere in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its numbers."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that has not been read yet: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a packed copy."""
        return prod(self.shape) * self.storage.dtype.itemsize

    @property
    def fits(self) -> bool:
        """Whether it lies inside its storage and does not make more numbers of it than it has."""
        ends = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((size - 1) * step for size, step in ends)
        return 0 < prod(self.shape) <= self.storage.numel and last < self.storage.numel
