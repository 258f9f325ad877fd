"""The training loss, without the discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqkit.config.core import check_choice, require

Reconstruction = Literal["mse", "l1", "log_mse"]
Perceptual = Literal["none", "lpips"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The training loss: reconstruction plus the quantizer's own terms."""

    reconstruction: Reconstruction = "mse"
    """`mse` or `l1` on images in [-1, 1], mean over elements; `log_mse` is SQ-VAE's
    (D/2)·log(sum of squares per image)."""
    variance: float = 1.0
    """Divides `mse`: the variance of the training pixels in [0, 1], as the VQ-VAE code does."""
    perceptual: Perceptual = "none"
    """`lpips` adds LPIPS of VGG16 (arXiv:1801.03924) on images in [-1, 1]; its weights are looked
    for as `vqkit.weights` says."""
    perceptual_weight: float = 1.0
    """Factor of `lpips`."""
    lpips_weights: str | None = None
    """File of the weights of LPIPS; None looks where `vqkit.weights` says."""
    quantizer_weight: float = 1.0
    """Factor of all terms of the quantizer, which have weights of their own in the preset."""

    def __post_init__(self) -> None:
        check_choice("objective.reconstruction", self.reconstruction, Reconstruction)
        check_choice("objective.perceptual", self.perceptual, Perceptual)
        require(self.variance > 0, f"objective.variance={self.variance}", "must be above 0")
        require(
            self.variance == 1.0 or self.reconstruction == "mse",
            f"objective.variance={self.variance} with reconstruction={self.reconstruction!r}",
            "only 'mse' is divided by the variance; leave it at 1",
        )
        for name in ("perceptual_weight", "quantizer_weight"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name}={value}", "must not be negative")
