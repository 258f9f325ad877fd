"""Train the VQGAN systems on a folder of photographs, each for the same steps, and write a table.

    python benchmarks/vqgan_photos.py --train TRAIN --test TEST --runs RUNS --page PAGE

Networks, losses, images and number of steps are the same for all; only the quantizer differs, and
with it the rate, which stands in every row. A second call goes on where the first was stopped; what
is finished is only measured. `--only` picks recipes, `--steps` shortens them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from side_by_side import Page

from vqkit.config import DataConfig, RunConfig, with_changes
from vqkit.data import load_images
from vqkit.evaluation.comparison import Contestant, compare
from vqkit.recipes import recipe
from vqkit.training import train

RECIPES = (
    "photos_vqgan",
    "photos_vqgan_dual",
    "photos_vqgan_dual_plain",
    "photos_vqgan_looc4",
    "photos_vqgan_looc64",
    "photos_vqgan_cvq",
    "photos_vqgan_simvq",
)


HEADER = (
    "run",
    "steps",
    "seconds a step",
    "last l1",
    "adaptive weight",
    "discriminator right on real, fake",
    "codes used at the end",
    "warnings",
)


def config_of(row: str, given: argparse.Namespace) -> RunConfig:
    """Return the settings of one row."""
    config = recipe(row)(
        path=str(given.train),
        test_path=str(given.test),
        num_steps=given.steps,
        batch_size=given.batch,
    )
    return with_changes(config, name=row.removeprefix("photos_"))


def warnings_of(log: list[dict[str, Any]]) -> str:
    """List what the run warned of, by step."""
    said = [
        f"step {line['step']}: {warning['name']}: {warning['message']}"
        for line in log
        for warning in line.get("warnings", [])
    ]
    return "; ".join(said) or "none"


def training_row(row: str, config: RunConfig, runs: Path) -> tuple[Contestant, list[object]]:
    """Train one row; return its tokenizer and what the log says of its training."""
    result = train(config, out=runs / row)
    log = result.log
    batch = config.optim.batch_size
    seconds = [batch / line["images_per_second"] for line in log]
    judged = [line for line in log if "adaptive_weight" in line]
    last = log[-1]
    cells: list[object] = [
        config.name,
        last["step"],
        sorted(seconds)[len(seconds) // 2],
        last["l1"],
        judged[-1]["adaptive_weight"] if judged else "–",
        f"{last['accuracy_real']:.0%}, {last['accuracy_fake']:.0%}" if judged else "–",
        f"{last['codes_used']:.0%}",
        warnings_of(log),
    ]
    return Contestant(
        name=config.name, tokenizer=result.tokenizer, train_seconds=last["seconds"]
    ), cells


def main() -> None:
    """Train all rows, measure them on the test photographs, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    given = parser.parse_args()
    page = Page("VQGAN systems on photographs", ABOUT)
    configs = {row: config_of(row, given) for row in given.only}
    found = [training_row(row, config, given.runs) for row, config in configs.items()]
    first: DataConfig | None = next(iter(configs.values())).test_data
    assert first is not None  # the recipes were given a folder
    held_out = load_images(first)
    result = compare([one for one, _ in found], held_out, given.runs / "comparison")
    page.text("## On the held-out photographs")
    page.text(result.table)
    page.text("## During training")
    page.table(
        HEADER,
        [cells for _, cells in found],
    )
    if given.page is not None:
        page.write(given.page)


ABOUT = """
All rows have the same networks, images, losses and number of steps; the quantizer differs, and the
bits with it. So few steps rank nothing: the table shows that the systems run, at what rate, and
whether one of them collapses. There is no perceptual loss (its weights cannot be had everywhere),
so the adversarial loss stands against L1 alone.
"""

if __name__ == "__main__":
    main()
