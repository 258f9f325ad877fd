"""The few words that processes exchange. All calls are made by all of them, in the same order."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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


def together() -> Processes:
    """Return the processes of the default group, or this one alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return DistributedProcesses()
    return Processes()
