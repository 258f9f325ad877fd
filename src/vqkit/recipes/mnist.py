"""MNIST recipes: LooC and the methods it is compared with (Tables 1, 3, 4, 5 of LooC).

Every function returns a frozen `RunConfig`; `RunOptions` are its further arguments. What all have
in common stands in `small_images`. Times are arithmetic, not runs: the published steps times the
seconds of one step in float32, on one core of a server CPU (Xeon, AVX-512). GPUs: not measured.
"""

from __future__ import annotations

from typing import Unpack

from vqkit.config import RunConfig
from vqkit.recipes.small_images import RunOptions, small_image_run


def looc_mnist(num_codes: int = 256, dim: int = 4, **options: Unpack[RunOptions]) -> RunConfig:
    """LooC: one codebook of short codes, shared by 128 / dim segments; 16 bits per pixel as 256x4.

    Command: `vqkit train looc_mnist`. 234,000 steps of 128 (500 epochs):
    about 23 hours.
    Published for 256x4: 37.58 dB PSNR, SSIM .9976, rFID 1.31; 32x4: 35.15 dB.
    `num_codes` and `dim` give the rows of Tables 1, 3, 4, 5; see also `looc_table`.
    """
    return small_image_run("looc", "mnist", num_codes, dim, **options)


def vq_vae_mnist(num_codes: int = 1024, dim: int = 128, **options: Unpack[RunOptions]) -> RunConfig:
    """VQ-VAE, one code per position: 0.625 bits per pixel as 1024x128.

    Command: `vqkit train vq_vae_mnist`. 29,000 steps of 1,024 (500 epochs):
    about 22 hours.
    Published: 26.48 dB PSNR, SSIM .9777, rFID 3.43.
    Differs: LooC's code puts the commitment weight on the codebook term; here it is on commitment.
    """
    return small_image_run("vq_vae", "mnist", num_codes, dim, **options)


def cvq_mnist(num_codes: int = 1024, dim: int = 128, **options: Unpack[RunOptions]) -> RunConfig:
    """CVQ-VAE: seldom-used codes move to features; 0.625 bits per pixel as 1024x128.

    Command: `vqkit train cvq_mnist`. 29,000 steps of 1,024 (500 epochs):
    about 50 hours.
    Published: 27.87 dB PSNR, SSIM .9833, rFID 1.80.
    Differs: anchors are the closest features, read after the optimizer's step.
    """
    return small_image_run("cvq", "mnist", num_codes, dim, **options)


def sq_vae_mnist(num_codes: int = 1024, dim: int = 128, **options: Unpack[RunOptions]) -> RunConfig:
    """SQ-VAE, Gaussian I: stochastic codes; 0.625 bits per pixel as 1024x128.

    Command: `vqkit train sq_vae_mnist`. 187,500 steps of 32 (100 epochs, Adam 1e-3):
    about 11 hours.
    Published: 27.49 dB PSNR, SSIM .9819, rFID 3.05.
    Differs: VQ-VAE's networks instead of SQ-VAE's own with batch normalisation and a sigmoid, the
    learning rate is not halved on a plateau, no images are held out.
    """
    return small_image_run("sq_vae", "mnist", num_codes, dim, **options)


def pq_mnist(num_codes: int = 256, dim: int = 4, **options: Unpack[RunOptions]) -> RunConfig:
    """Product quantization, an own codebook per segment; 16 bits per pixel as 256x4 (#32).

    Command: `vqkit train pq_mnist`. 234,000 steps of 128 (500 epochs):
    about 26 hours.
    Published: 32.32 dB PSNR, SSIM .9933, rFID 1.76.
    Differs: LooC's PQ divides 256 by the segments (8 codes each, 6 bits per pixel) and cuts along
    the height; here every segment has `num_codes` codes. Training is LooC's in all but the sharing.
    """
    return small_image_run("pq", "mnist", num_codes, dim, **options)
