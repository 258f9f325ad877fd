"""The discriminator, its losses, and how they enter the training of the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqkit.config.core import check_at_least, check_choice, require

GanLoss = Literal["hinge", "non_saturating"]
Norm = Literal["batch", "synced_batch", "spectral", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """A PatchGAN discriminator (`methods` 1.2) and its part in the loss (Dual, equations 1 to 3).

    All steps are optimizer steps of the generator. Until `start` neither the discriminator nor the
    adaptive weight is computed, but for `warmup` steps in which the discriminator trains alone.
    """

    start: int
    """Step from which the discriminator's judgement enters the loss of the generator."""
    weight: float = 0.8
    """Factor of that loss, multiplied by the adaptive weight if there is one."""
    adaptive: bool = True
    """Weigh it by the ratio of gradients at the decoder's last layer (Dual, equation 2)."""
    adaptive_max: float = 1e4
    """Largest adaptive weight."""
    adaptive_delta: float = 1e-4
    """Added to the denominator of the adaptive weight."""
    ramp: int = 0
    """Steps over which the loss grows from nothing to its full weight after `start`."""
    warmup: int = 0
    """Steps before `start` in which the discriminator already learns."""
    generator_loss: GanLoss = "hinge"
    """`hinge`: -mean D(fake); `non_saturating`: mean softplus(-D(fake))."""
    discriminator_loss: GanLoss = "hinge"
    """`hinge`, or `non_saturating`, which is the logistic loss of the original GAN."""
    discriminator_weight: float = 1.0
    """Factor of the discriminator's own loss."""
    num_layers: int = 3
    """Strided convolutions of the discriminator: 3 sees patches of 70 x 70 pixels, 2 of 34 x 34."""
    width: int = 64
    """Channels of the discriminator's first layer."""
    norm: Norm = "batch"
    """Normalisation of the discriminator: over the micro-batch of a process, over those of all
    processes (`synced_batch`), of its weights by their largest singular value (`spectral`,
    arXiv:1802.05957), or none."""
    lr: float | None = None
    """Learning rate of the discriminator; None is that of the generator."""
    lecam: float = 0.0
    """Factor of LeCam's regulariser (arXiv:2104.03310)."""
    lecam_decay: float = 0.999
    """Of the running means of the discriminator's outputs that LeCam compares with."""
    r1: float = 0.0
    """Factor of R1, gamma / 2 times the squared gradient at real images (arXiv:1801.04406)."""
    r1_every: int = 16
    """Steps between two such penalties, each multiplied by this number."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("generator_loss", GanLoss),
            ("discriminator_loss", GanLoss),
            ("norm", Norm),
        ):
            check_choice(f"adversarial.{name}", getattr(self, name), choices)
        not_negative = ("start", "weight", "ramp", "warmup", "discriminator_weight", "lecam", "r1")
        check_at_least("adversarial", self, not_negative, 0)
        check_at_least("adversarial", self, ("num_layers", "width", "r1_every"), 1)
        for name in ("adaptive_max", "adaptive_delta"):
            value = getattr(self, name)
            require(value > 0, f"adversarial.{name}={value}", "must be above 0")
        require(
            self.lr is None or self.lr > 0, f"adversarial.lr={self.lr}", "must be above 0, or null"
        )
        require(
            0 <= self.lecam_decay < 1,
            f"adversarial.lecam_decay={self.lecam_decay}",
            "must lie in [0, 1)",
        )
