"""InceptionV3 as FID uses it: 2048 features and 1008 logits, under the names of the published file.

The network of Szegedy et al. 2015 (arXiv:1512.00567) as Google released it in December 2015 and as
pytorch-fid ported it. It differs from torchvision's in its pools: averages leave the padding out,
and the last block takes a maximum where the paper has an average. Nothing here trains.

Shapes: B images; blocks are given as channels × height × width at an input of 299×299 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.config import require
from vqkit.weights import find_weights, read_weights

SIDE: Final = 299
"""Pixels of the square images that the network takes."""
NUM_FEATURES: Final = 2048
NUM_LOGITS: Final = 1008


class InceptionV3(nn.Module):
    """The network from images to features, frozen in evaluation mode for ever."""

    fc: nn.Linear

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Build from the tensors of the published file; other names or shapes are a `ValueError`.

        Counters of batch normalization (`num_batches_tracked`) may be missing.
        """
        super().__init__()
        for name, layer in _layers().items():
            self.add_module(name, layer)
        kept = dict(tensors)
        for name in self.state_dict():
            if name.endswith("num_batches_tracked"):
                kept.setdefault(name, torch.tensor(0))
        _check(kept, self.state_dict())
        self.load_state_dict(kept, assign=True)
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def random(cls, seed: int = 0) -> InceptionV3:
        """Return one with random weights, the same for the same seed: for tests and benchmarks."""
        source = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, empty in nn.ModuleDict(_layers()).state_dict().items():
            shape = empty.shape
            if name.endswith("num_batches_tracked"):
                tensors[name] = torch.tensor(0)
            elif len(shape) > 1:
                spread = (2 / shape[1:].numel()) ** 0.5
                tensors[name] = spread * torch.randn(shape, generator=source)
            elif name.endswith(("running_var", "bn.weight")):
                tensors[name] = 0.8 + 0.4 * torch.rand(shape, generator=source)
            else:
                tensors[name] = 0.1 * torch.randn(shape, generator=source)
        return cls(tensors)

    def train(self, mode: bool = True) -> InceptionV3:
        """Do nothing: a parent's `train()` must not change a measure."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 2048) float32, at least 0, of images (B, 3, 299, 299) in [-1, 1].

        `vqkit.metrics.resizing.prepare` makes such images; another shape is a `ValueError`.
        """
        shape = tuple(images.shape)
        require(
            images.ndim == 4 and shape[1:] == (3, SIDE, SIDE),
            f"images of shape {shape}",
            f"Inception expects (B, 3, {SIDE}, {SIDE})",
        )
        for name, layer in self.named_children():
            if name != "fc":
                images = layer(images)
        return images.mean((2, 3)).float()

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (B, 1008) without the bias, from which the Inception Score is computed.

        So did its first code (Salimans et al. 2016), and all that reproduce it.
        """
        return features @ self.fc.weight.T


def load_inception(path: str | Path | None = None, *, download: bool = False) -> InceptionV3:
    """Return the published network, found as `vqkit.weights` says.

    Args:
        path: the file, `.pth` or `.safetensors`.
        download: fetch it into the cache if it is nowhere.

    Raises:
        ValueError: the file is missing (the message says which it is, where it comes from and where
            to put it), or does not fit.
    """
    return InceptionV3(read_weights(find_weights("inception", path, download=download)))


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `ValueError`, of one line, for tensors of another network."""
    wrong = {
        "lacks": sorted(expected.keys() - tensors.keys()),
        "has no use for": sorted(tensors.keys() - expected.keys()),
        "has another shape in": [
            name
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    for problem, names in wrong.items():
        require(
            not names,
            "weights of Inception",
            f"the network {problem} {len(names)} tensors ({', '.join(names[:1])}, ...); give the "
            "published file",
        )


def _layers() -> dict[str, nn.Module]:
    """Build the layers without values, in the order in which images pass them."""
    with torch.device("meta"):
        return {
            "Conv2d_1a_3x3": _Convolution(3, 32, 3, stride=2),
            "Conv2d_2a_3x3": _Convolution(32, 32, 3),
            "Conv2d_2b_3x3": _Convolution(32, 64, 3, padding=1),
            "pool_1": nn.MaxPool2d(3, 2),  # 64×73×73
            "Conv2d_3b_1x1": _Convolution(64, 80, 1),
            "Conv2d_4a_3x3": _Convolution(80, 192, 3),
            "pool_2": nn.MaxPool2d(3, 2),  # 192×35×35
            "Mixed_5b": _BlockA(192, 32),
            "Mixed_5c": _BlockA(256, 64),
            "Mixed_5d": _BlockA(288, 64),  # 288×35×35
            "Mixed_6a": _BlockB(288),
            "Mixed_6b": _BlockC(768, 128),
            "Mixed_6c": _BlockC(768, 160),
            "Mixed_6d": _BlockC(768, 160),
            "Mixed_6e": _BlockC(768, 192),  # 768×17×17
            "Mixed_7a": _BlockD(768),
            "Mixed_7b": _BlockE(1280, _average),
            "Mixed_7c": _BlockE(2048, _maximum),  # 2048×8×8
            "fc": nn.Linear(NUM_FEATURES, NUM_LOGITS),
        }


def _average(x: Tensor) -> Tensor:
    # TensorFlow divides by the pixels that there are, not by nine, where the window leaves the map.
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _Convolution(nn.Module):
    """Convolution, normalization with stored statistics, ReLU."""

    def __init__(
        self,
        channels: int,
        width: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _row(channels: int, width: int, length: int) -> _Convolution:
    return _Convolution(channels, width, (1, length), padding=(0, length // 2))


def _column(channels: int, width: int, length: int) -> _Convolution:
    return _Convolution(channels, width, (length, 1), padding=(length // 2, 0))


class _BlockA(nn.Module):
    """Figure 5 of the paper: 1×1, 5×5, two 3×3, pool."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 64, 1)
        self.branch5x5_1 = _Convolution(channels, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class _BlockB(nn.Module):
    """Half the size, from 35×35 to 17×17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockC(nn.Module):
    """Figure 6 of the paper: 7×7 as rows and columns."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 192, 1)
        self.branch7x7_1 = _Convolution(channels, width, 1)
        self.branch7x7_2 = _row(width, width, 7)
        self.branch7x7_3 = _column(width, 192, 7)
        self.branch7x7dbl_1 = _Convolution(channels, width, 1)
        self.branch7x7dbl_2 = _column(width, width, 7)
        self.branch7x7dbl_3 = _row(width, width, 7)
        self.branch7x7dbl_4 = _column(width, width, 7)
        self.branch7x7dbl_5 = _row(width, 192, 7)
        self.branch_pool = _Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _BlockD(nn.Module):
    """Half the size, from 17×17 to 8×8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(channels, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(channels, 192, 1)
        self.branch7x7x3_2 = _row(192, 192, 7)
        self.branch7x7x3_3 = _column(192, 192, 7)
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class _BlockE(nn.Module):
    """Figure 7 of the paper: branches that fan out into rows and columns; `pool` differs."""

    def __init__(self, channels: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._pool = pool
        self.branch1x1 = _Convolution(channels, 320, 1)
        self.branch3x3_1 = _Convolution(channels, 384, 1)
        self.branch3x3_2a = _row(384, 384, 3)
        self.branch3x3_2b = _column(384, 384, 3)
        self.branch3x3dbl_1 = _Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _row(384, 384, 3)
        self.branch3x3dbl_3b = _column(384, 384, 3)
        self.branch_pool = _Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([*branches, self.branch_pool(self._pool(x))], 1)
