"""Gradients of all processes, averaged; and the gradients of a network's output.

Processes see equal shares of a batch and every loss is a mean, so that the average of their
gradients is the gradient of the whole batch. It is taken once per optimizer step, after all
micro-batches, over flat buckets: no wrapper around the model, hence no rules about how often it is
called, what is frozen, or what is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqkit.quantizers import ranks

BUCKET = 2**25
"""Numbers that are sent at a time (128 MiB in float32)."""


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by the mean over processes, the same bits on each.

    A parameter without gradient must have none on any process: the graph is the same on all.
    """
    average_in_place([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def average_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over processes; nothing to do for one process."""
    if ranks.world_size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        flat /= ranks.world_size()
        sizes = [tensor.numel() for tensor in bucket]
        for tensor, mean in zip(bucket, flat.split(sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one type, up to `BUCKET` numbers each."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        bucket: list[Tensor] = []
        size = 0
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            if bucket and size + tensor.numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.numel()
        yield bucket
