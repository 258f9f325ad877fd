"""Six methods at equal nominal bits, MNIST and photographs: which is best? Table, curves, answer.

    python benchmarks/equal_bits.py --mnist MNIST --photos TRAIN --test-photos TEST --work WORK \\
        --page ../docs/results/equal_bits.md

A finished run is taken as it is, an interrupted one goes on, so that a second call carries on where
the first was stopped. Two processes share the work with `--methods`, `--rates` or `--sets`; the
page has every cell that is finished, whoever has run it. `--no-train` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from side_by_side import Page

from vqkit.clustering.progress import open_progress
from vqkit.config import DataConfig, RunConfig, with_changes
from vqkit.data import ImageSet, load_images
from vqkit.evaluation import Evaluation, evaluate
from vqkit.evaluation.anchors import Anchors, measure_anchors
from vqkit.evaluation.curves import RatePoint, point_of
from vqkit.evaluation.rate_distortion import RateDistortion, measure_coded
from vqkit.metrics import LosslessRate
from vqkit.models import ImageTokenizer
from vqkit.models.files import FREQUENCIES, write_beside
from vqkit.recipes.equal_bits import (
    METHODS,
    RATES,
    TOLERANCE,
    EqualBitsOptions,
    EqualSet,
    equal_bits_mnist,
    equal_bits_photos,
    operating_point,
)
from vqkit.tokens import count_frequencies
from vqkit.training import train

NAMES: dict[EqualSet, str] = {"mnist": "MNIST", "photos": "photographs"}
COUNTED = {"mnist": 2000, "photos": 50}
"""Training images that code frequencies are counted on."""
FILED = {"mnist": 1000, "photos": 50}
"""Test images, the first ones, that are written as files."""
HEADER = (
    "bits per pixel",
    "method",
    "how",
    "nominal",
    "entropy",
    "files",
    "PSNR, dB",
    "SSIM",
    "codes used",
    "steps",
    "seconds",
    "",
)
ABOUT = """
At equal nominal bits, which method is best? Networks, images, steps, seed and loss are the same for
all (`vqkit.recipes.equal_bits`); only the quantizer differs. Methods with one token a position
(`vq_vae`, `vq_ema`, `cvq`) reach a rate by their number of codes, at most 65,536, on the grid of
stride 4, and beyond it on that of stride 2, whose networks are shallower and see four times as many
positions. `pq`, `rq` and `looc` have several tokens a position on the grid of stride 4. `pq` is
`looc` in everything but the sharing of the codebook. One seed, few steps: what is measured is what
a short training makes of the bits, and differences of a tenth of a dB mean nothing.

