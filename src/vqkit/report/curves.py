"""What `vqkit rate-distortion` found: tokens as files, everyday codecs, bits at equal quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vqkit.evaluation.anchors import Anchors
from vqkit.evaluation.curves import RATES, RatePoint, check_alike
from vqkit.evaluation.rate_distortion import FORMAT, RateDistortion
from vqkit.metrics import Protocol
from vqkit.report.markup import Content, Markup, heading, joined, tag

FILE: Final = "rate_distortion.json"
"""Usual name of the numbers, beside the runs."""
REFERENCE: Final = "JPEG"
"""Codec that bits are compared with where a file names no other method."""
_LEAD: Final = (
    "The same images through tokenizers and everyday codecs. Files: whole files, headers included, "
    "of tokens as .vqk. A dash: not measured, or no such rate."
)

Result = tuple[RateDistortion, str]
"""The points, and the method that bits are compared with ("" for none)."""


def is_rate_distortion(path: Path) -> bool:
    """Tell whether a file holds the numbers of `vqkit rate-distortion`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT


def read_rate_distortion(path: Path) -> Result:
    """Read the numbers that `vqkit rate-distortion` wrote; a damaged file is a `ValueError`."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        facts = {k: v for k, v in values["protocol"].items() if k != "id"}
        points = tuple(_point(one, Protocol(**facts)) for one in values["points"])
        found = RateDistortion(
            points=points,
            png=float(values["lossless"]["PNG"]),
            raw=float(values["lossless"]["raw"]),
            anchors=Anchors.from_dict(values["anchors"]) if values["anchors"] else None,
        )
        named = values.get("bd_rate", {}).get("reference", REFERENCE)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        again = "run `vqkit rate-distortion` again"
        raise ValueError(f"{path}: {error}; the file is damaged, {again}") from error
    return found, named if named in {curve.method for curve in found.curves()} else ""


def curves_section(results: Sequence[Result]) -> Markup | None:
    """Draw a table of points, and bits at equal PSNR, for every result; None without any."""
    if not results:
        return None
    parts: list[Content] = [tag("p", _LEAD, class_="note")]
    for found, reference in results:
        parts += [_table(found), _fixed(found), _distances(found, reference)]
    return joined(*parts)


def _point(values: dict[str, Any], protocol: Protocol) -> RatePoint:
    names = ("name", "method", "rates", "metrics", "num_images", "lossless")
    return RatePoint(protocol=protocol, **{name: values[name] for name in names})


def _table(found: RateDistortion) -> Markup:
    heads = [heading("point", "", "text"), heading("method", "", "text")]
    heads += [heading(label, "bits/pixel") for label in ("nominal", "entropy", "files")]
    heads += [heading("PSNR", "dB ↑"), heading("SSIM", "↑")]
    table = tag(
        "table",
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(_row(found, point) for point in found.all_points)),
        class_="sortable",
    )
    label = "Rates of tokenizers and codecs"
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _row(found: RateDistortion, point: RatePoint) -> Markup:
    rates = [None if point.codec and kind != "coded" else point.rates.get(kind) for kind in RATES]
    above = " above lossless" if found.is_above_lossless(point) else ""
    psnr = tag("td", "exact") if point.lossless else _number(point, "psnr", 2)
    return tag(
        "tr",
        tag("th", point.name, tag("small", above), scope="row", data_v=point.name),
        tag("td", point.method, class_="text", data_v=point.method),
        *(_cell(rate, 3) for rate in rates),
        psnr,
        _number(point, "ssim", 4),
    )


def _number(point: RatePoint, metric: str, digits: int) -> Markup:
    return _cell(point.metrics.get(metric), digits)


def _cell(value: float | None, digits: int) -> Markup:
    if value is None:
        return tag("td", "–", class_="none")
    return tag("td", f"{value:,.{digits}f}", data_v=repr(value))


def _fixed(found: RateDistortion) -> Markup:
    protocol = check_alike(found.all_points)
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in found.lossless.items())
    missing = [f" {name} was not measured: {why}." for name, why in _missing(found)]
    words = f"Bits per pixel without loss: {rates}. {found.all_points[0].num_images:,} images, "
    return tag("p", words, tag("code", protocol.id), ".", *missing, class_="note")


def _missing(found: RateDistortion) -> tuple[tuple[str, str], ...]:
    return found.anchors.missing if found.anchors else ()


def _distances(found: RateDistortion, reference: str) -> Markup | None:
    """List the bits of every method at equal PSNR, as Bjøntegaard compares curves."""
    if not reference:
        return None
    items = []
    for name, one in found.bd_rates(reference).items():
        value = "not defined" if one.percent is None else f"{one.percent:+.1f} %"
        items.append(tag("li", tag("b", name), f": {value} ({one.why})"))
    head = f"Bits at equal PSNR, against {reference} (Bjøntegaard; nominal rates, codecs: files)"
    return joined(tag("h3", head), tag("ul", *items)) if items else None
