"""Photographs, large codebooks: VQGAN-LC and its baselines in one small network, on a CPU.

The convolutional networks of VQ-VAE with 64 channels (4 pixels per position, 0.3 million
parameters) without a discriminator, on random crops of 128 x 128 with L1 and the quantizer's terms.
Networks, images, steps and weights of the terms are the same for all four, as in the paper's
Table 1; only the codebook differs. Without `path` they use the photographs inside the scikit-image
and scikit-learn wheels; with it the images of that folder, whose shorter side must have 128 pixels.

These are no published experiments. They are set for few steps: Adam at 1e-3 that falls to nothing
(half a cosine), commitment 1 and codebook .33, which is the paper's equation 1 without the 0.1 that
its code puts before both.
`vqkit codebook` makes the file that `photos_lc` reads (docs/codebooks.md).
"""

from __future__ import annotations

from typing import Any, Final, Unpack

from vqkit.config import (
    LogConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    require,
)
from vqkit.recipes.photos import PhotoOptions, photo_images
from vqkit.recipes.vqgan_lc import FEATURES, Metric

NETWORK: Final = NetworkConfig(hidden=64)
COMMITMENT: Final = {"commitment": 1.0}
BOTH: Final = {**COMMITMENT, "codebook": 0.33}


def photos_lc(
    *,
    codebook: str | None = None,
    random_codes: int | None = None,
    dim: int | None = None,
    frozen: bool = True,
    projector: bool = True,
    metric: Metric = "l2",
    align: float | None = None,
    pool: str | None = None,
    patience: float | None = None,
    **options: Unpack[PhotoOptions],
) -> RunConfig:
    """VQGAN-LC: frozen features behind a projector; 1.04 bits per pixel with 100,000 of them.

    Command: `vqkit train photos_lc --codebook codes.safetensors --path images`.
    `codebook` is a file of vectors (K, F), by default data/codebooks/photos.safetensors: clustered
    or selected features, of these images or of others (Tables 6 to 8). `random_codes` takes so many
    random vectors instead. Projected codes have `dim` numbers, 8 by default (Table 10). The
    features are trained with `frozen` false, and are themselves the codes with `projector` false
    (Table 9).

    Two options that no paper has; so few steps use most codes only with them. `align`, such as
    0.9, keeps all codes where the vectors are from the first step on (`vqkit.quantizers.Align`).
    `pool`, another file of features (M, F) of the same encoder, gives the places of codes that
    nobody draws to others of them (`vqkit.quantizers.Reselect`), after `patience` vectors a code.
    """
    require(
        codebook is None or random_codes is None,
        f"codebook={codebook!r} with random_codes={random_codes}",
        "give one of them",
    )
    require(
        align is None or 0 <= align < 1,
        f"align={align}",
        "must lie in [0, 1): the share that the past keeps in every step, such as 0.99",
    )
    features: dict[str, Any] = {"file": codebook or "data/codebooks/photos.safetensors"}
    if random_codes is not None:
        features = {"normal": {"shape": (random_codes, FEATURES)}}
    args = {
        "features": features,
        "dim": dim,
        "frozen": frozen,
        "projector": projector,
        "metric": metric,
        "align": align,
        **BOTH,
    }
    if pool is not None:
        args |= {"pool": {"file": pool}}
    if patience is not None:
        require(pool is not None, f"patience={patience}", "is that of a pool; give pool, too")
        args |= {"patience": patience}
    return _run("photos_lc", "vqgan_lc", args, options)


def photos_lc_fc(
    *, num_codes: int = 16_384, dim: int = 8, **options: Unpack[PhotoOptions]
) -> RunConfig:
    """VQGAN-FC, the baseline with short codes trained by gradient: 0.875 bits per pixel.

    Command: `vqkit train photos_lc_fc`, with `--num_codes 16384 --path images`.
    """
    return _run("photos_lc_fc", "vqgan_fc", {"num_codes": num_codes, "dim": dim, **BOTH}, options)


def photos_lc_ema(
    *, num_codes: int = 16_384, dim: int = 8, **options: Unpack[PhotoOptions]
) -> RunConfig:
    """VQGAN-EMA, the baseline with moving averages as codes: 0.875 bits per pixel.

    Command: `vqkit train photos_lc_ema`, with `--num_codes 16384 --path images`.
    """
    args = {"num_codes": num_codes, "dim": dim, **COMMITMENT}
    return _run("photos_lc_ema", "vq_ema", args, options)


def photos_lc_vq(
    *, num_codes: int = 16_384, dim: int = 64, **options: Unpack[PhotoOptions]
) -> RunConfig:
    """VQGAN, the baseline with codes as long as the features, 64 numbers: 0.875 bits per pixel.

    Command: `vqkit train photos_lc_vq`, with `--num_codes 16384 --path images`.
    """
    return _run("photos_lc_vq", "vq_vae", {"num_codes": num_codes, "dim": dim, **BOTH}, options)


def _run(name: str, preset: str, args: dict[str, Any], options: PhotoOptions) -> RunConfig:
    num_steps = options.get("num_steps", 1000)
    data, test = photo_images(options, size=128)
    # The networks' own convolutions bring their 64 channels to those of the codes, and back.
    channels = {"in_channels": None}
    return RunConfig(
        name=options.get("name", name),
        quantizer=QuantizerConfig(preset=preset, args={**args, **channels}),
        network=NETWORK,
        data=data,
        test_data=test,
        objective=ObjectiveConfig(reconstruction="l1"),
        optim=OptimConfig(
            num_steps=num_steps, batch_size=options.get("batch_size", 8), lr=1e-3, schedule="cosine"
        ),
        log=LogConfig(every=10, checkpoint_every=max(1, min(1000, num_steps // 2))),
    )
