"""CIFAR-10 recipes: LooC and the methods it is compared with (Tables 1, 3, 4, 5 of LooC).

Every function returns a frozen `RunConfig`; `RunOptions` are its further arguments. What all have
in common stands in `small_images`. Times are arithmetic, not runs: the published steps times the
seconds of one step in float32, on one core of a server CPU (Xeon, AVX-512). GPUs: not measured.
"""

from __future__ import annotations

from typing import Unpack

from vqkit.config import RunConfig
from vqkit.recipes.small_images import RunOptions, small_image_run


def looc_cifar10(num_codes: int = 256, dim: int = 4, **options: Unpack[RunOptions]) -> RunConfig:
    """LooC: one codebook of short codes, shared by 128 / dim segments; 16 bits per pixel as 256x4.

    Command: `vqkit train looc_cifar10`. 195,000 steps of 128 (500 epochs):
    about 24 hours.
    Published for 256x4: 34.51 dB PSNR, SSIM .9880, rFID 19.22; 32x4: 32.22 dB.
    `num_codes` and `dim` give the rows of Tables 1, 3, 4, 5; see also `looc_table`.
    """
    return small_image_run("looc", "cifar10", num_codes, dim, **options)


def vq_vae_cifar10(
    num_codes: int = 1024, dim: int = 128, **options: Unpack[RunOptions]
) -> RunConfig:
    """VQ-VAE, one code per position: 0.625 bits per pixel as 1024x128.

    Command: `vqkit train vq_vae_cifar10`. 24,000 steps of 1,024 (500 epochs):
    about 29 hours.
    Published: 23.32 dB PSNR, SSIM .8595, rFID 39.67.
    Differs: LooC's code puts the commitment weight on the codebook term; here it is on commitment.
    """
    return small_image_run("vq_vae", "cifar10", num_codes, dim, **options)


def cvq_cifar10(num_codes: int = 1024, dim: int = 128, **options: Unpack[RunOptions]) -> RunConfig:
    """CVQ-VAE: seldom-used codes move to features; 0.625 bits per pixel as 1024x128.

    Command: `vqkit train cvq_cifar10`. 24,000 steps of 1,024 (500 epochs):
    about 60 hours.
    Published: 24.72 dB PSNR, SSIM .8978, rFID 24.73.
    Differs: anchors are the closest features, read after the optimizer's step.
    """
    return small_image_run("cvq", "cifar10", num_codes, dim, **options)


def sq_vae_cifar10(
    num_codes: int = 1024, dim: int = 128, **options: Unpack[RunOptions]
) -> RunConfig:
    """SQ-VAE, Gaussian I: stochastic codes; 0.625 bits per pixel as 1024x128.

    Command: `vqkit train sq_vae_cifar10`. 156,200 steps of 32 (100 epochs, Adam 1e-3):
    about 10 hours.
    Published: 24.07 dB PSNR, SSIM .8779, rFID 37.92.
    Differs: VQ-VAE's networks instead of SQ-VAE's own with batch normalisation and a sigmoid, the
    learning rate is not halved on a plateau, no images are held out.
    """
    return small_image_run("sq_vae", "cifar10", num_codes, dim, **options)


def pq_cifar10(num_codes: int = 256, dim: int = 4, **options: Unpack[RunOptions]) -> RunConfig:
    """Product quantization, an own codebook per segment; 16 bits per pixel as 256x4 (#32).

    Command: `vqkit train pq_cifar10`. 195,000 steps of 128 (500 epochs):
    about 26 hours.
    Published: 28.27 dB PSNR, SSIM .9527, rFID 27.15.
    Differs: LooC's PQ divides 256 by the segments (8 codes each, 6 bits per pixel) and cuts along
    the height; here every segment has `num_codes` codes. Training is LooC's in all but the sharing.
    """
    return small_image_run("pq", "cifar10", num_codes, dim, **options)
