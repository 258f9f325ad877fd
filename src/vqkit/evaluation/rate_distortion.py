"""Rate-distortion curves of tokenizers and codecs on the same images: figure, table, numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from vqkit.analysis.figures import COLOURS, finish, new_figure
from vqkit.analysis.saving import DPI, check_figure_path
from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.evaluation.anchors import Anchors
from vqkit.evaluation.curves import (
    RATES,
    BDRate,
    Curve,
    Rate,
    RatePoint,
    bd_rate,
    check_alike,
    curves_of,
)
from vqkit.evaluation.tables import MISSING, markdown
from vqkit.models import ImageTokenizer
from vqkit.models.files import write_beside
from vqkit.models.tokenizer import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vqkit.tokens import Frequencies

FORMAT: Final = "vqkit-rate-distortion-1"
DRAWN: Final = 1.5
"""Times the bits of PNG up to which codecs are drawn."""
MARKERS: Final = "osD^vP*X"
LABELS: Final = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips_vgg": "LPIPS (VGG), low is good",
    "lpips_alex": "LPIPS (Alex), low is good",
    "fid": "FID, low is good",
    "l1": "l1, low is good",
    "l2": "l2, low is good",
}
AXES: Final[dict[Rate, str]] = {
    "nominal": "bits per pixel (tokens: nominal; codecs: whole files)",
    "entropy": "bits per pixel (tokens: zero-order entropy; codecs: whole files)",
    "coded": "bits per pixel (whole files, headers included)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RateDistortion:
    """Operating points of tokenizers on one image set, with what lossless and other codecs take."""

    points: tuple[RatePoint, ...]
    """Of tokenizers; all measured alike."""
    png: float
    """Bits per pixel of the images as optimized PNG files."""
    raw: float
    """Bits per pixel uncompressed."""
    anchors: Anchors | None = None
    """Codecs on the same images."""

    def __post_init__(self) -> None:
        check_alike(self.all_points)

    @property
    def all_points(self) -> tuple[RatePoint, ...]:
        """Tokenizers, then codecs."""
        return (*self.points, *(self.anchors.points if self.anchors else ()))

    @property
    def lossless(self) -> dict[str, float]:
        """Bits per pixel of what keeps every pixel, the lowest first."""
        rates = {"raw": self.raw, "PNG": self.png}
        rates |= {p.method: p.rates["coded"] for p in self.all_points if p.codec and p.lossless}
        rates["PNG"] = self.png
        return dict(sorted(rates.items(), key=lambda one: one[1]))

    def is_above_lossless(self, point: RatePoint, rate: Rate = "nominal") -> bool:
        """Whether a lossy point takes at least the bits of the lossless PNG files."""
        bits = point.rate(rate)
        return bits is not None and not point.lossless and bits >= self.png

    def curves(self, metric: str = "psnr", rate: Rate = "nominal") -> tuple[Curve, ...]:
        """Return the curves of tokenizers and lossy codecs."""
        return curves_of(self.all_points, metric, rate)

    def bd_rates(
        self, reference: str, metric: str = "psnr", rate: Rate = "nominal"
    ) -> dict[str, BDRate]:
        """Return the Bjøntegaard distance of every other curve to that of one method."""
        curves = {curve.method: curve for curve in self.curves(metric, rate)}
        require(
            reference in curves,
            f"bd_reference={reference!r}",
            f"has no curve; known are {', '.join(curves)}",
        )
        return {
            name: bd_rate(curve, curves[reference], metric)
            for name, curve in curves.items()
            if name != reference
        }

    def table(self, *, bd_reference: str | None = None) -> str:
        """Return the points as Markdown, methods in their order, rates rising."""
        order = {method: i for i, method in enumerate(dict.fromkeys(self._methods()))}
        rows = sorted(self.all_points, key=lambda p: (order[p.method], p.rate("nominal") or 0))
        header = ("point", *RATES, "PSNR, dB", "SSIM", "")
        lines = [markdown(header, [self._row(point) for point in rows]), ""]
        fixed = ", ".join(f"{name} {rate:.3g}" for name, rate in self.lossless.items())
        lines.append(f"Bits per pixel. Without loss: {fixed}.")
        if any(self.is_above_lossless(point) for point in rows):
            lines.append("[above lossless]: takes as many bits as the lossless PNG, or more.")
        for name, why in self.anchors.missing if self.anchors else ():
            lines.append(f"{name} was not measured: {why}.")
        if bd_reference is not None:
            lines += ["", *_bd_lines(self.bd_rates(bd_reference), bd_reference)]
        protocol = check_alike(rows)
        lines.append(f"{protocol.id}: {protocol.describe()}; {rows[0].num_images:,} images.")
        return "\n".join(lines)

    def _methods(self) -> list[str]:
        return [point.method for point in self.all_points]

    def _row(self, point: RatePoint) -> tuple[str, ...]:
        rates = [None if point.codec and k != "coded" else point.rates.get(k) for k in RATES]
        psnr, ssim = point.metrics.get("psnr"), point.metrics.get("ssim")
        exact = "exact" if point.lossless else _shown(psnr, 2)
        mark = "[above lossless]" if self.is_above_lossless(point) else ""
        return (point.name, *(_shown(one, 3) for one in rates), exact, _shown(ssim, 4), mark)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "format": FORMAT,
            "protocol": check_alike(self.all_points).to_dict(),
            "lossless": self.lossless,
            "points": [
                point.to_dict() | {"above_lossless": self.is_above_lossless(point)}
                for point in self.points
            ],
            "anchors": None if self.anchors is None else self.anchors.to_dict(),
        }

    def figure(
        self, metrics: Sequence[str] = ("psnr", "ssim"), rate: Rate = "nominal", title: str = ""
    ) -> Figure:
        """Draw a panel for every metric: methods in colour, codecs grey, lossless upright lines.

        Codecs are left out where they take over 1.5 times the bits of PNG: the table has them.
        """
        known = {name for p in self.all_points for name, v in p.metrics.items() if v is not None}
        for metric in metrics:
            require(
                metric in known,
                f"metric={metric!r}",
                f"was not measured; known are {', '.join(sorted(known))}",
            )
        shown = [p for p in self.all_points if not p.codec or p.rates["coded"] <= DRAWN * self.png]
        figure = new_figure(6.4 * len(metrics), 6.2)
        panels = figure.subplots(1, len(metrics), squeeze=False).flatten()
        for axes, metric in zip(panels, metrics, strict=True):
            _draw(axes, curves_of(shown, metric, rate), self.lossless)
            axes.set(xlabel=AXES[rate], ylabel=LABELS.get(metric, metric))
            finish(axes)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False
        )
        if title:
            figure.suptitle(title, fontsize=11)
        return figure

    def save(
        self,
        path: str | Path,
        *,
        metrics: Sequence[str] = ("psnr", "ssim"),
        rate: Rate = "nominal",
        bd_reference: str | None = None,
        title: str = "",
    ) -> tuple[Path, Path, Path]:
        """Write the figure to `path` (.png), numbers (.json) and table (.md) beside it.

        Each file is replaced whole or not at all; returns the three paths.
        """
        path = check_figure_path(path)
        picture = io.BytesIO()
        figure = self.figure(metrics, rate, title)
        figure.savefig(picture, format="png", dpi=DPI)
        numbers = self.to_dict()
        if bd_reference is not None:
            found = self.bd_rates(bd_reference)
            rows = {name: {"percent": one.percent, "why": one.why} for name, one in found.items()}
            numbers["bd_rate"] = {"reference": bd_reference, "metric": "psnr", "of": rows}
        text = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
        table = self.table(bd_reference=bd_reference) + "\n"
        return (
            write_beside(path, picture.getvalue()),
            write_beside(path.with_suffix(".json"), text.encode()),
            write_beside(path.with_suffix(".md"), table.encode()),
        )


def measure_coded(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    frequencies: Frequencies | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Return bits per pixel of a set as one `.vqk` file for every image, headers included.

    `frequencies` shorten the files; they must have been counted on other images.
    """
    from vqkit.tokens import CodedRate, TokenCoder

    coded = CodedRate(TokenCoder.of(tokenizer, frequencies))
    device, done = next(tokenizer.parameters()).device, 0
    with torch.no_grad(), evaluation_mode(tokenizer):
        for batch in iterate_once(images, batch_size):
            size = (batch.images.shape[-2], batch.images.shape[-1])
            coded.update(tokenizer.encode(batch.images.to(device)).cpu(), size)
            done += len(batch.images)
            if progress is not None:
                progress(done, len(images))
    return coded.bits_per_pixel


def _draw(axes: Axes, curves: Sequence[Curve], lossless: dict[str, float]) -> None:
    from matplotlib.ticker import FuncFormatter

    colour = 0
    for number, curve in enumerate(curves):
        style: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "label": curve.method}
        if curve.codec:
            style |= {"color": "#777777", "linestyle": "--", "linewidth": 1, "markersize": 3.5}
        else:
            style |= {"color": COLOURS[colour % len(COLOURS)], "linewidth": 1.6, "markersize": 6}
            colour += 1
        axes.plot(curve.rates, curve.values, **style)
    for name, rate in lossless.items():
        axes.axvline(rate, color="#444444", linestyle=":", linewidth=1)
        axes.annotate(
            f"{name} {rate:.3g}",
            (rate, 0.02),
            (-2, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            fontsize=7,
            ha="right",
            va="bottom",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _bd_lines(found: dict[str, BDRate], reference: str) -> list[str]:
    lines = [f"Bits at equal PSNR, against {reference} (Bjøntegaard, nominal; codecs: files):"]
    for name, one in found.items():
        value = "not defined" if one.percent is None else f"{one.percent:+.1f} %"
        lines.append(f"- {name}: {value} ({one.why})")
    return [*lines, ""]


def _shown(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
