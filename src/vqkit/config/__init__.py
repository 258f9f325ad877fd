"""Every setting of a run, in one place. Imports no torch, so recipes and `--help` stay instant.

A run is described by one frozen `RunConfig`. Recipes (`vqkit.recipes`) return one, the command line
overrides single fields (`--optim.lr 1e-3`), and the resolved configuration is saved with every
checkpoint, so that a run can be rebuilt from its folder alone.
"""

from vqkit.config.adversarial import AdversarialConfig
from vqkit.config.core import from_dict, require, to_dict, with_changes
from vqkit.config.data import Crop, DataConfig, Source
from vqkit.config.generation import GeneratorRun, GPTConfig, GPTSampling
from vqkit.config.network import (
    Network,
    NetworkConfig,
    QuantizerConfig,
    Skip,
    ViTNetwork,
    VQGANNetwork,
)
from vqkit.config.objective import ObjectiveConfig, Perceptual, Reconstruction
from vqkit.config.optim import OptimConfig, Precision, Schedule
from vqkit.config.run import LogConfig, RunConfig, ValidationConfig

__all__ = [
    "AdversarialConfig",
    "Crop",
    "DataConfig",
    "GPTConfig",
    "GPTSampling",
    "GeneratorRun",
    "LogConfig",
    "Network",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Perceptual",
    "Precision",
    "QuantizerConfig",
    "Reconstruction",
    "RunConfig",
    "Schedule",
    "Skip",
    "Source",
    "VQGANNetwork",
    "ValidationConfig",
    "ViTNetwork",
    "from_dict",
    "require",
    "to_dict",
    "with_changes",
]
