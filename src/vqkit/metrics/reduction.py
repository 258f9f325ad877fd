"""Adding up over processes, on the device that the backend needs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vqkit.quantizers.ranks import gather_over_ranks, sum_over_ranks, world_size


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the elementwise sum over processes, of equal shape on all; `values` stays as it is."""
    if world_size() == 1:
        return values.clone()
    return sum_over_ranks(_on_backend(values)).to(values.device)


def concatenate_over_processes(values: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes in rank order; n may differ between processes."""
    if world_size() == 1:
        return values.clone()
    rows = _on_backend(values)
    sizes = gather_over_ranks(torch.tensor([len(rows)], device=rows.device)).flatten().tolist()
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = gather_over_ranks(padded)
    kept = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(kept).to(values.device)


def _on_backend(values: Tensor) -> Tensor:
    # NCCL moves only tensors that live on a GPU.
    return values.cuda() if dist.get_backend() == "nccl" else values
