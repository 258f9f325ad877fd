"""Is the run well? Finite losses, codes in use, processes that agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vqkit.data import Batch
from vqkit.models.files import write_whole
from vqkit.quantizers import GridQuantizer, ranks

COLLAPSED: Final = 0.05
"""A codebook counts as collapsed when its tokens used fewer than this share of the codes that they
could have reached: min(codes, tokens). Uniform draws reach at least 63 % of that."""
COUNTED: Final = 1 << 22
"""Codebooks with more codes (large lattices) are left out of the window: a count for each of their
codes would outweigh the model."""
BAD_BATCH: Final = "bad_batch.safetensors"


class CodeWindow:
    """Codes used since the last line of the log, per codebook: slots that share one are pooled.

    The counts are part of a checkpoint: a resumed run logs what it would have logged.
    """

    def __init__(self, quantizer: GridQuantizer, device: torch.device) -> None:
        self._slots = quantizer.slots
        books = [b for b in quantizer.books if self._slots[b[0]].num_codes <= COUNTED]
        self._books = books
        self._sizes = [self._slots[book[0]].num_codes for book in books]
        first = {slot: sum(self._sizes[:n]) for n, book in enumerate(books) for slot in book}
        self._counted = torch.tensor(sorted(first), dtype=torch.int64, device=device)
        self._starts = torch.tensor([first[slot] for slot in sorted(first)], device=device).long()
        self.counts = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)

    def count(self, ids: Tensor) -> None:
        """Add the ids (B, h, w, T) of one micro-batch."""
        places = (ids[..., self._counted] + self._starts).flatten()
        self.counts += torch.bincount(places, minlength=len(self.counts))

    def total(self) -> Tensor:
        """Return the counts of all processes together."""
        return ranks.sum_over_ranks(self.counts)

    def clear(self) -> None:
        """Begin a new window."""
        self.counts.zero_()

    def summary(self) -> dict[str, Any]:
        """Return numbers for a line of the log; means are over the codebooks that are counted.

        `codes_used` is the share of codes drawn at least once, `perplexity` the exponential of the
        entropy of the draws, `tokens` the number of draws of all codebooks together. `warning`
        names the collapsed codebooks, if any.
        """
        if not self._books:
            return {}
        used, perplexity, collapsed = [], [], []
        counts = self.total().cpu()
        for book, drawn in zip(self._books, counts.split(self._sizes), strict=True):
            tokens, num_used = int(drawn.sum()), int((drawn > 0).sum())
            share = drawn[drawn > 0].double() / max(tokens, 1)
            used.append(num_used / len(drawn))
            perplexity.append(float((-(share * share.log()).sum()).exp()))
            if num_used < COLLAPSED * min(len(drawn), tokens):
                name = self._slots[book[0]].name + (" and others" if len(book) > 1 else "")
                collapsed.append(f"{name}: {tokens:,} tokens used {num_used} of {len(drawn):,}")
        numbers: dict[str, Any] = {
            "codes_used": sum(used) / len(used),
            "perplexity": sum(perplexity) / len(perplexity),
            "tokens": int(counts.sum()),
        }
        if collapsed:
            more = f"; {len(collapsed) - 3} more" if len(collapsed) > 3 else ""
            numbers["warning"] = f"codebook collapse: {'; '.join(collapsed[:3])}{more}"
        return numbers


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


def check_weights(model: nn.Module, step: int) -> None:
    """Raise `ValueError` if a weight is not finite or a buffer holds NaN: not to be saved.

    Infinity is legal in a buffer: a running best starts there.
    """
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    bad += [name for name, b in model.named_buffers() if bool(torch.isnan(b).any())]
    if bad:
        raise ValueError(
            f"step={step}: {', '.join(bad[:4])} hold values that are not finite; the checkpoint "
            "before it is kept, resume from there with a smaller optim.lr or with optim.clip_norm"
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


def _finite(value: float) -> bool:
    return abs(value) < float("inf")  # False for NaN too
