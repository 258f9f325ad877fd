"""Why a run stopped: a JSON record beside its checkpoints, which `vqkit doctor` explains.

`stopped.json` is written by the main process whenever a run does not reach its end, and removed
when it goes on. `kind` is one of `KINDS`; the other keys are what was known.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from vqkit.data import Batch
from vqkit.models.files import write_whole
from vqkit.training.log import read_log

STOPPED: Final = "stopped.json"
LINES: Final = 20
"""Last lines of the log that a record repeats."""

Kind = Literal["signal", "not_finite", "exploded", "data", "disk", "memory", "apart", "error"]
"""`signal`: it was asked to; `not_finite`, `exploded`: losses, gradients or weights; `data`: images
that cannot be read; `disk`: checkpoints that cannot be written; `memory`: too little of it;
`apart`: processes with different weights; `error`: anything else."""
KINDS: Final = get_args(Kind)


def write_stop(folder: Path, kind: Kind, step: int, message: str, **facts: Any) -> None:
    """Write the record; on a full disk there is none.

    Args:
        folder: of the run.
        kind: what happened.
        step: optimizer step at which it happened, counted from 1.
        message: what the user was told.
        facts: more for the doctor, as JSON values; numbers that are not finite become text.
    """
    with suppress(OSError, ValueError):
        lines = read_log(folder / "log.jsonl")[-LINES:]
        record = {"kind": kind, "step": step, "message": message, **facts, "last_lines": lines}
        content = json.dumps(_plain(record), indent=2, allow_nan=False) + "\n"
        part = folder / f"{STOPPED}.part"
        write_whole(part, content.encode())
        os.replace(part, folder / STOPPED)


def read_stop(folder: Path) -> dict[str, Any] | None:
    """Return the record of why a run stopped, None without one; `ValueError` if unreadable."""
    path = folder / STOPPED
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = record["kind"] in KINDS
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); train on, it is written anew"
        ) from error
    if not known:
        raise ValueError(f"{path}: kind={record['kind']!r} is of another version of vqkit")
    return record


def forget_stop(folder: Path) -> None:
    """Remove the record and the batch that belongs to it: the run goes on."""
    (folder / STOPPED).unlink(missing_ok=True)
    for path in folder.glob("bad_batch*.safetensors"):
        path.unlink(missing_ok=True)


def describe_weights(*models: nn.Module | None) -> dict[str, Any]:
    """Return `weight_norms`, the length of every part's weights, and what of them is `not_finite`.

    A part is what stands before the first dot of a parameter's name.
    """
    named = {name: p.detach() for name, p in _parameters(models)}
    return {"weight_norms": _part_norms(named), "not_finite": _not_finite(named)}


def describe_gradients(*models: nn.Module | None) -> dict[str, Any]:
    """Return `gradient_norms` and `not_finite_gradients`, likewise."""
    named = {name: p.grad for name, p in _parameters(models) if p.grad is not None}
    return {"gradient_norms": _part_norms(named), "not_finite_gradients": _not_finite(named)}


def _parameters(models: tuple[nn.Module | None, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    for model in models:
        if model is not None:
            yield from model.named_parameters()


def _part_norms(named: Mapping[str, Tensor]) -> dict[str, float]:
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in named.items():
        parts.setdefault(name.partition(".")[0], []).append(tensor)
    return {part: float(nn.utils.get_total_norm(tensors)) for part, tensors in parts.items()}


def _not_finite(named: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]


def describe_batch(batch: Batch) -> dict[str, Any]:
    """Return the range of the pixels, how many images are of one colour, and the keys."""
    flat = batch.images.flatten(1)
    plain = (flat.amin(1) == flat.amax(1)).tolist()
    return {
        "keys": list(batch.keys),
        "least": int(flat.min()),
        "largest": int(flat.max()),
        "one_colour": [key for key, is_plain in zip(batch.keys, plain, strict=True) if is_plain],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
