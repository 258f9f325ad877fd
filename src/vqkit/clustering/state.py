"""The state between two iterations: one safetensors file, written beside and renamed.

It holds the centres and a record (settings, a fingerprint of the data, what every iteration
brought), and their SHA-256. Whoever continues from it gets the same bits as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from vqkit.config import require

FORMAT: Final = 1
KIND: Final = "k-means state"
MARK: Final = rb"\"kind\": \"k-means state\""
"""In the first bytes of every state: tells a damaged one from a file of somebody else."""
HEAD: Final = 4096


@dataclass(frozen=True, slots=True)
class State:
    """What a run must know to continue."""

    tensors: dict[str, Tensor]
    """On the CPU."""
    record: dict[str, Any]
    """JSON values; `settings` and `data` say what it belongs to."""


def write_state(path: Path, state: State) -> None:
    """Write `path` whole or not at all, and wait until it has reached the disk."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    record = json.dumps({"library": "vqkit", "kind": KIND, "format": FORMAT, **state.record})
    metadata = {"record": record, "sha256": _digest(tensors, record)}
    content = safetensors.torch.save(tensors, metadata)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        left = "the older state there is whole" if path.exists() else "there was no older state"
        raise OSError(error.errno, f"{error.strerror}, while saving {path}; {left}") from error


def read_state(path: Path) -> State | None:
    """Read what `write_state` wrote; None if there is no file.

    Raises:
        ValueError: the file is damaged, or was written by something else.
    """
    if not path.exists():
        return None
    foreign = "is no state of a clustering; choose another path"
    require(path.is_file(), f"state={path}", foreign)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"state={path}: cannot be read ({error}); choose another path") from error
    damaged = "is a damaged state of a clustering; delete it to begin again"
    problem = damaged if MARK in content[:HEAD] else foreign
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        text = metadata["record"]
        whole = metadata["sha256"] == _digest(tensors, text)
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"state={path}: {problem} ({error})") from error
    require(whole, f"state={path}", problem)
    record = json.loads(text)
    require(record.get("kind") == KIND, f"state={path}", foreign)
    require(
        record.get("format") == FORMAT,
        f"state={path}",
        f"has format {record.get('format')!r}, this version reads {FORMAT}; choose another path",
    )
    return State(tensors, record)


def check_belongs(path: Path, state: State, settings: dict[str, Any], data: dict[str, Any]) -> None:
    """Raise `ValueError` unless the state is one of these settings and data.

    Only `iterations` may differ: a longer run goes on.
    """
    for name, here in (("settings", settings), ("data", data)):
        there = state.record[name]
        differences = [
            f"{name}.{key}: {_short(there.get(key))} there, {_short(here.get(key))} here"
            for key in sorted(set(there) | set(here))
            if there.get(key) != here.get(key) and (name, key) != ("settings", "iterations")
        ]
        require(
            not differences,
            f"state={path}",
            f"belongs to another clustering ({'; '.join(differences)}); use those settings and "
            "data, or choose another path",
        )
    reports = state.record.get("reports")
    if reports is None:
        done = state.record["step"]
    else:  # of groups, which iterate each by itself
        done = max((len(report["iterations"]) for report in reports), default=0)
    require(
        done <= settings["iterations"],
        f"iterations={settings['iterations']}",
        f"state={path} has done {done} already; ask for as many or more",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
