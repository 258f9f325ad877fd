"""MNIST from pixels to tokens and back: the whole chain of generation in one command.

    python benchmarks/mnist_generation.py --mnist MNIST --work WORK \\
        --page ../docs/results/mnist_generation.md

Tokenizers, token sets with latents, GPT, SiT, DiT, LDM, 1,000 samples of each, class consistency;
classes read from token maps; modelability. Every stage is a list of `vqkit` commands, the ones that
a user would type, each in a process of its own. A command that has ended well is not run again, one
that was stopped goes on, so that a second call carries on where the first was stopped. `--stages`
runs some stages only, `--steps 0.1` a tenth of all steps (to try the chain), `--stages page` only
writes the page of what is there.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chain import Done, last_of_log, listing, read_json
from side_by_side import Page

METHODS = ("vq_vae", "looc", "dual")
TITLES = {"vq_vae": "VQ-VAE", "looc": "LooC", "dual": "Dual"}
GENERATORS = {"gpt": "GPT", "sit": "SiT", "dit": "DiT", "ldm": "LDM"}
DRAWN_FROM = "vq_vae"
"""The tokenizer whose tokens and latents the generators learn."""
STEPS = {
    "tokenizer": 1500,
    "pixels": 1200,
    "gpt": 1200,
    "sit": 3000,
    "dit": 3000,
    "ldm": 3000,
    "maps": 3000,
}
SMALLER = ["--model.layers", "4", "--model.heads", "4", "--model.width", "128"]
SETTINGS = {
    "gpt": [*SMALLER, "--optim.lr", "2e-3", "--optim.precision", "bf16"],
    "sit": [],
    "dit": [],
    "ldm": [],
}
"""What differs from the recipes, so that a core is enough."""
SAMPLING = {
    "gpt": ["--guidance", "2", "--top_p", "0.9"],
    "sit": ["--guidance", "2", "--scheduler", "heun", "--steps", "12"],
    "dit": ["--guidance", "2", "--scheduler", "dpm", "--steps", "20"],
    "ldm": ["--guidance", "2", "--scheduler", "ddim", "--steps", "50"],
}
COMPUTE, LEAST = 4e12, 3e11
SAMPLES_OF_A_CLASS = 100
GOALS = {"gpt": 0.95, "sit": 0.9, "dit": 0.9}
STAGES = ("tokenizers", "tokens", "pixels", "generators", "samples", "maps", "modelability")
ABOUT = """
The whole chain on MNIST: three tokenizers at equal nominal bits, their token sets, four generators
on the tokens and latents of one of them, 1,000 samples of each read by a classifier that was
trained on real digits, classes read from token maps, and modelability. Short trainings on one core:
what they show is that the parts work together, not what each method can do at best. The DiT here
predicts velocity, not noise as published: with noise it is far from done after so few steps.

Settings were chosen elsewhere: those of sampling (guidance 2, top-p 0.9) on 300 samples of another
GPT, tokenizer and classifier, that of `small_classifier` on 6,000 held-out training images.

