"""vqkit: discrete image tokenizers, composed from few parts and measured honestly."""

__version__ = "0.1.0"
