"""The same reconstructions under every known protocol, side by side: what the protocol alone does.

Protocols of papers are those of `vqkit.metrics.compat`; docs/protocols.md has their sources.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.evaluation.evaluator import evaluate_under
from vqkit.evaluation.result import Evaluation, Metric
from vqkit.evaluation.scoring import Networks, networks_of
from vqkit.evaluation.tables import MISSING, NETWORKS, markdown, network_notes, protocol_note
from vqkit.metrics import DEFAULT, PROTOCOLS, Protocol
from vqkit.models import ImageTokenizer
from vqkit.models.files import write_beside

FORMAT = "vqkit-rosetta-1"
_DIGITS = {"psnr": 2, "ssim": 4, "l1": 5, "l2": 6}
_LABELS = {"psnr": "PSNR, dB", "ssim": "SSIM", "l1": "l1", "l2": "l2", **NETWORKS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rosetta:
    """One evaluation under each protocol, the default first; all of the same reconstructions."""

    evaluations: tuple[Evaluation, ...]

    @property
    def default(self) -> Evaluation:
        """The first evaluation, from which the others deviate."""
        return self.evaluations[0]

    def metric(self, name: str, protocol: str) -> Metric | None:
        """Return a metric under the protocol of that name; None where it does not measure that."""
        for one in self.evaluations:
            if one.protocol.name == protocol:
                return next((metric for metric in one.metrics if metric.name == name), None)
        known = ", ".join(one.protocol.name for one in self.evaluations)
        raise ValueError(f"protocol={protocol!r}: not measured; known are {known}")

    def deviation(self, name: str, protocol: str) -> float | None:
        """Return by how much a metric differs from that under the default; None if one lacks."""
        found, base = self.metric(name, protocol), self.metric(name, self.default.protocol.name)
        if found is None or base is None or found.value is None or base.value is None:
            return None
        return found.value - base.value

    def rows(self) -> list[str]:
        """Return the names of the metrics that any protocol has."""
        names = {metric.name for one in self.evaluations for metric in one.metrics}
        return [name for name in _LABELS if name in names]

    def table(self) -> str:
        """Return a Markdown table: metrics by protocols, deviations from the default in brackets.

        Below it stands for each protocol its identifier and how it measures, and what is left out.
        """
        protocols = [one.protocol.name for one in self.evaluations]
        header = (self.default.name, *(f"{name} [{i}]" for i, name in enumerate(protocols, 1)))
        rows = [
            (_LABELS[name], *(self._cell(name, protocol) for protocol in protocols))
            for name in self.rows()
        ]
        rate, entropy, png = (
            f"{self.default.value(name):.3f}" for name in ("rate", "entropy_rate", "png_rate")
        )
        lines = [
            markdown(header, rows),
            "",
            "All columns measure the same reconstructions; in brackets the difference from the "
            f"first. They take {rate} bits/pixel, {entropy} by zero-order entropy; lossless PNG "
            f"{png}.",
        ]
        notes: dict[str, list[str]] = {}  # the same file is missing in many columns
        for number, one in enumerate(self.evaluations, start=1):
            lines.append(protocol_note(one, number))
            for note in network_notes(one):
                notes.setdefault(note, []).append(f"[{number}]")
        lines += [f"{' '.join(marks)} {note}" for note, marks in notes.items()]
        return "\n".join(lines)

    def _cell(self, name: str, protocol: str) -> str:
        found = self.metric(name, protocol)
        if found is None:
            return ""
        if found.value is None:
            return MISSING
        digits = _DIGITS.get(name, 4)
        value, deviation = f"{found.value:.{digits}f}", self.deviation(name, protocol)
        if deviation is None or protocol == self.default.protocol.name:
            return value
        return f"{value} ({deviation:+.{digits}f})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "format": FORMAT,
            "name": self.default.name,
            "protocols": [
                {
                    "name": one.protocol.name,
                    "id": one.protocol.id,
                    "measures": one.protocol.describe(),
                    "differences": one.protocol.differences(self.default.protocol),
                }
                for one in self.evaluations
            ],
            "rows": [
                {
                    "metric": name,
                    "cells": {
                        one.protocol.name: self._json_cell(name, one.protocol.name)
                        for one in self.evaluations
                    },
                }
                for name in self.rows()
            ],
            "evaluation": self.default.to_dict(),
        }

    def _json_cell(self, name: str, protocol: str) -> dict[str, Any] | None:
        found = self.metric(name, protocol)
        if found is None:
            return None
        return {**found.to_dict(), "deviation": self.deviation(name, protocol)}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; an existing file is replaced whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        write_beside(Path(path), text.encode())


def rosetta(
    tokenizer: ImageTokenizer,
    image_set: ImageSet,
    *,
    protocols: Iterable[Protocol] = tuple(PROTOCOLS.values()),
    base: Protocol = DEFAULT,
    networks: Networks | None = None,
    reference: str | Path | None = None,
    batch_size: int = 64,
    name: str = "tokenizer",
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Rosetta:
    """Measure the same reconstructions under several protocols, in one pass over the set.

    Args:
        tokenizer: the model, on any device; networks of protocols run there too.
        image_set: from `load_images`.
        protocols: those to compare, with different names; the tiles of `base` hold for all.
        base: stands in the first column.
        networks: those that measure under `base`, fresh; default none. Those that the other
            protocols name are loaded here; what is missing is noted in the result.
        reference: statistics for the FID of protocols that compare with files of another size.
        batch_size, name, share, progress: as `vqkit.evaluation.evaluate`.

    Raises:
        ValueError: as `evaluate`, and for protocols with equal names.
    """
    others = [one for one in protocols if one.name != base.name]
    names = [base.name, *(one.name for one in others)]
    require(len(set(names)) == len(names), f"protocols={names}", "give each another name")
    device: torch.device = next(tokenizer.parameters()).device
    panel = [(base, networks or Networks())]
    for one in others:
        theirs = networks_of(one, reference=reference, device=device)
        panel.append((replace(one, tile=base.tile, halo=base.halo), theirs))
    found = evaluate_under(
        tokenizer,
        image_set,
        panel,
        batch_size=batch_size,
        name=name,
        share=share,
        progress=progress,
    )
    return Rosetta(evaluations=found)
