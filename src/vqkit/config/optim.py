"""The optimizer and the length of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqkit.config.core import check_choice, require

Precision = Literal["fp32", "bf16"]
Schedule = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Adam and the length of the run."""

    num_steps: int
    """Optimizer steps in all."""
    batch_size: int = 128
    """Images per optimizer step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Parts into which each process cuts its share of the batch, to save memory."""
    lr: float = 3e-4
    """Learning rate after the warm-up."""
    schedule: Schedule = "constant"
    """`constant`, or a half `cosine` or a straight line (`linear`) from `lr` down to
    `lr * final_lr` at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows from nothing to `lr`."""
    final_lr: float = 0.0
    """Share of `lr` that is left at the end of a schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """Largest norm of the gradient; None does not clip."""
    precision: Precision = "fp32"
    """`bf16` runs the networks under autocast; the quantizer always stays in float32."""
    weight_ema: float | None = None
    """Decay of an exponential average of the weights, kept beside them and used for evaluation."""
    compile: bool = False
    """Compile encoder, decoder and discriminator with `torch.compile`."""
    deterministic: bool = True
    """On CUDA: kernels that give the same bits every time, so that a resumed run is exactly the
    undisturbed one. A CPU always does."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            require(value >= 1, f"optim.{name}={value}", "must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            f"optim.accumulate={self.accumulate}",
            f"must divide optim.batch_size={self.batch_size}",
        )
        for name in ("warmup_steps", "final_lr"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}={value}", "must not be negative")
        require(self.final_lr <= 1, f"optim.final_lr={self.final_lr}", "is a share of optim.lr")
        require(
            self.schedule == "constant" or self.warmup_steps < self.num_steps,
            f"optim.warmup_steps={self.warmup_steps}",
            f"leaves nothing of optim.num_steps={self.num_steps} for the schedule",
        )
        check_choice("optim.schedule", self.schedule, Schedule)
        require(self.lr > 0, f"optim.lr={self.lr}", "must be above 0")
        require(self.eps > 0, f"optim.eps={self.eps}", "must be above 0")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas}",
            "must lie in [0, 1)",
        )
        require(
            self.weight_decay >= 0,
            f"optim.weight_decay={self.weight_decay}",
            "must not be negative",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm}",
            "must be above 0, or null for no clipping",
        )
        require(
            self.weight_ema is None or 0 < self.weight_ema < 1,
            f"optim.weight_ema={self.weight_ema}",
            "must lie between 0 and 1, or be null for none",
        )
        check_choice("optim.precision", self.precision, Precision)
