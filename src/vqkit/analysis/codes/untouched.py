"""Which codes of a run never moved and which were never drawn: measured, not guessed.

Two measurements, each from what the run has left behind:

- The codes before the first step are drawn again from the run's settings and seed, and compared
  with those of now, bit for bit. This is taken back (None) where other versions would draw others.
- The trainer counts every token of every step; the newest checkpoint says of every code at which
  step it was last drawn, 0 for never.

For plain VQ-VAE trained by Adam both mark the same codes. Rules that write codes without drawing
them (anchors, restarts, averages that decay), weight decay, projectors and refiners move them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqkit.analysis.tables import CodeTable, code_tables
from vqkit.config import RunConfig
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.training.checkpoint import Snapshot, newest_checkpoint
from vqkit.training.machine import describe_machine
from vqkit.training.window import COUNTED


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The codes of a run before its first step."""

    tables: tuple[CodeTable, ...] | None
    """In the order of `quantizer.books`; None where they cannot be drawn again."""
    reason: str
    """Why not; empty where they can."""


def initial_tables(config: RunConfig, record: dict[str, Any]) -> Start:
    """Draw the codes of a run's first moment again.

    Random numbers and rounding are those of one version of torch on one kind of processor, so that
    only there the codes are those that the run began with. The generators of this process, of the
    CPU and of GPUs, stay as they are.

    Args:
        config: of the run.
        record: `result.json`, or the record of a checkpoint: versions and hardware of the run.
    """
    here = describe_machine(torch.device("cpu"), 1)
    for group, key in (("versions", "torch"), ("hardware", "cpu_capability")):
        then, now = record.get(group, {}).get(key), here[group][key]
        if then != now:
            return Start(tables=None, reason=f"trained with {key} {then}, this is {now}")
    settings = TokenizerConfig(network=config.network, quantizer=config.quantizer)
    with torch.random.fork_rng(devices=[]):
        # Models are built on the CPU; `torch.manual_seed` would seed the GPUs for good.
        torch.default_generator.manual_seed(config.seed)
        try:
            tokenizer = ImageTokenizer(settings).eval()
        except (ValueError, OSError) as error:  # the file that codes began from is gone
            return Start(tables=None, reason=str(error))
    return Start(tables=code_tables(tokenizer.quantizer), reason="")


def unmoved(now: CodeTable, then: CodeTable) -> Tensor:
    """Return which codes are their initial ones, bit for bit, (K,) bool."""
    return (now.codes.cpu() == then.codes.cpu()).all(1)


def never_drawn(folder: Path, tokenizer: ImageTokenizer) -> tuple[Tensor | None, ...]:
    """Return for every codebook which codes no training token has drawn so far, (K,) bool.

    As of the newest whole checkpoint. None for a codebook of more than 4,194,304 codes, which is
    not counted, and for all without a checkpoint.
    """
    snapshot, _ = newest_checkpoint(folder)
    quantizer = tokenizer.quantizer
    sizes = [quantizer.slots[book[0]].num_codes for book in quantizer.books]
    if snapshot is None:
        return (None,) * len(sizes)
    parts = iter(_silent(snapshot).split([size for size in sizes if size <= COUNTED]))
    return tuple(next(parts) if size <= COUNTED else None for size in sizes)


def _silent(snapshot: Snapshot) -> Tensor:
    drawn_at, counts = snapshot.trainer["code_drawn_at"], snapshot.trainer["code_counts"]
    return (drawn_at.cpu() == 0) & (counts.cpu() == 0)
