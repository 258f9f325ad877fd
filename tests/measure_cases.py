"""A network of features that is quick, and images for it; shared by tests of measures."""

import torch

from vqkit.metrics.features import Features

DIM, CLASSES = 12, 7


class Small(torch.nn.Module):
    """A network as small as one can be: random projections of the prepared image's means."""

    num_features = DIM

    def __init__(self, seed=0):
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(3 * 16, DIM, generator=source)
        self.classes = torch.randn(DIM, CLASSES, generator=source)

    def forward(self, images):
        cells = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return (cells @ self.weight).relu()

    def logits(self, features):
        return features @ self.classes


def small(resize="legacy"):
    return Features(Small(), resize=resize, sha256="ab" * 32, dim=DIM, num_logits=CLASSES)


def pictures(count, seed=0, channels=3, size=8):
    source = torch.Generator().manual_seed(seed)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)
