"""Photographs from noise, for the picture: tokenizer, latents, a SiT and a GPT without classes.

    python benchmarks/photos_generation.py --photos PHOTOS/train --work WORK \\
        --page ../docs/results/photos_generation.md

A few hundred photographs teach no model of photographs. So that nobody takes a copy for a creation,
the photograph of the training that lies nearest stands below every sample.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from chain import Done, last_of_log, listing
from side_by_side import Page
from torch import Tensor

from vqkit.config import DataConfig
from vqkit.data import iterate_once, load_images
from vqkit.generation.pictures import Row, draw_rows

SIDE = 64
STAGES = ("tokenizer", "tokens", "generators", "samples")
STEPS = {"tokenizer": 1500, "sit": 1200, "gpt": 400}
SAMPLING = {
    "sit": ["--scheduler", "heun", "--steps", "25"],
    "gpt": ["--top_p", "0.95"],
}
TITLES = {"sit": "SiT, latents", "gpt": "GPT, tokens"}
SETTINGS = {"sit": [], "gpt": ["--optim.batch_size", "8", "--optim.precision", "bf16"]}
"""What differs from the recipes, so that a core is enough."""
COUNT = 12
ABOUT = f"""
An unconditional run on photographs, for the picture: a VQ-VAE of {SIDE} x {SIDE} pixels, its
tokens and latents, and a SiT and a GPT that learn them, all from nothing and within minutes of one
core. So few photographs are no measure of a generator: there is no FID here, and the nearest
training photograph stands below every sample, so that copies can be told from the rest.
"""


@dataclass(frozen=True)
class Photos:
    """Where things lie, and how long trainings are."""

    photos: str
    work: Path
    steps: float

    def path(self, *parts: str) -> str:
        """Return a place below the working folder."""
        return str(self.work.joinpath(*parts))

    def length(self, name: str) -> list[str]:
        """Return the option that says how many steps are made."""
        return ["--num_steps", str(max(20, round(STEPS[name] * self.steps)))]

    def commands(self, stage: str) -> list[list[str]]:
        """Return the commands of a stage."""
        images = ["--data.source", "folder", "--data.path", self.photos]
        images += ["--data.resize", str(SIDE), "--data.crop_size", str(SIDE)]
        tokenizer, tokens = self.path("tokenizer"), self.path("tokens")
        if stage == "tokenizer":
            words = ["train", "photos_vq_vae", *images, "--data.flip", "true", "--out", tokenizer]
            return [[*words, *self.length("tokenizer")]]
        if stage == "tokens":
            words = ["tokenize", tokenizer, *images, "--data.crop", "center", "--latents"]
            return [[*words, "--out", tokens]]
        if stage == "generators":
            words = ["--tokens", tokens, "--out"]
            return [
                ["train", f"{kind}_photos", *words, self.path(kind), *self.length(kind), *more]
                for kind, more in SETTINGS.items()
            ]
        words = ["--tokenizer", tokenizer, "--count", str(COUNT), "--out"]
        return [
            ["generate", self.path(kind), *words, self.path("samples", kind), *more]
            for kind, more in SAMPLING.items()
        ]


def main() -> None:
    """Run what has not been run yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", default="../../shared/data/photos/train", help="their folder")
    parser.add_argument("--work", type=Path, default=Path("runs/photos_generation"))
    parser.add_argument("--steps", type=float, default=1.0, help="share of all steps")
    parser.add_argument("--page", type=Path, help="Markdown page to write; pictures lie beside it")
    parser.add_argument("--note", default="", help="a paragraph on the page, on what one sees say")
    given = parser.parse_args()
    chain = Photos(given.photos, given.work, given.steps)
    done = Done(given.work / "done.json")
    for stage in STAGES:
        for words in chain.commands(stage):
            done.run(words)
    if given.page is not None:
        write_page(chain, done, given.page, given.note)


def photographs(chain: Photos) -> Tensor:
    """Return the photographs as they were tokenized, uint8 (n, 3, SIDE, SIDE)."""
    data = DataConfig(
        source="folder", path=chain.photos, resize=SIDE, crop="center", crop_size=SIDE
    )
    return torch.cat([batch.images for batch in iterate_once(load_images(data), 64)])


def samples(chain: Photos, kind: str) -> list[Tensor]:
    """Return the pictures that a generator drew, uint8 (3, SIDE, SIDE)."""
    data = DataConfig(source="folder", path=chain.path("samples", kind, "images"))
    return list(next(iter(iterate_once(load_images(data), COUNT))).images)


def nearest(sample: Tensor, known: Tensor) -> tuple[Tensor, float]:
    """Return the photograph, or its mirror image, with the least squared error, and its PSNR."""
    both = torch.cat([known, known.flip(3)]).float()
    errors = (both - sample.float()).square().mean((1, 2, 3))
    best = int(errors.argmin())
    return both[best].byte(), float(10 * torch.log10(255**2 / errors[best]))


def write_page(chain: Photos, done: Done, path: Path, note: str = "") -> None:
    """Write page and pictures."""
    page = Page("Photographs from nothing", ABOUT)
    if note:
        page.text(note)
    known = photographs(chain)
    rows = []
    for kind, title in TITLES.items():
        drawn = samples(chain, kind)
        found = [nearest(one, known) for one in drawn]
        sheet = draw_rows([Row("drawn", drawn), Row("nearest", [one for one, _ in found])])
        target = path.with_name(f"{path.stem}_{kind}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target, optimize=True)
        page.text(f"## {title}\n\n![{title}]({target.name})")
        log = last_of_log(chain.path(kind))
        closest = max(psnr for _, psnr in found)
        rows.append((title, f"{log['step']:,}", f"{len(known):,}", f"{closest:.1f} dB"))
    header = ("generator", "steps", "photographs", "most alike, sample and photograph")
    page.table(header, rows)
    steps = last_of_log(chain.path("tokenizer"))["step"]
    page.text(f"The tokenizer: VQ-VAE, {steps:,} steps, 0.625 bits per pixel.")
    minutes = [(stage, f"{done.of(chain.commands(stage)) / 60:.1f}") for stage in STAGES]
    page.text("## Time")
    page.table(("stage", "minutes"), minutes)
    page.text("## Commands")
    commands = [words for stage in STAGES for words in chain.commands(stage)]
    page.text(listing(commands, {str(chain.work): "runs", chain.photos: "data/photos"}))
    page.write(path)


if __name__ == "__main__":
    main()
