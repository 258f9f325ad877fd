"""The whole chain of a large codebook on photographs: extract, cluster, train, count; one table.

    python benchmarks/codebook_photos.py --train TRAIN --test TEST --work WORK --page PAGE

Features are whitened patches of 8 x 8 pixels of the training photographs (`vqkit codebook
extract`), clustered to K codes (`cluster`). `photos_lc` and its baselines are trained on random
crops, all with the same networks, images, steps and weights; every training photograph is then
encoded whole, and its tokens are counted, as for Table 1 of VQGAN-LC (arXiv:2406.11837). A second
call goes on where the first was stopped. `--only` picks rows, `--sizes` the numbers of codes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import Page

from vqkit.codebooks import PixelPatches, cluster_into, extract
from vqkit.config import DataConfig, RunConfig, with_changes
from vqkit.data import iterate_once, load_images
from vqkit.evaluation import evaluate
from vqkit.metrics import CodeUsage
from vqkit.models import ImageTokenizer
from vqkit.recipes import recipe
from vqkit.training import train

ALIGN = 0.99
POOL = 400_000
"""Features that codes may be chosen from, drawn at random."""
ROWS: dict[str, dict[str, Any]] = {
    "vqgan_lc": {"recipe": "photos_lc"},
    "vqgan_lc, aligned": {"recipe": "photos_lc", "align": ALIGN},
    "vqgan_lc, reselected": {
        "recipe": "photos_lc",
        "align": ALIGN,
        "pool": "pool",
        "patience": 4.0,
    },
    "vqgan_fc": {"recipe": "photos_lc_fc"},
    "vq_ema": {"recipe": "photos_lc_ema"},
}
MEASURED = "measured.json"
HEADER = (
    "method",
    "codes",
    "bits per pixel",
    "usage",
    "of uniform draws",
    "perplexity",
    "usage of the last epoch",
    "PSNR",
    "SSIM",
    "seconds a step",
)
ABOUT = """
*Usage*: codes drawn at least once over all tokens of the training photographs, encoded whole by the
finished tokenizer; *of uniform draws*: what as many uniform draws would reach. *Last epoch*: over
the tokens of the last whole epoch of training crops, while codes and networks still moved. PSNR and
SSIM are those of the held-out photographs. *Aligned* is no part of the paper: after every step the
projector is moved so that the projected codes have the mean and covariance of the vectors.
*Reselected* besides: codes that are not drawn become other features of a pool of 400,000
(`vqkit.quantizers.Align`, `Reselect`).
"""


def pool(given: argparse.Namespace) -> Path:
    """Return the file of features that codes may be chosen from."""
    file: Path = given.work / f"pool_{POOL}.safetensors"
    features = given.work / "features"
    cluster_into(file, features, min(POOL, given.pool), method="select")
    return file


def codebook(given: argparse.Namespace, num_codes: int) -> Path:
    """Extract and cluster, or take what is there; keep the seconds it took beside the file."""
    began = time.perf_counter()
    images = DataConfig(source="folder", path=str(given.train))
    encoder = PixelPatches(patch=8, stride=8, whiten="pca", dim=given.feature_dim)
    features = extract(images, encoder, given.work / "features")
    extracted = time.perf_counter()
    file: Path = given.work / f"codes_{num_codes}.safetensors"
    _, made = cluster_into(
        file, given.work / "features", num_codes, init="random", iterations=given.iterations
    )
    if made:
        seconds = {"extract": extracted - began, "cluster": time.perf_counter() - extracted}
        found = {"codes": num_codes, "features": features.num_vectors, **seconds}
        file.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")
    return file


def cost(file: Path) -> str:
    """Say what `codebook` kept of a file, if it made it in one go."""
    kept = file.with_suffix(".json")
    if not kept.exists():
        return ""
    found = json.loads(kept.read_text(encoding="utf-8"))
    return (
        f"{found['codes']:,} codes of {found['features']:,} features: extraction "
        f"{found['extract']:.0f} s, clustering {found['cluster']:.0f} s. "
    )


def config_of(given: argparse.Namespace, name: str, file: Path, num_codes: int) -> RunConfig:
    """Return the settings of one row."""
    options = dict(ROWS[name])
    make = recipe(options.pop("recipe"))
    if "pool" in options:
        options["pool"] = str(pool(given))
    of_codes = {"codebook": str(file)} if "lc" in name else {"num_codes": num_codes}
    config = make(
        path=str(given.train),
        test_path=str(given.test),
        num_steps=given.steps,
        batch_size=given.batch,
        **of_codes,
        **options,
    )
    short = name.replace(", ", "_")
    return with_changes(config, name=f"{short}_{num_codes}")


def usage(tokenizer: ImageTokenizer, data: DataConfig) -> dict[str, Any]:
    """Count the tokens of all images of a set, encoded whole."""
    quantizer = tokenizer.quantizer
    counts = CodeUsage([slot.num_codes for slot in quantizer.slots], quantizer.books)
    for batch in iterate_once(load_images(data), 4):
        counts.update(tokenizer.encode(batch.images))
    (book,) = counts.by_book()
    return book.to_dict()


def measured(given: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """Train and measure one row, or take what is there."""
    folder = given.work / config.name
    kept = folder / MEASURED
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    result = train(config, out=folder)
    whole = DataConfig(source="folder", path=str(given.train))
    assert config.test_data is not None
    scores = evaluate(result.tokenizer, load_images(config.test_data), batch_size=4).to_dict()
    epochs = [line for line in result.log if "epoch" in line]
    seconds = sorted(config.optim.batch_size / line["images_per_second"] for line in result.log)
    found = {
        "usage": usage(result.tokenizer, whole),
        "metrics": scores["metrics"],
        "epoch": epochs[-1] if epochs else None,
        "seconds": seconds[len(seconds) // 2],
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def row(name: str, num_codes: int, found: dict[str, Any]) -> list[object]:
    """Return the cells of one row."""
    used, metrics, epoch = found["usage"], found["metrics"], found["epoch"]
    value = {metric["name"]: metric["value"] for metric in metrics}
    return [
        name,
        num_codes,
        value["rate"],
        f"{used['usage']:.2%}",
        f"{used['uniform_usage']:.2%}",
        used["perplexity"],
        "–" if epoch is None else f"{epoch['epoch_codes_used']:.2%}",
        value["psnr"],
        value["ssim"],
        found["seconds"],
    ]


def main() -> None:
    """Run the chain for every size, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16_384, 100_000])
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--as-is", action="store_true", help="a page of the rows that are there")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--feature-dim", type=int, default=16)
    parser.add_argument("--pool", type=int, default=POOL, help="features of the pool at most")
    parser.add_argument("--iterations", type=int, default=5)
    given = parser.parse_args()
    page = Page("Codebooks from pretrained features, on photographs", ABOUT)
    page.text(f"{torch.get_num_threads()} threads, {given.steps:,} steps of {given.batch} crops.")
    cells: list[list[object]] = []
    costs = ""
    for num_codes in given.sizes:
        file = given.work / f"codes_{num_codes}.safetensors"
        if not given.as_is:
            file = codebook(given, num_codes)
        costs += cost(file)
        for name in given.only:
            config = config_of(given, name, file, num_codes)
            if given.as_is and not (given.work / config.name / MEASURED).exists():
                continue
            cells.append(row(name, num_codes, measured(given, config)))
    page.table(HEADER, cells)
    if costs:
        page.text(f"Making the codebooks: {costs.strip()}")
    if given.page is not None:
        page.write(given.page)


if __name__ == "__main__":
    main()
