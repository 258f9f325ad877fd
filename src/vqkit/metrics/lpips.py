"""LPIPS: how different two images look to a network (Zhang et al. 2018, arXiv:1801.03924).

The networks are written in plain torch under the names of torchvision's files (`features.N`), and
their weights come from `vqkit.weights`. There is nothing to train, and no dropout to switch off.

Shapes: B images, C channels, H and W pixels, h and w positions of a feature map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from vqkit.config import require
from vqkit.metrics.measures import Found
from vqkit.metrics.reduction import sum_over_processes
from vqkit.weights import find_weights, read_weights

Net = Literal["vgg", "alex"]

# Mean and spread of ImageNet's colours in [-1, 1], as LPIPS v0.1 rounds them.
SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
EPSILON: Final = 1e-10
"""Added to the length of a feature vector before it divides (LPIPS v0.1)."""

_BLOCKS: Final = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_WIDTHS: Final = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
# Layers of `features` whose outputs are compared: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of
# VGG16, and the five ReLUs of AlexNet.
_TAPS: Final = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
_SMALLEST: Final = {"vgg": 16, "alex": 31}
_FILES: Final = {"vgg": "vgg16", "alex": "alexnet"}


class LPIPS(nn.Module):
    """LPIPS v0.1 with its linear heads ("lin"), frozen in evaluation mode for ever.

    With unit vectors f̂_l(x) = f_l(x) / (‖f_l(x)‖ + 1e-10) over the channels of layer l,
    d(x, y) = Σ_l mean over positions of Σ_c w_lc · (f̂_l(x) - f̂_l(y))_c²  (equation 1, where the
    weights of the linear heads stand for the squares of w).

    Gradients reach the images, never the weights. Convolutions run in the type of the weights (or
    in autocast's); what follows them in float32. `.to(memory_format=torch.channels_last)` works.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], net: Net = "vgg") -> None:
        """Build from tensors named `features.N.weight`, `features.N.bias` and `heads.L`.

        `heads.L` are the weights (C,) of layer L = 0 … 4. Other names are a `ValueError`.
        """
        super().__init__()
        self.net = net
        self.features = _empty_network(net)
        with torch.device("meta"):
            self.heads = nn.ParameterList(torch.empty(width) for width in _WIDTHS[net])
        try:
            self.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise ValueError(f"weights of LPIPS ({net}): {error}") from error
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def random(cls, net: Net = "vgg", seed: int = 0) -> LPIPS:
        """Return one with random weights, the same for the same seed: for tests and benchmarks."""
        source = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, empty in _empty_network(net).state_dict().items():
            values = torch.randn(empty.shape, generator=source)
            spread = (2 / empty[0].numel()) ** 0.5 if empty.ndim > 1 else 0.1
            tensors[f"features.{name}"] = spread * values
        for layer, width in enumerate(_WIDTHS[net]):
            tensors[f"heads.{layer}"] = torch.rand(width, generator=source)
        return cls(tensors, net)

    def train(self, mode: bool = True) -> LPIPS:
        """Do nothing: a parent's `train()` must not change a measure."""
        return self

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32, at least 0, and 0 for equal images.

        Args:
            images: (B, 1 or 3, H, W) in [-1, 1], floating point; grey is repeated to colour.
            others: of the same shape.

        Raises:
            ValueError: other shapes or types, or images below 16×16 pixels (AlexNet: 31×31).
        """
        self._check(images, others)
        total = torch.zeros(len(images), device=images.device)
        for head, x, y in zip(self.heads, self._maps(images), self._maps(others), strict=True):
            difference = _unit(x) - _unit(y)
            weighed = difference.square() * head.float().view(1, -1, 1, 1)
            total = total + weighed.sum(1).mean((1, 2))
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps (B, C, h, w) of images."""
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        x = x.to(next(self.features.parameters()).dtype)
        maps = []
        for first, last in pairwise((-1, *_TAPS[self.net])):
            x = self.features[first + 1 : last + 1](x)
            maps.append(x)
        return maps

    def _check(self, images: Tensor, others: Tensor) -> None:
        shape, smallest = tuple(images.shape), _SMALLEST[self.net]
        require(
            images.ndim == 4 and shape[1] in (1, 3) and images.shape == others.shape,
            f"images of shape {shape} against {tuple(others.shape)}",
            "LPIPS expects twice the same (B, 1 or 3, H, W)",
        )
        require(
            images.is_floating_point() and others.is_floating_point(),
            f"images.dtype={images.dtype} against {others.dtype}",
            "LPIPS expects floating point in [-1, 1]",
        )
        require(
            min(shape[2:]) >= smallest,
            f"images of {shape[2]}×{shape[3]} pixels",
            f"LPIPS ({self.net}) needs at least {smallest}×{smallest}; use larger images, or "
            "objective.perceptual='none'",
        )


class LpipsMeasure:
    """Mean LPIPS of reconstructions and originals, bytes taken as [-1, 1]; a `SetMeasure`.

    Images below the network's smallest size are left out and counted in the note.
    """

    def __init__(self, network: LPIPS) -> None:
        self.network = network
        self.name = f"lpips_{network.net}"
        # Sum of the distances, images measured, images left out.
        self._sums = torch.zeros(3, dtype=torch.float64)

    @classmethod
    def load(
        cls, name: str, path: str | Path | None = None, *, device: str | torch.device = "cpu"
    ) -> LpipsMeasure:
        """Return `lpips_vgg` or `lpips_alex` with published weights; errors as `load_lpips`."""
        net: Net = "alex" if name == "lpips_alex" else "vgg"
        return cls(load_lpips(path, net=net).to(device))

    @torch.no_grad()
    def update(self, images: Tensor, originals: Tensor) -> None:
        """Take reconstructions and originals, both uint8 (B, 1 or 3, H, W)."""
        bytes_ = images.dtype == originals.dtype == torch.uint8
        require(bytes_, f"images.dtype={images.dtype}", "LPIPS as a measure expects uint8")
        if min(images.shape[2:]) < _SMALLEST[self.network.net]:
            self._sums[2] += len(images)
            return
        x, y = (z.to(self.network.shift.device).float() / 127.5 - 1 for z in (images, originals))
        self._sums[0] += self.network(x, y).double().sum().cpu()
        self._sums[1] += len(images)

    def reduce(self) -> LpipsMeasure:
        """Return the mean over all processes; this object keeps its own share."""
        total = copy(self)
        total._sums = sum_over_processes(self._sums)
        return total

    def results(self) -> tuple[Found, ...]:
        """Return the mean distance; None where no image was large enough."""
        total, count, small = self._sums.tolist()
        side = _SMALLEST[self.network.net]
        note = f"{small:,.0f} images below {side}×{side} pixels left out" if small else ""
        value = total / count if count else None
        return (Found(name=self.name, value=value, unit="", num_images=int(count), note=note),)

    def facts(self) -> dict[str, str | int | float]:
        """Return the SHA-256 of the tensors of the network and of its heads, in order of names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return {f"{self.name}.tensors": digest.hexdigest()}


def load_lpips(
    path: str | Path | None = None,
    *,
    heads: str | Path | None = None,
    net: Net = "vgg",
    download: bool = False,
) -> LPIPS:
    """Return LPIPS with published weights, found as `vqkit.weights` says.

    Args:
        path: torchvision's file of the network (`vgg16-397923af.pth`, `alexnet-owt-7be5be79.pth`)
            as `.pth` or `.safetensors`, or a saved `LPIPS.state_dict()`, which holds the heads too.
        heads: file of the linear heads, as the lpips package publishes it.
        net: `vgg` (training, and the tables of papers) or `alex` (evaluation).
        download: fetch what is missing into the cache.

    Raises:
        ValueError: a file is missing (the message says which, where it comes from and where to put
            it, and that `objective.perceptual=none` trains without), or does not fit.
    """
    _check_net(net)
    found = read_weights(find_weights(_FILES[net], path, download=download))
    # the classifier is of no use here
    tensors = {n: t for n, t in found.items() if n.startswith(("features.", "heads."))}
    if "heads.0" not in tensors or heads is not None:
        file = find_weights(f"lpips_{net}", heads, download=download)
        published = read_weights(file)
        for layer in range(len(_WIDTHS[net])):
            name = f"lin{layer}.model.1.weight"
            require(name in published, f"{file}", f"holds no {name}; give the heads of LPIPS v0.1")
            tensors[f"heads.{layer}"] = published[name].flatten()
    return LPIPS(tensors, net)


def _unit(features: Tensor) -> Tensor:
    # torch gives this norm the derivative 0 at 0, where that of a square root is not finite.
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON)


def _check_net(net: str) -> None:
    require(net in _TAPS, f"net={net!r}", f"expected one of {', '.join(_TAPS)}")


def _empty_network(net: Net) -> nn.Sequential:
    """Build the layers without values; this draws no random numbers."""
    _check_net(net)
    with torch.device("meta"):
        return _vgg16() if net == "vgg" else _alexnet()


def _vgg16() -> nn.Sequential:
    """Convolutions 1_1 to 5_3 of VGG16 (configuration D, arXiv:1409.1556)."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in _BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers[:-1])  # nothing is compared behind the last pool


def _alexnet() -> nn.Sequential:
    """Convolutions 1 to 5 of AlexNet with one column (arXiv:1404.5997)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    )
