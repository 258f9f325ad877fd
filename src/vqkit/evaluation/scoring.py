"""What is summed up of the reconstructions under one protocol, networks included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from vqkit.metrics import Protocol, ReconstructionScores
from vqkit.metrics.lpips import LpipsMeasure
from vqkit.metrics.measures import Found, SetMeasure, make_measure
from vqkit.metrics.output_lpips import OutputLpips
from vqkit.metrics.pixels import side_bytes


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks that measure under one protocol, and what could not be had."""

    measures: tuple[SetMeasure, ...] = ()
    """They see the bytes of the protocol."""
    outputs: tuple[LpipsMeasure, ...] = ()
    """They see what the decoder gave."""
    missing: tuple[Found, ...] = ()
    """Numbers left out, with the reason as their note."""


def networks_of(
    protocol: Protocol,
    *,
    reference: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Networks:
    """Load the networks that a protocol names; what is missing is noted, not raised.

    Args:
        protocol: its fields `lpips` and `fid_resize` say which.
        reference: file of `vqkit reference`, for FID where the protocol compares with files of
            another size and cut.
        device: where they run.
    """
    measures: list[SetMeasure] = []
    outputs: list[LpipsMeasure] = []
    missing: list[Found] = []
    for net in protocol.lpips.split("+") if protocol.lpips else ():
        name = f"lpips_{net}"
        try:
            if protocol.lpips_input == "bytes":
                measures.append(make_measure(name, device=device))
            else:
                outputs.append(OutputLpips.of(net, protocol.lpips_input, device))
        except ValueError as error:
            missing.append(_left_out(name, str(error)))
    if protocol.fid_resize:
        try:
            measures.append(_fid(protocol, reference, device))
        except ValueError as error:
            missing.append(_left_out("fid", str(error)))
    return Networks(measures=tuple(measures), outputs=tuple(outputs), missing=tuple(missing))


def _fid(
    protocol: Protocol, reference: str | Path | None, device: str | torch.device
) -> SetMeasure:
    resize = protocol.fid_resize
    assert resize
    if protocol.fid_reference == "originals":
        return make_measure("fid", resize=resize, device=device)
    if reference is None:
        raise ValueError(
            f"reference: {protocol.name} compares with files of their own size, not with the "
            "images measured here; give a file of `vqkit reference` made of them"
        )
    return make_measure("fid", reference=reference, resize=resize, device=device)


def _left_out(name: str, note: str) -> Found:
    return Found(name=name, value=None, unit="", num_images=0, note=note)


class Scoring:
    """All that one protocol keeps of the images seen so far; several processes can `reduce()`.

    `first` is the place of this share's first image in the whole set.
    """

    def __init__(
        self, protocol: Protocol, networks: Networks | None = None, *, first: int = 0
    ) -> None:
        self.protocol = protocol
        self.networks = networks or Networks()
        self.scores = ReconstructionScores(protocol, first=first)
        # FID may see other bytes than PSNR.
        self._files = protocol
        if protocol.fid_rounding is not None:
            self._files = replace(protocol, rounding=protocol.fid_rounding)

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Count reconstructions (B, C, H, W), float in [-1, 1] or uint8; originals are uint8."""
        self.scores.update(images, originals)
        if self.networks.measures:
            files = side_bytes(images, self._files)
            sources = side_bytes(originals, self._files, original=True)
            for measure in self.networks.measures:
                measure.update(files, sources)
        for output in self.networks.outputs:
            output.update(images, originals)

    def reduce(self) -> Self:
        """Return the sums of all processes; this object keeps its own share."""
        total = type(self)(self.protocol)
        total.scores = self.scores.reduce()
        total.networks = Networks(
            measures=tuple(one.reduce() for one in self.networks.measures),
            outputs=tuple(one.reduce() for one in self.networks.outputs),
            missing=self.networks.missing,
        )
        return total

    def found(self) -> tuple[Found, ...]:
        """Return the numbers of the networks, those left out with a note at the end."""
        every: tuple[SetMeasure, ...] = (*self.networks.measures, *self.networks.outputs)
        return (*(found for one in every for found in one.results()), *self.networks.missing)

    def stamp(self, reference: str) -> Protocol:
        """Return the protocol with the image set and the facts of the networks in it."""
        facts: dict[str, str | int | float] = {}
        for one in (*self.networks.measures, *self.networks.outputs):
            facts |= one.facts()
        return self.protocol.on(reference, self.scores.num_images).with_measures(facts)
