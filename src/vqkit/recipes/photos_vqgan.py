"""Photographs, VQGAN systems: short adversarial runs on a CPU, on your own folder or built-in ones.

Seven quantizers inside the same small VQGAN (width 32, 8 pixels per position), trained on random
crops of 128 x 128 with L1 and, from half of the steps on, the adaptive GAN loss; no LPIPS, which
needs weights. Without `path` they use the photographs inside the scikit-image and scikit-learn
wheels; with it the images of that folder, whose shorter side must have 128 pixels.

These are no published experiments. All take the same number of steps of the same images, few
enough for a laptop: what they show is how the systems learn, not how well they end. Like
`vqkit.recipes.photos` they are set for few steps: Adam at 1e-3 instead of VQGAN's 4.5e-6 per image,
and commitment 1. Rates span 0.16 to 8 bits per pixel: read quality beside the rate.
"""

from __future__ import annotations

from typing import Any, Final, Unpack

from vqkit.config import (
    AdversarialConfig,
    LogConfig,
    ObjectiveConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    VQGANNetwork,
)
from vqkit.recipes.photos import PhotoOptions, photo_images

NETWORK: Final = VQGANNetwork(
    width=32,
    multipliers=(1, 2, 2, 4),
    attention_strides=(),
    num_res_blocks=1,
    # 4 channels in a group, as in the full width; groups of one channel would forget its mean,
    # and with it the colours.
    norm_groups=8,
)
PAID: Final = {"commitment": 1.0}


class VQGANPhotoOptions(PhotoOptions, total=False):
    """What every recipe here takes; default 200 steps of 8 crops of 128 x 128."""

    start: int
    """Step from which the discriminator takes part; default half of the steps."""


def photos_vqgan(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """VQGAN, 1,024 codes of 256 numbers: 0.156 bits per pixel (arXiv:2012.09841).

    Command: `vqkit train photos_vqgan`.
    """
    return _run("photos_vqgan", "vq_vae", {"num_codes": 1024, "dim": 256}, options)


def photos_vqgan_cvq(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """CVQ in the same VQGAN, seldom-used codes move to features: 0.156 bits per pixel.

    By the L2 distance: with the cosine it had learned nothing after 100 steps.
    Command: `vqkit train photos_vqgan_cvq`.
    """
    args = {"num_codes": 1024, "dim": 256, "metric": "l2"}
    return _run("photos_vqgan_cvq", "cvq", args, options)


def photos_vqgan_simvq(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """SimVQ in the same VQGAN, frozen codes behind a linear layer: 0.156 bits per pixel.

    Command: `vqkit train photos_vqgan_simvq`.
    """
    return _run("photos_vqgan_simvq", "simvq", {"num_codes": 1024, "dim": 256}, options)


def photos_vqgan_dual(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """Dual Codebook VQ in the same VQGAN, row (v) of its Table 2: 0.281 bits per pixel.

    Command: `vqkit train photos_vqgan_dual`.
    """
    return _run("photos_vqgan_dual", "dual", {"num_codes": 512, "dim": 128}, options)


def photos_vqgan_dual_plain(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """Dual without its transformer, row (ii) of its Table 2: 0.281 bits per pixel.

    Command: `vqkit train photos_vqgan_dual_plain`.
    """
    args = {"num_codes": 512, "dim": 128, "refiner": "none"}
    return _run("photos_vqgan_dual_plain", "dual", args, options)


def photos_vqgan_looc4(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """LooC in the same VQGAN, 4 segments of 256 codes of 64 numbers: 0.5 bits per pixel.

    Command: `vqkit train photos_vqgan_looc4`.
    """
    args = {"num_codes": 256, "dim": 64, "num_segments": 4}
    return _run("photos_vqgan_looc4", "looc", args, options)


def photos_vqgan_looc64(**options: Unpack[VQGANPhotoOptions]) -> RunConfig:
    """LooC in the same VQGAN, 64 segments of 256 codes of 4 numbers: 8 bits per pixel.

    Command: `vqkit train photos_vqgan_looc64`.
    """
    args = {"num_codes": 256, "dim": 4, "num_segments": 64}
    return _run("photos_vqgan_looc64", "looc", args, options)


def _run(name: str, preset: str, args: dict[str, Any], options: VQGANPhotoOptions) -> RunConfig:
    num_steps = options.get("num_steps", 200)
    data, test = photo_images(options, size=128)
    return RunConfig(
        name=options.get("name", name),
        quantizer=QuantizerConfig(preset=preset, args=args | PAID),
        network=NETWORK,
        data=data,
        test_data=test,
        objective=ObjectiveConfig(reconstruction="l1"),
        adversarial=AdversarialConfig(
            start=options.get("start", num_steps // 2), width=32, num_layers=2
        ),
        optim=OptimConfig(
            num_steps=num_steps,
            batch_size=options.get("batch_size", 8),
            lr=1e-3,
            betas=(0.5, 0.9),
        ),
        log=LogConfig(every=10, checkpoint_every=max(1, min(1000, num_steps // 2))),
    )