*Nominal*: log2 of the number of codes for every token, the rate that is equal (within 2 %).
*Entropy*: zero-order, of the tokens of the test images. *Files*: one `.vqk` file for every image,
headers of 45 bytes included, with code frequencies counted on training images; of the first test
images. *Codes used*: on the test images, mean over codebooks. *Above lossless*: the nominal rate is
that of the lossless PNG files, or more.
"""


@dataclass(frozen=True)
class Cell:
    """One method at one rate."""

    data_set: EqualSet
    rate: float
    method: str

    @property
    def name(self) -> str:
        """Of the run and of its folder."""
        return f"equal_bits_{self.data_set}_{self.method}_{self.rate:g}"


@dataclass(frozen=True)
class Finished:
    """What was found of a cell."""

    cell: Cell
    point: RatePoint
    evaluation: Evaluation
    steps: int
    seconds: float
    """Of training."""


def cells(data_set: EqualSet) -> Iterator[Cell]:
    """Yield all cells of a set, reachable or not."""
    for rate in RATES[data_set]:
        for method in METHODS:
            yield Cell(data_set, rate, method)


def config_of(given: argparse.Namespace, cell: Cell) -> RunConfig:
    """Return the settings of a cell; one out of reach is a `ValueError`."""
    options: EqualBitsOptions = {"num_steps": given.steps, "name": cell.name}
    if cell.data_set == "mnist":
        options["path"] = str(given.mnist)
        config = equal_bits_mnist(cell.method, cell.rate, **options)
    else:
        options |= {"path": str(given.photos), "test_path": str(given.test_photos)}
        config = equal_bits_photos(cell.method, cell.rate, **options)
    return with_changes(config, test_data__limit=given.test_images[cell.data_set])


def test_images(given: argparse.Namespace, data_set: EqualSet) -> ImageSet:
    """Open the test images of a set."""
    data = config_of(given, Cell(data_set, RATES[data_set][0], METHODS[0])).test_data
    assert data is not None  # the recipes name some
    return load_images(data)


def file_rate(tokenizer: ImageTokenizer, config: RunConfig, folder: Path) -> float:
    """Return bits per pixel of files of the first test images; keeps the frequencies."""
    data_set = "mnist" if config.data.source == "mnist" else "photos"
    assert config.test_data is not None
    whole = DataConfig(
        source=config.data.source,
        path=config.data.path,
        channels=config.data.channels,
        crop=config.test_data.crop,
        crop_size=config.test_data.crop_size,
        limit=COUNTED[data_set],
    )
    frequencies = count_frequencies(tokenizer, load_images(whole), batch_size=8)
    frequencies.save(folder / "tokenizer" / FREQUENCIES)
    first = load_images(replace(config.test_data, limit=FILED[data_set]))
    return measure_coded(tokenizer, first, frequencies=frequencies, batch_size=8)


def run_cell(
    given: argparse.Namespace, cell: Cell, images: ImageSet, lossless: LosslessRate | None
) -> LosslessRate | None:
    """Train and measure a cell, unless that is done; return what PNG takes, if it is known now."""
    config, folder = config_of(given, cell), given.work / cell.name
    if (folder / "cell.json").exists():
        return lossless
    began = time.perf_counter()
    result = train(config, out=folder)
    batch = 64 if cell.data_set == "mnist" else 4
    found = evaluate(result.tokenizer, images, batch_size=batch, name=cell.name, lossless=lossless)
    coded = file_rate(result.tokenizer, config, folder)
    trained = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    record = {
        "evaluation": found.to_dict(),
        "coded": coded,
        "steps": trained["steps"],
        "seconds": trained["seconds"],
    }
    write_beside(folder / "cell.json", json.dumps(record).encode())
    psnr = found.value("psnr")
    print(f"{cell.name}: {psnr:.2f} dB, {time.perf_counter() - began:.0f} s", flush=True)
    return found.lossless


def finished(given: argparse.Namespace, data_set: EqualSet) -> list[Finished]:
    """Read all cells of a set that are measured, with the number of steps asked for."""
    rows = []
    for cell in cells(data_set):
        path = given.work / cell.name / "cell.json"
        if not path.exists():
            continue
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["steps"] != given.steps:
            continue
        found = Evaluation.from_dict(record["evaluation"])
        point = point_of(found, method=cell.method, coded=record["coded"])
        miss = abs(point.rates["nominal"] / cell.rate - 1)
        assert miss <= TOLERANCE, f"{cell.name} misses its rate by {miss:.1%}"
        rows.append(Finished(cell, point, found, record["steps"], record["seconds"]))
    return rows


def anchors_of(given: argparse.Namespace, data_set: EqualSet, images: ImageSet) -> Anchors:
    """Measure the codecs, or take what is there."""
    path = given.work / f"anchors_{data_set}.json"
    if path.exists():
        kept = Anchors.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if kept.points[0].protocol.reference == images.fingerprint():
            return kept
    shown = open_progress(True, len(images), "codecs")
    found = measure_anchors(
        images,
        batch_size=256 if data_set == "mnist" else 8,
        progress=lambda done, total: shown.tick(done - shown.done),
    )
    write_beside(path, json.dumps(found.to_dict()).encode())
    return found


def table_row(cell: Cell, found: Finished | None, curves: RateDistortion) -> list[object]:
    """Return the row of a cell: its numbers, why there are none, or that it is not finished."""
    try:
        how = str(operating_point(cell.method, cell.rate))
    except ValueError as error:
        why = str(error).rpartition("out of reach: ")[2]
        return [f"{cell.rate:g}", cell.method, f"out of reach: {why}", *["–"] * 9]
    if found is None:
        return [f"{cell.rate:g}", cell.method, how, *["–"] * 8, "not finished"]
    value = found.point.metrics
    return [
        f"{cell.rate:g}",
        cell.method,
        how,
        f"{found.point.rates['nominal']:.4f}",
        f"{found.point.rates['entropy']:.3f}",
        f"{found.point.rates['coded']:.3f}",
        f"{value['psnr']:.2f}",
        f"{value['ssim']:.4f}",
        f"{value['usage']:.1%}",
        f"{found.steps:,}",
        f"{found.seconds:,.0f}",
        "above lossless" if curves.is_above_lossless(found.point) else "",
    ]


def complete(data_set: EqualSet, rows: Sequence[Finished]) -> dict[float, list[Finished]]:
    """Return, for every rate whose reachable methods are all measured, these by falling PSNR."""
    done: dict[float, list[Finished]] = {}
    for rate in RATES[data_set]:
        here = sorted((r for r in rows if r.cell.rate == rate), key=lambda r: -psnr_of(r.point))
        if len(here) == sum(reaches(method, rate) for method in METHODS):
            done[rate] = here
    return done


def reaches(method: str, rate: float) -> bool:
    """Whether a method reaches a rate."""
    try:
        operating_point(method, rate)
    except ValueError:
        return False
    return True


def psnr_of(point: RatePoint) -> float:
    """Return the PSNR of a point in dB."""
    value = point.metrics["psnr"]
    assert value is not None  # PSNR needs no images of some size
    return value


def answer(found: dict[EqualSet, list[Finished]], curves: dict[EqualSet, RateDistortion]) -> str:
    """Return the two sentences, made of the numbers."""
    wins: dict[str, int] = {}
    leads: list[float] = []
    places, codecs = [], []
    for data_set, rows in found.items():
        ranked = complete(data_set, rows)
        if not ranked:
            continue
        named = []
        for rate, here in ranked.items():
            best = here[0]
            wins[best.cell.method] = wins.get(best.cell.method, 0) + 1
            lead = psnr_of(best.point) - psnr_of(here[1].point)
            leads.append(lead)
            named.append(f"{rate:g} {best.cell.method} by {lead:.2f} dB")
            codecs.append(_against_codecs(data_set, rate, best, curves[data_set]))
        places.append(f"{NAMES[data_set]}: {', '.join(named)}")
    if not wins:
        return "No rate is measured for all methods yet."
    order = sorted(wins, key=lambda name: -wins[name])
    shares = ", ".join(f"{name} at {wins[name]} of {len(leads)} rates" for name in order)
    return (
        f"At equal nominal bits the highest PSNR is that of {shares}, by {min(leads):.2f} to "
        f"{max(leads):.2f} dB over the next method ({'; '.join(places)}). "
        f"The best file of an everyday codec in no more bits: {'; '.join(codecs)}."
    )


def _against_codecs(data_set: EqualSet, rate: float, best: Finished, curves: RateDistortion) -> str:
    """Say how the best lossy codec in no more bits compares, in words."""
    where = f"{NAMES[data_set]} at {rate:g}"
    limit = rate * (1 + TOLERANCE)
    smaller = [
        point
        for point in curves.all_points
        if point.codec and not point.lossless and point.rates["coded"] <= limit
    ]
    if not smaller:
        return f"{where} none is so small"
    rival = max(smaller, key=psnr_of)
    gap = psnr_of(rival) - psnr_of(best.point)
    return f"{where} {rival.name} has {abs(gap):.2f} dB {'more' if gap > 0 else 'less'}"


def by_rate(data_set: EqualSet, rows: Sequence[Finished]) -> list[list[object]]:
    """Return PSNR by method (rows) and rate, the best of a complete rate in bold."""
    best = {rate: here[0].cell.method for rate, here in complete(data_set, rows).items()}
    known = {(r.cell.method, r.cell.rate): psnr_of(r.point) for r in rows}
    table: list[list[object]] = []
    for method in METHODS:
        line: list[object] = [method]
        for rate in RATES[data_set]:
            value = known.get((method, rate))
            text = "–" if value is None else f"{value:.2f}"
            text = text if reaches(method, rate) else "out of reach"
            line.append(f"**{text}**" if best.get(rate) == method else text)
        table.append(line)
    return table


def write_page(given: argparse.Namespace, images: dict[EqualSet, ImageSet]) -> None:
    """Write the page of all finished cells, with a figure for every set."""
    found = {data_set: finished(given, data_set) for data_set in images}
    found = {data_set: rows for data_set, rows in found.items() if rows}
    curves: dict[EqualSet, RateDistortion] = {}
    for data_set, rows in found.items():
        first = rows[0].evaluation
        curves[data_set] = RateDistortion(
            points=tuple(row.point for row in rows),
            png=first.value("png_rate") or 0.0,
            raw=first.value("raw_rate") or 0.0,
            anchors=anchors_of(given, data_set, images[data_set]),
        )
    page = Page("Six methods at equal bits", ABOUT)
    page.text(f"{given.steps:,} steps each. {given.note}".strip())
    page.text(f"**Answer.** {answer(found, curves)}")
    for data_set, rows in found.items():
        add_section(page, given, data_set, rows, curves[data_set])
    if given.page is not None:
        page.write(given.page)


def add_section(
    page: Page,
    given: argparse.Namespace,
    data_set: EqualSet,
    rows: Sequence[Finished],
    curves: RateDistortion,
) -> None:
    """Add figure and tables of one set."""
    page.text(f"## {NAMES[data_set].capitalize() if data_set == 'photos' else 'MNIST'}")
    if given.page is not None:
        figure = given.page.with_name(f"equal_bits_{data_set}.png")
        curves.save(figure, title=f"{NAMES[data_set]}, {given.steps:,} steps")
        page.text(f"![Quality over rate, {NAMES[data_set]}]({figure.name})")
        page.text(f"All points, codecs included: [{figure.stem}.md]({figure.stem}.md).")
    page.text("PSNR in dB at nominal bits per pixel:")
    page.table(["method", *(f"{r:g}" for r in RATES[data_set])], by_rate(data_set, rows))
    known = {row.cell: row for row in rows}
    lines = [table_row(cell, known.get(cell), curves) for cell in cells(data_set)]
    page.table(HEADER, lines)
    limits = ", ".join(f"{name} {rate:.3g}" for name, rate in curves.lossless.items())
    page.text(f"Without loss, bits per pixel: {limits}.")
    assert curves.anchors is not None
    for name, why in curves.anchors.missing:
        page.text(f"{name} was not measured: {why}.")
    versions = ", ".join(f"{name} {version}" for name, version in curves.anchors.versions.items())
    protocol = rows[0].evaluation.protocol
    page.text(
        f"Codecs: {versions}. Measured on {rows[0].evaluation.num_images:,} images under "
        f"{protocol.id} ({protocol.describe()}); files of the first {FILED[data_set]:,} of them at "
        f"most, code frequencies of {COUNTED[data_set]:,} training images at most."
    )


def main() -> None:
    """Train and measure what is asked for and not done, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, help="folder of MNIST")
    parser.add_argument("--photos", type=Path, help="folder of photographs to train on")
    parser.add_argument("--test-photos", type=Path, help="folder of photographs to measure on")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--sets", nargs="*", choices=list(RATES), default=list(RATES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--rates", nargs="*", type=float)
    parser.add_argument("--mnist-images", type=int, help="test images at most; default all")
    parser.add_argument("--photo-images", type=int, default=100, help="test photographs at most")
    parser.add_argument("--no-train", action="store_true", help="only write the page")
    parser.add_argument("--note", default="", help="a sentence on the page, on the machine say")
    given = parser.parse_args()
    given.test_images = {"mnist": given.mnist_images, "photos": given.photo_images}
    places = {"mnist": given.mnist, "photos": given.test_photos and given.photos}
    images = {name: test_images(given, name) for name in given.sets if places[name] is not None}
    for data_set in images if not given.no_train else ():
        lossless: LosslessRate | None = None
        for cell in cells(data_set):
            asked = cell.method in given.methods and (not given.rates or cell.rate in given.rates)
            if asked and reaches(cell.method, cell.rate):
                try:
                    lossless = run_cell(given, cell, images[data_set], lossless)
                except ValueError as error:  # a run that cannot go on; the others can
                    print(f"{cell.name}: {error}", flush=True)
    write_page(given, images)


if __name__ == "__main__":
    main()
