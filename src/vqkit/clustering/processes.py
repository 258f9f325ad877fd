"""The few words that processes exchange. All calls are made by all of them, in the same order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Processes:
    """One process alone; `together()` gives those of torch.distributed, if there are several."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up tensors of equal shape. Exact if the values are: whole, or on one grid."""
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Return everybody's item, in the order of ranks; tensors inside are on the CPU."""
        return [item]

    def agreed(self, work: Callable[[], T]) -> T:
        """Return what this process's `work` brings, once it went well everywhere.

        `work` exchanges nothing. If it fails anywhere, everybody raises the error of the lowest
        rank: else the others would wait for ever for the one that failed.
        """
        return work()

    def require_same(self, facts: dict[str, Any]) -> None:
        """Raise `ValueError` everywhere, naming the facts (JSON values) that are not all equal."""
        if self.size == 1:
            return
        everybody = self.gather({name: _digest(value) for name, value in facts.items()})
        names = sorted(set().union(*everybody))
        differ = [name for name in names if len({one.get(name) for one in everybody}) > 1]
        if differ:
            raise ValueError(
                f"{', '.join(differ)}: not the same in all {self.size} processes; all must make "
                "the same call, with the same vectors"
            )

    def share(self, count: int) -> tuple[int, int]:
        """Return first and last + 1 of the rows of this process among `count`: a contiguous run."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Join the rows (n, ...) of all processes in the order of ranks, on the device of mine."""
        if self.size == 1:
            return rows
        return torch.cat(self.gather(rows.cpu())).to(rows.device)


class DistributedProcesses(Processes):
    """The default group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        cuda = dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if cuda else "cpu"

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up in float64 or int64, on the device that the group talks through."""
        total = tensor.to(self._device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, item: Any) -> list[Any]:
        """Exchange pickles: small things, or things exchanged once."""
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def agreed(self, work: Callable[[], T]) -> T:
        """Add up one number if all went well, and exchange the errors if not."""
        result: T | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        failed = torch.tensor([int(error is not None)])
        if int(self.sum(failed)) == 0:
            return cast(T, result)
        errors = self.gather(None if error is None else portable(error))
        first = next(rank for rank, found in enumerate(errors) if found is not None)
        if error is not None and first == self.rank:
            raise error
        raise errors[first]


def together() -> Processes:
    """Return the processes of the default group, or this one alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return DistributedProcesses()
    return Processes()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def portable(error: Exception) -> Exception:
    """Return an error that any process can unpickle; somebody's own class may not let it."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    for kind in (ValueError, TypeError, ImportError, OSError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
