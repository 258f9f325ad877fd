"""`tiny`: any recipe small enough for a test, with its method untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from vqkit.config import (
    AdversarialConfig,
    DataConfig,
    LogConfig,
    Network,
    NetworkConfig,
    OptimConfig,
    RunConfig,
    VQGANNetwork,
)

STEPS: Final = 20
_LARGEST: Final = {
    "num_codes": 16,
    "dim": 4,
    "num_segments": 4,
    "num_levels": 2,
    "in_channels": 16,
    "num_layers": 1,
    "num_heads": 2,
    "features": 16,
}
"""Largest values of preset arguments; pairs are bounded one by one, tensors by their rows."""


def tiny(config: RunConfig, data: DataConfig | None = None) -> RunConfig:
    """Shrink a run to 20 steps of 8 images: narrow networks, few and short codes.

    Preset, losses and seed stay, but LPIPS is left out, which needs weights. A VQGAN keeps two
    levels, attention where its coarsest level has it, and its modulation; a discriminator takes
    part from step 5 on at the latest. There is no validation, and features that a codebook file
    would hold are random. The learning rate is raised to 2e-3, so that the error falls within 20
    steps. `data` gives other images (of the same number of channels, with sides that are multiples
    of 4); default are the photographs in the scikit-image and scikit-learn wheels, cut to 16 x 16
    pixels, so that no data set is needed.
    """
    images = data or DataConfig(
        source="photos",
        channels=config.data.channels,
        resize=16,
        crop="random",
        crop_size=16,
        crops_per_image=8,
    )
    network = _small_network(config.network)
    return replace(
        config,
        name=f"tiny_{config.name}",
        quantizer=replace(config.quantizer, args=_small_args(config)),
        network=network,
        data=images,
        test_data=None,
        validation=None,
        objective=replace(config.objective, perceptual="none", lpips_weights=None),
        adversarial=_small_adversary(config.adversarial),
        optim=_short(config.optim),
        log=LogConfig(every=1, checkpoint_every=10, keep=1),
    )


def _small_args(config: RunConfig) -> dict[str, Any]:
    args = {name: _bounded(name, value) for name, value in config.quantizer.args.items()}
    if config.quantizer.preset == "dual":
        args |= {"num_layers": 1, "num_heads": 2}
    return args


def _small_network(network: Network) -> Network:
    if isinstance(network, NetworkConfig):
        return replace(network, hidden=16, residual_hidden=4, num_residual_blocks=1)
    if isinstance(network, VQGANNetwork):
        coarsest = network.stride in network.attention_strides
        return replace(
            network,
            width=16,
            multipliers=(1, 2),
            attention_strides=(2,) if coarsest else (),
            num_res_blocks=1,
            z_channels=16,
            norm_groups=4,
        )
    return replace(network, patch=4, width=16, depth=1, heads=2, mlp=32)


def _small_adversary(adversary: AdversarialConfig | None) -> AdversarialConfig | None:
    if adversary is None:
        return None
    return replace(
        adversary,
        start=min(adversary.start, 5),
        ramp=min(adversary.ramp, 5),
        warmup=min(adversary.warmup, 2),
        num_layers=min(adversary.num_layers, 2),
        width=8,
    )


def _short(optim: OptimConfig) -> OptimConfig:
    return replace(
        optim,
        num_steps=STEPS,
        batch_size=8,
        accumulate=1,
        lr=max(optim.lr, 2e-3),
        warmup_steps=min(optim.warmup_steps, 2),
    )


def _bounded(name: str, value: Any) -> Any:
    largest = _LARGEST.get(name)
    if largest is None or value is None:
        return value
    if isinstance(value, int):
        return min(value, largest)
    if isinstance(value, list | tuple):
        return tuple(min(item, largest) for item in value)
    if isinstance(value, dict):  # where features come from
        return {"normal": {"shape": (largest, largest)}}
    return value[:largest]
