"""LPIPS of what a decoder gave, without bytes between: the way in which some papers took it."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from vqkit.data import to_float
from vqkit.metrics.lpips import _SMALLEST, LPIPS, LpipsMeasure, Net, load_lpips
from vqkit.metrics.pixels import outputs_of

Seen = Literal["clamped", "taken_for_0..1"]


class OutputLpips(LpipsMeasure):
    """Mean LPIPS of decoder outputs against originals, both in [-1, 1].

    With `taken_for_0..1` the network gets 2x - 1 of both sides, unclamped, as VQGAN-LC's evaluation
    does: its metric takes images for [0, 1] and is given [-1, 1].
    """

    def __init__(self, network: LPIPS, seen: Seen = "clamped") -> None:
        super().__init__(network)
        self.seen = seen

    @classmethod
    def of(cls, net: str, seen: str, device: str | torch.device = "cpu") -> OutputLpips:
        """Return that of `vgg` or `alex` with published weights, and one of `Seen`.

        Missing weights are a `ValueError` that says where to put them.
        """
        network = load_lpips(net=cast("Net", net)).to(device)
        return cls(network, cast("Seen", seen))

    @torch.no_grad()
    def update(self, images: Tensor, originals: Tensor) -> None:
        """Take reconstructions (B, C, H, W), float around [-1, 1] or uint8, and uint8 originals."""
        if min(images.shape[2:]) < _SMALLEST[self.network.net]:
            self._sums[2] += len(images)
            return
        x = to_float(images) if images.dtype == torch.uint8 else images.float()
        y = outputs_of(originals, "numpy")
        if self.seen == "clamped":
            x = x.clamp(-1, 1)
        else:
            x, y = 2 * x - 1, 2 * y - 1
        device = self.network.shift.device
        self._sums[0] += self.network(x.to(device), y.to(device)).double().sum().cpu()
        self._sums[1] += len(images)

    def facts(self) -> dict[str, str | int | float]:
        """Return the SHA-256 of the network's tensors and what it sees."""
        return {**super().facts(), f"{self.name}.seen": self.seen}