*Class consistency*: share of samples that the classifier of real digits reads as the class asked
for. *Classifier distance*: the Fréchet distance between features of that classifier, of samples and
of the 10,000 test images; it is no FID and compares with nothing outside this page.
"""


@dataclass(frozen=True)
class Chain:
    """Where things lie, and how long trainings are."""

    mnist: str
    work: Path
    steps: float
    count: int

    def path(self, *parts: str) -> str:
        """Return a place below the working folder."""
        return str(self.work.joinpath(*parts))

    def length(self, name: str) -> list[str]:
        """Return the option that says how many steps are made."""
        return ["--num_steps", str(max(20, round(STEPS[name] * self.steps)))]

    def commands(self, stage: str) -> list[list[str]]:
        """Return the commands of a stage."""
        found: list[list[str]] = getattr(self, f"_{stage}")()
        return found

    def _tokenizers(self) -> list[list[str]]:
        commands = []
        for method in METHODS:
            run = self.path("tokenizers", method)
            words = ["train", "mnist_tokens", "--method", method, "--path", self.mnist]
            commands.append([*words, "--out", run, *self.length("tokenizer")])
            commands.append(["evaluate", run, "--batch_size", "64"])
        return commands

    def _tokens(self) -> list[list[str]]:
        commands = []
        for method in METHODS:
            for split in ("train", "test"):
                words = ["tokenize", self.path("tokenizers", method), "--data.split", split]
                latents = ["--latents"] if method == DRAWN_FROM else []
                out = self.path("tokens", method, split)
                commands.append([*words, "--batch_size", "64", *latents, "--out", out])
        return commands

    def _pixels(self) -> list[list[str]]:
        images = ["--data.source", "mnist", "--data.path", self.mnist, "--data.channels", "1"]
        run, steps = self.path("pixels"), self.length("pixels")[1]
        train = ["classify", "pixels", "digits", *images, "--out", run]
        train += ["--optim.num_steps", steps]
        train += ["--log.checkpoint_every", steps]
        reference = ["reference", *images, "--data.split", "test", "--classifier", run]
        return [train, [*reference, "--out", self.path("test.safetensors")]]

    def _generators(self) -> list[list[str]]:
        tokens = self.path("tokens", DRAWN_FROM, "train")
        held_out = self.path("tokens", DRAWN_FROM, "test")
        commands = []
        for kind in GENERATORS:
            words = ["train", f"{kind}_mnist", "--tokens", tokens, "--held_out", held_out]
            words += ["--out", self.path(kind), *self.length(kind)]
            commands.append([*words, *SETTINGS[kind]])
        return commands

    def _samples(self) -> list[list[str]]:
        commands = []
        for kind in GENERATORS:
            out = self.path("samples", kind)
            words = ["generate", self.path(kind), "--tokenizer"]
            words += [self.path("tokenizers", DRAWN_FROM), "--count", str(self.count)]
            commands.append([*words, "--batch_size", "50", *SAMPLING[kind], "--out", out])
            words = ["score", out, "--classifier", self.path("pixels"), "--reference"]
            commands.append([*words, self.path("test.safetensors")])
        return commands

    def _maps(self) -> list[list[str]]:
        commands = []
        for method in METHODS:
            words = ["classify", "train", "small_classifier", "--tokens"]
            words += [self.path("tokens", method, "train"), "--held_out"]
            words += [self.path("tokens", method, "test"), "--tokenizer"]
            words += [self.path("tokenizers", method), "--out", self.path("maps", method)]
            commands.append([*words, *self.length("maps")])
        runs = [self.path("maps", method) for method in METHODS]
        commands.append(["classify", "evaluate", *runs, "--json", self.path("maps.json")])
        return commands

    def _modelability(self) -> list[list[str]]:
        words = ["modelability", *(self.path("tokens", one, "train") for one in METHODS)]
        words += ["--held_out", *(self.path("tokens", one, "test") for one in METHODS)]
        words += ["--runs", *(self.path("tokenizers", one) for one in METHODS)]
        compute = f"{max(COMPUTE * self.steps, LEAST):.3g}"
        return [[*words, "--compute", compute, "--out", self.path("modelability")]]


def main() -> None:
    """Run the stages asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", default="../../shared/data/mnist", help="folder of MNIST")
    parser.add_argument("--work", type=Path, default=Path("runs/mnist_generation"))
    parser.add_argument("--stages", nargs="+", choices=[*STAGES, "page"], help="default all")
    parser.add_argument("--steps", type=float, default=1.0, help="share of all steps")
    parser.add_argument("--count", type=int, default=SAMPLES_OF_A_CLASS, help="of each class")
    parser.add_argument("--page", type=Path, help="Markdown page to write; grids lie beside it")
    parser.add_argument("--note", default="", help="a paragraph on the page, on the machine say")
    given = parser.parse_args()
    chain = Chain(given.mnist, given.work, given.steps, given.count)
    done = Done(given.work / "done.json")
    for stage in given.stages or STAGES:
        for words in chain.commands(stage) if stage != "page" else ():
            done.run(words)
    if given.page is not None:
        write_page(chain, done, given.page, given.note)


