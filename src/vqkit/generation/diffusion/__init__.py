"""Diffusion models of latents: LDM, DiT and SiT, their training and their samplers.

They learn the features before quantization (VQGAN-LC, section 3.3); what is sampled is quantized by
the tokenizer's projected codebook. diffusers, from the extra `generation`, is imported when a
network or a scheduler is built.
"""

from vqkit.generation.diffusion.generator import DiffusionGenerator
from vqkit.generation.diffusion.losses import diffusion_losses
from vqkit.generation.diffusion.model import LatentModel, guide
from vqkit.generation.diffusion.sampling import sample_latents, sources
from vqkit.generation.diffusion.task import DiffusionTask

__all__ = [
    "DiffusionGenerator",
    "DiffusionTask",
    "LatentModel",
    "diffusion_losses",
    "guide",
    "sample_latents",
    "sources",
]
