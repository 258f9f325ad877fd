"""`tiny`: any recipe small enough for a test, with its method untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from vqkit.config import DataConfig, LogConfig, Network, NetworkConfig, RunConfig

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
    """Shrink a run to 20 steps of 8 images: 16 hidden channels, few and short codes.

    Preset, objective and seed stay; the learning rate is raised to 2e-3, so that the error falls
    within 20 steps. `data` gives other images (of the same number of channels, with sides that are
    multiples of 4); default are the photographs in the scikit-image and scikit-learn wheels, cut
    to 16 x 16 pixels, so that no data set is needed.
    """
    images = data or DataConfig(
        source="photos",
        channels=config.data.channels,
        resize=16,
        crop="random",
        crop_size=16,
        crops_per_image=8,
    )
    args = {name: _bounded(name, value) for name, value in config.quantizer.args.items()}
    if config.quantizer.preset == "dual":
        args |= {"num_layers": 1, "num_heads": 2}
    return replace(
        config,
        name=f"tiny_{config.name}",
        quantizer=replace(config.quantizer, args=args),
        network=_small_network(config.network),
        data=images,
        test_data=None,
        optim=replace(
            config.optim, num_steps=20, batch_size=8, accumulate=1, lr=max(config.optim.lr, 2e-3)
        ),
        log=LogConfig(every=1, checkpoint_every=10, keep=1),
    )


def _small_network(network: Network) -> Network:
    if isinstance(network, NetworkConfig):
        return replace(network, hidden=16, residual_hidden=4, num_residual_blocks=1)
    return network


def _bounded(name: str, value: Any) -> Any:
    largest = _LARGEST.get(name)
    if largest is None or value is None:
        return value
    if isinstance(value, int):
        return min(value, largest)
    if isinstance(value, list | tuple):
        return tuple(min(item, largest) for item in value)
    return value[:largest]
