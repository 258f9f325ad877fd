"""What stops a run: values that are not finite, processes that disagree; and its memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import nn

from vqkit.data import Batch
from vqkit.models.files import write_whole
from vqkit.quantizers import ranks

BAD_BATCH: Final = "bad_batch.safetensors"


def not_finite(losses: Mapping[str, float], model: nn.Module, norm: float) -> str:
    """Name the losses that are not finite or, if all are, the gradients that are not."""
    named = [f"{name} is {value}" for name, value in losses.items() if not _finite(value)]
    if not named and not _finite(norm):
        named = [
            f"the gradient of {name} is not finite"
            for name, p in model.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ] or [f"the norm of the gradient is {norm}"]
    more = f" and {len(named) - 4} more" if len(named) > 4 else ""
    return ", ".join(named[:4]) + more


def save_bad_batch(folder: Path, batch: Batch, step: int, problem: str, rank: int) -> Path:
    """Write the images and keys that stopped the run beside its checkpoints; return the file."""
    name = BAD_BATCH if rank == 0 else BAD_BATCH.replace(".", f"_rank{rank}.")
    facts = {"step": str(step), "problem": problem, "keys": json.dumps(list(batch.keys))}
    content = save({"images": batch.images.contiguous().clone()}, metadata=facts)
    write_whole(folder / name, content)
    return folder / name


def check_weights(model: nn.Module, step: int, saved: int) -> None:
    """Raise `ValueError` if a weight is not finite or a buffer holds NaN: not to be saved.

    `saved` is the step of the newest checkpoint, 0 if there is none. Infinity is legal in a buffer:
    a running best starts there.
    """
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    bad += [name for name, b in model.named_buffers() if bool(torch.isnan(b).any())]
    if bad:
        left = f"the checkpoint of step {saved} is good" if saved else "no checkpoint exists yet"
        raise ValueError(
            f"step={step}: {', '.join(bad[:4])} hold values that are not finite; {left}; train in "
            "another folder with a smaller optim.lr or with optim.clip_norm"
        )


def fingerprint(model: nn.Module) -> bytes:
    """Return the SHA-256 of every tensor of the model, bit for bit."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        # Bytes through a flat uint8 view: numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


def check_ranks_agree(model: nn.Module, device: torch.device, step: int) -> None:
    """Raise `RuntimeError` unless all processes hold the same bits."""
    if ranks.world_size() == 1:
        return
    mine = torch.tensor(list(fingerprint(model)), dtype=torch.uint8, device=device)
    everyone = ranks.gather_over_ranks(mine)
    apart = [rank for rank, other in enumerate(everyone) if not torch.equal(other, everyone[0])]
    if apart:
        raise RuntimeError(
            f"step={step}: processes {apart} hold other weights than process 0; a part of the "
            "model draws or updates from its own process only"
        )


def memory(device: torch.device) -> dict[str, int]:
    """Return the bytes that this process needs, for a line of the log; empty where unknown.

    The peak of CUDA's allocator since the start of the process; on other devices what the process
    holds in main memory at this moment (Linux).
    """
    if device.type == "cuda":
        return {"memory_bytes": torch.cuda.max_memory_allocated(device)}
    try:
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return {}
    return {"memory_bytes": resident * os.sysconf("SC_PAGE_SIZE")}


def _finite(value: float) -> bool:
    return abs(value) < float("inf")  # False for NaN too
