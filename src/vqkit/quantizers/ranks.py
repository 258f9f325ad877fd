"""The few collectives that codebook updates need. Shapes are equal on all processes, always.

They run on the default process group: every process of it must run the quantizer.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    """Number of this process, 0 without torch.distributed."""
    return dist.get_rank() if _active() else 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, the same bits on each; the input stays as it is."""
    if not _active():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_over_ranks(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes stacked in rank order, (R, ...)."""
    if not _active():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)
