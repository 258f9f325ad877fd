"""Commands that torchrun may start, and those that a kill or Ctrl-C only interrupts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

HOURS_TO_WAIT = 24
"""Processes wait for whoever fits the whitening, has the largest class or the slowest disk."""


@contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that torchrun has started, if it has; True in the first one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield dist.get_rank() == 0
        return
    dist.init_process_group("gloo", timeout=timedelta(hours=HOURS_TO_WAIT))
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def own_device(wanted: str | None) -> str:
    """Return where to compute, by default a GPU; every process of torchrun gets its own."""
    import torch

    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return wanted


@contextmanager
def resumable(fresh: bool = False) -> Iterator[None]:
    """Tell who presses Ctrl-C that nothing is lost; --fresh once more would begin anew."""
    try:
        yield
    except KeyboardInterrupt as stop:
        command = "the same command without --fresh" if fresh else "the same command"
        stop.args = (f"{str(stop) or 'interrupted'}; {command} goes on from here",)
        raise
