"""`vqkit demo`: the main job on ready pictures, in a few minutes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vqkit.cli.compare import NO_BENCHMARK, compare_runs
from vqkit.cli.console import tell
from vqkit.cli.options import Options
from vqkit.config import with_changes
from vqkit.recipes import recipe

RECIPES = (
    "photos_vq_vae",
    "photos_cvq",
    "photos_dual",
    "photos_rq",
    "photos_pq",
    "photos_looc_small",
    "photos_looc",
)

HIDDEN = 64
"""Channels of the networks, half of the recipes' own: minutes on two cores, not a quarter hour."""


def run(words: Sequence[str]) -> None:
    """Train seven quantizers in a small network on 64×64 cuts of photographs and compare them on
    held-out ones.

    The photographs come with scikit-image and scikit-learn (pip install 'vqkit[train,demo]').
    At the end stands the path of a page with all of it, to be opened in a browser.
    Ctrl-C stops it, and the same command goes on; finished runs are not trained again.
    """
    options = Options("demo", run.__doc__)
    options.add("out", str, "folder for everything; default runs/demo")
    options.add("steps", int, "optimizer steps of each run; default 250")
    options.add_flag("fresh", "delete the runs in the folder and train them again")
    given = options.parse(words)
    out, steps = Path(given.get("out", "runs/demo")), given.get("steps", 250)
    configs = {
        name: with_changes(recipe(name)(num_steps=steps), network__hidden=HIDDEN)
        for name in RECIPES
    }
    tell(f"{len(configs)} runs of {steps} steps on built-in photographs → {out}")
    tell(NO_BENCHMARK)
    command = shlex.join(["vqkit", "demo", *words])
    compare_runs(
        RECIPES, configs, out, data={}, fresh=given["fresh"], note=NO_BENCHMARK, command=command
    )
