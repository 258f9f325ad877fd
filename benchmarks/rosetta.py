"""How far numbers move by protocol alone: one run, the same reconstructions, every protocol.

    python benchmarks/rosetta.py RUN --images FOLDER --page ../docs/results/rosetta.md

RUN is the folder of a finished run, FOLDER holds photographs that it has not seen, which are cut to
their middle 256 x 256 pixels. FID needs Inception: without its published file (`--inception FILE`)
the same network with random weights measures in its place. That distance ranks nothing, and is no
FID, but goes through the same files, resizing, rounding and statistics, so that it shows what those
do. LPIPS is left out where its weights are missing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import safetensors.torch
from side_by_side import Page

from vqkit.config import DataConfig
from vqkit.data import load_images
from vqkit.evaluation import Rosetta, rosetta
from vqkit.evaluation.scoring import Networks
from vqkit.metrics.features import load_features
from vqkit.metrics.inception import InceptionV3
from vqkit.metrics.measures import make_measure
from vqkit.metrics.reference import Reference
from vqkit.training import load_run

SIDE = 256
"""Pixels of the images that are measured."""
ABOUT = """
One trained tokenizer reconstructs held-out photographs once; every column measures those very
images as a paper's code does ([protocols.md](../protocols.md) has the sources). Whatever differs
between columns is the protocol alone.
"""
RANDOM = """
**The row FID-like is not FID.** The published weights of Inception were not at hand; the same
network with random weights (seed 0) stands in for it. Its values rank nothing and compare with no
paper. They pass through the same resizing, rounding, files and reference images as FID does, so
that the differences between columns show what those steps do to such a distance.
"""


def measured(given: argparse.Namespace, folder: Path) -> Rosetta:
    """Measure the run under every protocol; `folder` takes files that are needed for it."""
    if given.inception is None:
        path = folder / "random_inception.safetensors"
        safetensors.torch.save_file(InceptionV3.random(seed=0).state_dict(), path)
    else:
        path = given.inception
    os.environ["VQKIT_WEIGHTS_INCEPTION"] = str(path)
    _, tokenizer = load_run(given.run)
    whole = DataConfig(source="folder", path=str(given.images), crop="none", limit=given.limit)
    cut = DataConfig(
        source="folder",
        path=str(given.images),
        resize=SIDE,
        crop="center",
        crop_size=SIDE,
        limit=given.limit,
    )
    reference = folder / "reference.safetensors"
    files = Reference.of(load_images(whole), load_features(resize="clean"), num_kept=0)
    reference.write_bytes(files.to_bytes())
    return rosetta(
        tokenizer,
        load_images(cut),
        networks=Networks(measures=(make_measure("fid"),)),
        reference=reference,
        batch_size=8,
        name=given.run.name,
    )


def spread(found: Rosetta) -> list[list[object]]:
    """Return for every metric its least and its largest value over the protocols."""
    rows: list[list[object]] = []
    for name in found.rows():
        known = {
            one.protocol.name: metric.value
            for one in found.evaluations
            if (metric := found.metric(name, one.protocol.name)) and metric.value is not None
        }
        if len(known) > 1:
            low, high = min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])
            gap = known[high] - known[low]
            rows.append(
                [name, f"{known[low]:.4f}", low, f"{known[high]:.4f}", high, f"{gap:.4f}"],
            )
    return rows


def without_places(table: str) -> str:
    """Cut notes on missing weights to their first clause; the rest names folders of a machine."""
    return "\n".join(
        f"{line.partition(' is missing')[0]} is missing." if " is missing (" in line else line
        for line in table.splitlines()
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--images", type=Path, required=True, help="held-out photographs")
    parser.add_argument("--limit", type=int, help="images at most; default all")
    parser.add_argument("--inception", type=Path, help="the published file of weights")
    parser.add_argument("--note", default="", help="a sentence on the page, on the run say")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(given, Path(folder))
    page = Page("Rosetta: the same reconstructions under every protocol", ABOUT)
    if given.note:
        page.text(given.note)
    if given.inception is None:
        page.text(RANDOM.strip())
    table = without_places(found.table())
    page.text(table if given.inception else table.replace("| FID     ", "| FID-like"))
    page.text("## How far a number moves by protocol alone")
    rows = spread(found)
    for row in rows if given.inception is None else ():
        row[0] = str(row[0]).replace("fid", "FID-like")
    page.table(["metric", "least", "under", "largest", "under", "difference"], rows)
    if given.page is not None:
        page.write(given.page)


if __name__ == "__main__":
    main()
