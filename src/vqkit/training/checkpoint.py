"""Checkpoints: written whole or not at all, verified when read, without pickles.

A checkpoint is a folder `step_00001000/` (1,000 optimizer steps are done), itself a saved model: a
tokenizer that `ImageTokenizer.from_pretrained` loads, or what `fit` trains.

    model.safetensors, config.json       the model, statistics of a codebook included
    optimizer.safetensors                the optimizer's tensors, as `<parameter>/<what>`
    discriminator.safetensors            the discriminator, if the run has one
    discriminator_optimizer.safetensors  its optimizer's tensors
    ema.safetensors                      averaged weights, if the run keeps them
    trainer.safetensors                  random generators, codes counted for the log
    trainer.json                         step, settings, versions, hardware, SHA-256 of the others
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from vqkit.models.files import WEIGHTS, write_whole
from vqkit.training.folders import remove_folder, whole_folder

FORMAT: Final = 1
RECORD: Final = "trainer.json"
_NAME: Final = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a run must know to continue, on the CPU."""

    step: int
    """Optimizer steps done; the next batch is number `step` of the stream."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    trainer: dict[str, Tensor]
    average: dict[str, Tensor] | None
    record: dict[str, Any]
    """Settings, data, versions, hardware and seconds of training, as JSON values."""
    discriminator: dict[str, Tensor] | None = None
    discriminator_optimizer: dict[str, Tensor] | None = None

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors by the name of their file, the model's own file left out."""
        every = {
            "optimizer": self.optimizer,
            "trainer": self.trainer,
            "ema": self.average,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return {name: tensors for name, tensors in every.items() if tensors is not None}


def save_checkpoint(
    run: Path, snapshot: Snapshot, save_model: Callable[[Path], None], keep: int
) -> Path:
    """Write `snapshot` into the folder `run`, then remove all but the `keep` newest checkpoints.

    The files are written and flushed to the disk in a temporary folder, which is renamed when it is
    complete: a crash or a full disk (`OSError`) at any moment leaves the older checkpoints whole.
    `save_model` writes `model.safetensors`, which holds `snapshot.model`, and `config.json`.
    """
    final = checkpoint_folder(run, snapshot.step)
    try:
        with whole_folder(final) as part:
            _write_files(part, snapshot, save_model)
    except OSError as error:
        older = list_checkpoints(run)
        left = f"{older[-1]} is whole, resume from there" if older else "no checkpoint exists yet"
        raise OSError(error.errno, f"{error.strerror}, while saving {final}; {left}") from error
    for old in list_checkpoints(run)[:-keep]:
        with suppress(OSError):  # it is in nobody's way, and the next save tries again
            remove_folder(old)
    return final


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint after `step` optimizer steps lies."""
    return run / f"step_{step:08}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = [path for path in run.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def set_aside_newer(run: Path, step: int) -> None:
    """Rename checkpoints of later steps than `step`, which were refused, to `broken_...`."""
    for folder in list_checkpoints(run):
        if int(folder.name.removeprefix("step_")) > step:
            aside = folder.with_name(f"broken_{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)


def newest_checkpoint(run: Path) -> tuple[Snapshot | None, list[str]]:
    """Return the newest whole checkpoint (None without any) and why newer ones were passed over."""
    refused: list[str] = []
    for folder in reversed(list_checkpoints(run)):
        try:
            return load_checkpoint(folder), refused
        except ValueError as error:
            refused.append(str(error))
    return None, refused


def load_checkpoint(folder: Path) -> Snapshot:
    """Read and verify a checkpoint; anything missing, damaged or cut off is a `ValueError`."""
    record = _read_record(folder)
    contents = {name: _read_verified(folder / name, sha) for name, sha in record["files"].items()}
    tensors = {
        name: _tensors(folder / name, content)
        for name, content in contents.items()
        if name.endswith(".safetensors")
    }
    return Snapshot(
        step=record["step"],
        model=tensors[WEIGHTS],
        optimizer=tensors["optimizer.safetensors"],
        trainer=_completed(tensors["trainer.safetensors"], record["step"]),
        average=tensors.get("ema.safetensors"),
        discriminator=tensors.get("discriminator.safetensors"),
        discriminator_optimizer=tensors.get("discriminator_optimizer.safetensors"),
        record=record["record"],
    )


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the record of a checkpoint; anything missing or damaged is a `ValueError`.

    As `load_checkpoint`, but without keeping tensors in memory.
    """
    content = _read_record(folder)
    for name, sha256 in content["files"].items():
        _read_verified(folder / name, sha256)
    record: dict[str, Any] = content["record"]
    return record


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """Return the optimizer's tensors, named `<parameter>/<what>`: `decoder.weight/exp_avg`."""
    state = optimizer.state
    return {
        f"{name}/{what}": torch.as_tensor(value)
        for parameter, name in names.items()
        if parameter in state
        for what, value in state[parameter].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put `optimizer_tensors` back; parameters without saved state begin afresh, as they did."""
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, what = key.rpartition("/")
        saved.setdefault(name, {})[what] = tensor
    groups = optimizer.state_dict()["param_groups"]
    state = {}
    for group, numbers in zip(optimizer.param_groups, groups, strict=True):
        for parameter, number in zip(group["params"], numbers["params"], strict=True):
            if names[parameter] in saved:
                # Copies, since the optimizer writes into them, laid out in memory as the parameter.
                state[number] = {
                    what: torch.empty_like(parameter).copy_(tensor)
                    if tensor.shape == parameter.shape
                    else tensor.clone()
                    for what, tensor in saved[names[parameter]].items()
                }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _write_files(part: Path, snapshot: Snapshot, save_model: Callable[[Path], None]) -> None:
    save_model(part)
    for name, tensors in snapshot.groups().items():
        packed = {key: _packed(tensor) for key, tensor in tensors.items()}
        write_whole(part / f"{name}.safetensors", safetensors.torch.save(packed))
    files = sorted(part.iterdir())
    content = {
        "library": "vqkit",
        "format": FORMAT,
        "step": snapshot.step,
        "record": snapshot.record,
        "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
    content["sha256"] = _record_hash(content)
    write_whole(part / RECORD, (json.dumps(content, indent=2) + "\n").encode())


def _record_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of the record itself: a digit that fell over in `step` must not go unnoticed."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _packed(tensor: Tensor) -> Tensor:
    # safetensors takes no channels-last memory, and no memory that tensors share.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); use an older checkpoint") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path}: was not written by this version of vqkit; expected format {FORMAT}"
        )
    if content.get("sha256") != _record_hash(content):
        raise ValueError(f"{path}: was damaged or altered (SHA-256); use an older checkpoint")
    missing = {"step", "record", "files"} - set(content)
    needed = {WEIGHTS, "optimizer.safetensors", "trainer.safetensors"}
    missing |= needed - set(content.get("files", {}))
    if missing:
        raise ValueError(f"{path}: {sorted(missing)} are missing; use an older checkpoint")
    return content


def _read_verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); use an older checkpoint") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(
            f"{path}: {len(content):,} bytes whose SHA-256 is not the one that was saved, the file "
            "is damaged or cut off; use an older checkpoint"
        )
    return content


def _completed(trainer: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Add what older versions did not save.

    When a code was last drawn: just now, for all. What this epoch has drawn: nothing yet, so that
    the rest of it is counted.
    """
    if "code_counts" not in trainer:  # no tokenizer is trained
        return trainer
    counts = trainer["code_counts"]
    missing = {
        "epoch_counts": torch.zeros_like(counts),
        "code_drawn_at": torch.full_like(counts, step, dtype=torch.int32),
        "code_window_began": torch.tensor(step),
    }
    return missing | trainer


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: is no safetensors file ({error})") from error