def write_page(chain: Chain, done: Done, path: Path, note: str = "") -> None:
    """Write what has been found so far."""
    page = Page("MNIST: from tokens to samples", ABOUT)
    if note:
        page.text(note)
    parts: tuple[Callable[[Page, Chain], None], ...] = (_generated, _methods)
    for part in parts:
        part(page, chain)
    _grids(page, chain, path)
    rows = [(stage, f"{done.of(chain.commands(stage)) / 60:.1f}") for stage in STAGES]
    total = sum(done.of(chain.commands(stage)) for stage in STAGES) / 60
    page.text("## Time")
    page.table(("stage", "minutes"), [*rows, ("all", f"{total:.1f}")])
    page.text("## Commands")
    commands = [words for stage in STAGES for words in chain.commands(stage)]
    page.text(listing(commands, {f"{chain.work}": "runs", chain.mnist: "data/mnist"}))
    page.write(path)


def _generated(page: Page, chain: Chain) -> None:
    page.text("## Samples")
    rows = []
    for kind, title in GENERATORS.items():
        scores = read_json(chain.path("samples", kind, "scores.json"))
        if scores is None:
            rows.append((title, *["–"] * 7))
            continue
        found = {one["name"]: one for one in scores["found"]}
        share = found["class_consistency"]["value"]
        log = last_of_log(chain.path(kind))
        rows.append(
            (
                title,
                f"{log['step']:,}",
                f"{found['class_consistency']['num_images']:,}",
                f"{100 * share:.1f} %",
                _reached(kind, share),
                *(
                    f"{found[name]['value']:.3f}"
                    for name in (
                        "classifier_distance",
                        "classifier_precision",
                        "classifier_recall",
                    )
                ),
            )
        )
    names = ("generator", "steps", "samples", "class consistency", "goal reached")
    page.table((*names, "classifier distance", "precision", "recall"), rows)
    goals = ", ".join(f"{GENERATORS[kind]} {100 * goal:.0f} %" for kind, goal in GOALS.items())
    accuracy = last_of_log(chain.path("pixels")).get("validation/accuracy")
    if accuracy is not None:
        page.text(
            f"The classifier reads {100 * accuracy:.2f} % of the 10,000 test images right. Goals: "
            f"{goals}. Tokens and latents are those of {TITLES[DRAWN_FROM]}; precision and recall "
            "(k = 3) are of the classifier's features against those of the test images."
        )


def _reached(kind: str, share: float) -> str:
    if kind not in GOALS:
        return "none set"
    return "yes" if share >= GOALS[kind] else "no"


def _methods(page: Page, chain: Chain) -> None:
    page.text("## Tokenizers")
    reading = read_json(chain.path("maps.json"))
    rows = []
    for number, method in enumerate(METHODS):
        evaluation = read_json(chain.path("tokenizers", method, "evaluation.json")) or {
            "metrics": []
        }
        numbers = {one["name"]: one["value"] for one in evaluation["metrics"]}
        model = read_json(chain.path("modelability", method, "modelability.json")) or {}
        top1 = "–" if reading is None else f"{100 * reading[number]['found']['top1']:.2f} %"
        rows.append(
            (
                TITLES[method],
                *(_digits(numbers.get(name), digits) for name, digits in _SHOWN.items()),
                top1,
                _digits(model.get("bits_per_pixel"), 4),
                _digits(model.get("bits_per_image"), 1),
            )
        )
    header = ("tokenizer", "bits/pixel", "entropy", "PSNR, dB", "SSIM", "perplexity")
    page.table((*header, "top-1 of token maps", "modelability, bits/pixel", "bits/image"), rows)
    model = read_json(chain.path("modelability", METHODS[0], "modelability.json"))
    if model is not None:
        page.text(
            "Top-1: a transformer trained on the token maps of the training images, goal 97 %. "
            "Modelability: held-out bits of one small GPT without classes; equal for all are "
            f"architecture, optimizer, {model['batch_size']} images a step and "
            f"{model['compute']:.2g} floating-point operations of training."
        )


_SHOWN = {"rate": 3, "entropy_rate": 3, "psnr": 2, "ssim": 4, "perplexity": 1}


def _grids(page: Page, chain: Chain, path: Path) -> None:
    """Put the grid pictures beside the page."""
    page.text("## Grids")
    for kind, title in GENERATORS.items():
        grid = Path(chain.path("samples", kind, "grid.png"))
        if grid.is_file():
            target = path.with_name(f"{path.stem}_{kind}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(grid, target)
            page.text(f"{title}, the first samples of every class:\n\n![{title}]({target.name})")


def _digits(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    main()
