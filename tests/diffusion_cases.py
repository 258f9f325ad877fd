"""Small diffusion models for the tests, with weights that answer something."""

import torch

from vqkit.config.diffusion import (
    DiffusionConfig,
    DiTNetwork,
    FlowProcess,
    UNetNetwork,
)
from vqkit.generation.diffusion import LatentModel

DIT = DiTNetwork(layers=2, heads=2, width=16, patch=2)
UNET = UNetNetwork(
    channels=(8, 16), blocks=1, attention=(False, True), head_width=4, context=8, groups=4
)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=source(seed))


def small(network=DIT, process=None, *, channels=3, grid=(4, 6), num_classes=5, **settings):
    """A small model whose weights are moved: fresh ones answer 0."""
    config = DiffusionConfig(network=network, process=process or FlowProcess(), **settings)
    torch.manual_seed(0)
    model = LatentModel(config, channels=channels, grid=grid, num_classes=num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class Fixed(torch.nn.Module):
    """Stands for a network: a known function of its inputs, which it remembers."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen = answer, []

    def forward(self, latents, times, labels):
        self.seen.append((latents, times, labels))
        return self.answer(latents, times, labels)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())
