"""Photographs: short runs for a first look and for the demo, and the same on your own folder.

Without `path` they use the photographs inside the scikit-image and scikit-learn wheels (7 to train
on, 2 held out, no download), cut at random into 64 x 64 pixels. With `path` they use the images of
that folder, searched recursively, whose shorter side must have 64 pixels. All take the same number
of steps of the same images. The rates span 0.6 to 8 bits per pixel: read quality beside the rate.

These are no published experiments. They are set for few steps: VQ-VAE's networks (stride 4) with
Adam at 1e-3, the plain mean squared error, commitment 1. The papers' setting (3e-4, error divided
by the variance, commitment 0.25) lets the features run away from the codes at first, which takes
thousands of steps to settle.
250 steps take about 45 seconds on one core of a server CPU (Xeon, AVX-512), 25 with
`--optim.precision bf16` where the CPU has bf16 matrix units; Dual two minutes.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from vqkit.config import (
    DataConfig,
    LogConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
)


class PhotoOptions(TypedDict, total=False):
    """What every recipe for photographs takes; default 250 steps of 16 crops of 64 x 64."""

    path: str
    """Folder of your images; default the photographs inside the wheels."""
    test_path: str
    """Folder of images to evaluate on; default the held-out photographs inside the wheels."""
    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Random crops per step."""
    size: int
    """Side of a crop in pixels."""
    name: str
    """Name of the run; default that of the recipe."""


def photos_vq_vae(**options: Unpack[PhotoOptions]) -> RunConfig:
    """VQ-VAE, 1,024 codes of 64 numbers: 10 bits per position, 0.625 per pixel (arXiv:1711.00937).

    Command: `vqkit train photos_vq_vae`.
    """
    return _run(
        "photos_vq_vae", "vq_vae", {"num_codes": 1024, "dim": 64, "commitment": 1.0}, options
    )


def photos_vq_ema(**options: Unpack[PhotoOptions]) -> RunConfig:
    """VQ-VAE with moving averages as codes: 0.625 bits per pixel (arXiv:1711.00937, appendix A.1).

    Command: `vqkit train photos_vq_ema`.
    """
    return _run(
        "photos_vq_ema", "vq_ema", {"num_codes": 1024, "dim": 64, "commitment": 1.0}, options
    )


def photos_cvq(**options: Unpack[PhotoOptions]) -> RunConfig:
    """CVQ-VAE: seldom-used codes move to features; 0.625 bits per pixel (arXiv:2307.15139).

    Command: `vqkit train photos_cvq`.
    """
    return _run("photos_cvq", "cvq", {"num_codes": 1024, "dim": 64, "commitment": 1.0}, options)


def photos_looc(**options: Unpack[PhotoOptions]) -> RunConfig:
    """LooC: 256 codes of 4 numbers shared by 16 segments, 128 bits per position, 8 per pixel.

    Command: `vqkit train photos_looc`.
    """
    args = {"num_codes": 256, "dim": 4, "num_segments": 16, "commitment": 1.0}
    return _run("photos_looc", "looc", args, options)


def photos_looc_small(**options: Unpack[PhotoOptions]) -> RunConfig:
    """LooC near the rate of the others: 32 codes of 32 numbers in 2 segments, 0.625 bits per pixel.

    Command: `vqkit train photos_looc_small`.
    """
    args = {"num_codes": 32, "dim": 32, "num_segments": 2, "commitment": 1.0}
    return _run("photos_looc_small", "looc", args, options)


def photos_pq(**options: Unpack[PhotoOptions]) -> RunConfig:
    """Product quantization: as `photos_looc`, with an own codebook for each of the 16 segments.

    Command: `vqkit train photos_pq`.
    """
    args: dict[str, Any] = {"num_codes": 256, "dim": 4, "num_segments": 16, "commitment": 1.0}
    args |= {"update": "cvq", "metric": "cosine"}
    return _run("photos_pq", "pq", args, options)


def photos_rq(**options: Unpack[PhotoOptions]) -> RunConfig:
    """RQ-VAE: 4 residual levels of 256 codes, 2 bits per pixel (arXiv:2203.01941).

    Command: `vqkit train photos_rq`.
    """
    return _run(
        "photos_rq",
        "rq",
        {"num_codes": 256, "dim": 64, "num_levels": 4, "commitment": 1.0},
        options,
    )


def photos_dual(**options: Unpack[PhotoOptions]) -> RunConfig:
    """Dual Codebook VQ: a local book and one refined by a transformer, 1.125 bits per pixel.

    Command: `vqkit train photos_dual`.
    """
    return _run("photos_dual", "dual", {"num_codes": 512, "dim": 32, "commitment": 1.0}, options)


def photos_simvq(**options: Unpack[PhotoOptions]) -> RunConfig:
    """SimVQ: frozen random codes behind one linear layer, 0.625 bits per pixel (arXiv:2411.02038).

    Command: `vqkit train photos_simvq`.
    """
    return _run("photos_simvq", "simvq", {"num_codes": 1024, "dim": 64, "commitment": 1.0}, options)


def photos_fsq(**options: Unpack[PhotoOptions]) -> RunConfig:
    """FSQ: 4 bounded and rounded channels, 1,000 codes, 0.623 bits per pixel (arXiv:2309.15505).

    Command: `vqkit train photos_fsq`.
    """
    return _run("photos_fsq", "fsq", {"levels": (8, 5, 5, 5)}, options)


def photo_images(options: PhotoOptions, size: int) -> tuple[DataConfig, DataConfig]:
    """Return the crops to train on, of `size` pixels unless `options` says, and the test images."""
    size, path = options.get("size", size), options.get("path")
    if path is None:
        data = DataConfig(source="photos", crop="random", crop_size=size, crops_per_image=64)
    else:
        data = DataConfig(source="folder", path=path, crop="random", crop_size=size, flip=True)
    test_path = options.get("test_path")
    test = DataConfig(source="photos", split="test")
    if test_path is not None:
        test = DataConfig(source="folder", path=test_path)
    return data, test


def _run(name: str, preset: str, args: dict[str, Any], options: PhotoOptions) -> RunConfig:
    data, test = photo_images(options, size=64)
    num_steps = options.get("num_steps", 250)
    return RunConfig(
        name=options.get("name", name),
        quantizer=QuantizerConfig(preset=preset, args=args),
        data=data,
        test_data=test,
        optim=OptimConfig(num_steps=num_steps, batch_size=options.get("batch_size", 16), lr=1e-3),
        log=LogConfig(every=10, checkpoint_every=max(1, min(1000, num_steps // 2))),
    )
