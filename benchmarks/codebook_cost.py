"""What a larger codebook costs: seconds of a training step and peak memory, by number of codes.

    python benchmarks/codebook_cost.py --page ../docs/results/codebook_cost.md
    python benchmarks/codebook_cost.py --quick                                  (tries it)

VQGAN-LC's paper says that many codes cost almost nothing. Three codebooks in the networks and at
the recipe of `photos_lc` (8 crops of 128 x 128 pixels a step, 8,192 vectors): frozen features of
768 numbers behind a projector (`vqgan_lc`), short codes trained by gradient (`vqgan_fc`) and moving
averages (`vq_ema`), codes of 8 numbers each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import Page

from vqkit.config import RunConfig
from vqkit.recipes import recipe

SIZES = (1_024, 16_384, 100_000)
RECIPES = {"vqgan_lc": "photos_lc", "vqgan_fc": "photos_lc_fc", "vq_ema": "photos_lc_ema"}
WARM_UP = 2
ABOUT = """
A step is `vqkit.training.Trainer.step` on images that are in memory already: encoder, search,
decoder, L1 and the terms, backward, Adam, the update of the codebook and the counts for the log.
Every measurement is a process of its own, which builds the run, makes two steps to warm up and
times the next ones. Presets and sizes take turns, round by round, and every other round runs
backwards. Seconds are the median over rounds of a process's median step. Memory is the peak of the
process (VmHWM: resident, libraries included), largest over rounds; building the model stands in it
too: features are drawn once and copied once, as they are when a file is read.
"""


def config_of(preset: str, num_codes: int, batch_size: int) -> RunConfig:
    """Return the settings of a run with so many codes."""
    size = {"random_codes": num_codes} if preset == "vqgan_lc" else {"num_codes": num_codes}
    return recipe(RECIPES[preset])(**size, batch_size=batch_size, num_steps=10**6)


def measure(preset: str, num_codes: int, steps: int, batch_size: int) -> dict[str, Any]:
    """Train for a few steps in this process; seconds of every timed step, and memory in bytes."""
    from vqkit.data import Batch
    from vqkit.training.machine import make_accelerator
    from vqkit.training.objective import TokenizerObjective
    from vqkit.training.trainer import Trainer

    config = config_of(preset, num_codes, batch_size)
    objective = TokenizerObjective(config.objective)
    trainer = Trainer(config, make_accelerator(), objective)
    built = peak()
    source = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, config.data.crop_size, config.data.crop_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)
    batch = Batch(images, [""] * batch_size)
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        report = trainer.step(batch)
        seconds.append(time.perf_counter() - start)
        if report.problem:
            raise SystemExit(report.problem)
    return {"seconds": seconds[WARM_UP:], "built": built, "peak": peak()}


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    # Not ru_maxrss, which a child inherits from the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def in_fresh_process(preset: str, num_codes: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return what `measure` finds in a process of its own."""
    command = [sys.executable, __file__, "--one", preset, str(num_codes)]
    command += ["--steps", str(given.steps), "--batch", str(given.batch)]
    command += ["--threads", str(given.threads)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def alternate(given: argparse.Namespace) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Measure every preset at every size, `rounds` times."""
    order = [(preset, size) for size in given.sizes for preset in RECIPES]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {one: [] for one in order}
    total = given.rounds * len(order)
    began = time.monotonic()
    for turn in range(given.rounds):
        for one in order if turn % 2 == 0 else order[::-1]:
            found[one].append(in_fresh_process(*one, given))
            done = sum(map(len, found.values()))
            left = (time.monotonic() - began) / done * (total - done)
            print(f"{done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)
    return found


def write_table(page: Page, found: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    """Add the table: each size beside the smallest of its preset."""
    seconds = {
        one: statistics.median(statistics.median(run["seconds"]) for run in runs)
        for one, runs in found.items()
    }
    spread = {
        one: [statistics.median(run["seconds"]) for run in runs] for one, runs in found.items()
    }
    most = {one: max(run["peak"] for run in runs) / 2**20 for one, runs in found.items()}
    built = {one: max(run["built"] for run in runs) / 2**20 for one, runs in found.items()}
    smallest = min(size for _, size in found)
    rows = [
        [
            preset,
            f"{size:,}",
            seconds[preset, size],
            f"{min(spread[preset, size]):.3g} to {max(spread[preset, size]):.3g}",
            seconds[preset, size] / seconds[preset, smallest],
            f"{most[preset, size]:,.0f}",
            f"{most[preset, size] - most[preset, smallest]:+,.0f}",
            f"{built[preset, size]:,.0f}",
        ]
        for preset in RECIPES
        for size in sorted({size for _, size in found})
    ]
    page.table(
        [
            "preset",
            "codes",
            "seconds a step",
            "over rounds",
            f"times that at {smallest:,}",
            "peak MiB",
            f"above {smallest:,} codes, MiB",
            "peak MiB once built",
        ],
        rows,
    )


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of a process")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one round of one image, to try it")
    parser.add_argument("--page", type=Path, default=None)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one is not None:
        preset, size = given.one
        print(json.dumps(measure(preset, int(size), given.steps, given.batch)))
        return
    if given.quick:
        given.rounds, given.steps, given.batch = 1, 1, 1
    page = Page("The cost of many codes", ABOUT)
    write_table(page, alternate(given))
    if given.page is not None:
        page.write(given.page)


if __name__ == "__main__":
    main()
