"""Time `evaluate` against a plain loop over single images, and measure its memory.

    python evaluation.py --mnist FILE.parquet --photos FOLDER [--pairs 3] [--out PAGE.md]

Needs scikit-image (`pip install 'vqkit[dev]'`). The page holds for the cores it ran on: bind it to
one (`taskset -c 1`) where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from side_by_side import Page
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import ImageSet, load_images
from vqkit.evaluation import evaluate
from vqkit.evaluation.evaluator import CPU_PIXELS
from vqkit.metrics import LosslessRate, ReconstructionScores, png_bytes, to_bytes
from vqkit.models import ImageTokenizer, TokenizerConfig

NUM_CODES = 512
BATCH = 16
"""Images a batch, the default of `vqkit evaluate`."""
ASKED = 2
"""Times the speed of the plain loop."""
COUNTS = {"MNIST": (1000, 3000, 10000), "photographs": (25, 50, 100, 200)}
"""Images for the table of memory."""
TIMED = {"MNIST": 256, "photographs": 16}
"""Images for the table of speed."""


def tokenizer_for(channels: int) -> ImageTokenizer:
    """Return the small-image tokenizer of the papers, with random weights."""
    torch.manual_seed(0)
    network = NetworkConfig(image_channels=channels)
    quantizer = QuantizerConfig(preset="vq_ema", args={"num_codes": NUM_CODES, "dim": 64})
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


def images_of(name: str, path: str, limit: int) -> ImageSet:
    """Return MNIST's test images as they are, or photographs cut to 256 pixels."""
    if name == "MNIST":
        config = DataConfig(source="mnist", split="test", path=path, channels=1, limit=limit)
    else:
        config = DataConfig(
            source="folder", path=path, resize=256, crop="center", crop_size=256, limit=limit
        )
    return load_images(config)


@torch.no_grad()
def plain_loop(tokenizer: ImageTokenizer, images: ImageSet) -> dict[str, float]:
    """Measure one image after the other as scripts do, with the same numbers in the end."""
    sums = dict.fromkeys(("psnr", "ssim", "l1", "l2", "png", "pixels"), 0.0)
    counts = np.zeros(NUM_CODES)
    for index in range(len(images)):
        image = images.image(index)
        ids = tokenizer.encode(image[None])
        rebuilt = to_bytes(tokenizer.decode(ids, size=image.shape[-2:]))[0]
        counts += np.bincount(ids.flatten().numpy(), minlength=NUM_CODES)
        x, y = (side.permute(1, 2, 0).numpy() / 255 for side in (rebuilt, image))
        sums["psnr"] += peak_signal_noise_ratio(y, x, data_range=1)
        sums["ssim"] += structural_similarity(
            x, y, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        sums["l1"] += np.abs(x - y).mean()
        sums["l2"] += ((x - y) ** 2).mean()
        sums["png"] += 8 * png_bytes(image)
        sums["pixels"] += image.shape[-2] * image.shape[-1]
    return sums


def stages(tokenizer: ImageTokenizer, images: ImageSet) -> dict[str, float]:
    """Return the processor time of each part of `evaluate` in milliseconds an image."""
    height, width = images.image(0).shape[-2:]
    together = min(BATCH, len(images), max(1, CPU_PIXELS // (height * width)))  # as `evaluate` does
    batch = torch.stack([images.image(index) for index in range(together)])
    with torch.no_grad():
        ids = tokenizer.encode(batch)
        rebuilt = tokenizer.reconstruct(batch)
        works: dict[str, Callable[[], object]] = {
            "encode": lambda: tokenizer.encode(batch),
            "decode": lambda: tokenizer.decode(ids, size=batch.shape[-2:]),
            "PSNR, SSIM, l1, l2": lambda: ReconstructionScores().update(rebuilt, batch),
            "PNG files": lambda: LosslessRate.of([batch]),
        }
        return {name: 1e3 * processor_time(work, 3) / len(batch) for name, work in works.items()}


def processor_time(work: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of several calls in seconds: the first may warm up.

    Of the process, not of the clock on the wall: others may use the same core.
    """
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def compare(page: Page, paths: dict[str, str], pairs: int) -> None:
    """Add the tables of speed and of the parts."""
    rows, parts, slow = [], [], []
    for name, path in paths.items():
        images = images_of(name, path, TIMED[name])
        tokenizer = tokenizer_for(images.channels)
        known = evaluate(tokenizer, images, batch_size=BATCH)
        works: dict[str, Callable[[], object]] = {
            "plain loop": lambda t=tokenizer, i=images: plain_loop(t, i),
            "evaluate": lambda t=tokenizer, i=images: evaluate(t, i, batch_size=BATCH),
            "again": lambda t=tokenizer, i=images, k=known.lossless: evaluate(
                t, i, batch_size=BATCH, lossless=k
            ),
        }
        times: dict[str, float] = {}
        for _ in range(pairs):  # in turn, so that what disturbs the machine disturbs all
            for work in works:
                found = processor_time(works[work], 1)
                times[work] = min(found, times.get(work, found))
        speeds = [len(images) / times[work] for work in works]
        rows.append([name, len(images), *speeds, *(speed / speeds[0] for speed in speeds[1:])])
        parts.append([name, *stages(tokenizer, images).values()])
        if speeds[1] < ASKED * speeds[0]:
            slow.append(_why(name, parts[-1][1:]))
    page.text("## Images per second of processor time")
    page.table(
        ["images", "number", "plain loop", "evaluate", "second tokenizer", "times", "times"], rows
    )
    page.text(
        "A second tokenizer on the same images takes the PNG sizes of the first "
        "(`lossless=`, as `vqkit compare` does)."
    )
    page.text("## Where the time goes, milliseconds an image")
    page.table(["images", "encode", "decode", "PSNR, SSIM, l1, l2", "PNG files"], parts)
    for sentence in slow:
        page.text(sentence)


def _why(name: str, parts: list[float]) -> str:
    """Say what stands in the way of the speed that was asked for."""
    encode, decode, _, png = parts
    model, whole = encode + decode, sum(parts)
    return (
        f"{name}: below {ASKED} times. {100 * model / whole:.0f} % of the time is the tokenizer "
        f"and {100 * png / whole:.0f} % the PNG files, which the plain loop spends as well: on one "
        "core a batch of large images saves nothing in the convolutions nor in zlib."
    )


def memory(page: Page, paths: dict[str, str]) -> None:
    """Add the table of memory against the number of images."""
    page.text("## Peak memory that `evaluate` adds, MiB")
    for name, path in paths.items():
        counts = COUNTS[name]
        rises = [measured(name, path, count) / 2**20 for count in counts]
        page.table([f"{name}: images", *counts], [["MiB", *rises]])
    page.text("Peak of a fresh process (VmHWM) over that after 16 images, which warm up.")


def measured(name: str, path: str, count: int) -> int:
    """Return the bytes that a fresh process adds."""
    command = [sys.executable, __file__, "--child", name, path, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout))


def child(name: str, path: str, count: int) -> None:
    """What the fresh process does."""
    torch.set_num_threads(1)
    images = images_of(name, path, count)
    tokenizer = tokenizer_for(images.channels)
    evaluate(tokenizer, images_of(name, path, BATCH), batch_size=BATCH)
    before = _peak()
    evaluate(tokenizer, images, batch_size=BATCH)
    print(json.dumps(_peak() - before))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


ABOUT = f"""
`evaluate` measures batches of {BATCH} images; the plain loop measures one image at a time with
scikit-image (SSIM, PSNR), NumPy and Pillow, and gives the same numbers. Both run the same
tokenizer (the small-image VQ-VAE, {NUM_CODES} codes, random weights) and write every original as an
optimized PNG file in memory, for the lossless rate. Times are processor time of the process.
"""


def main() -> None:
    """Measure and write the page."""
    if "--child" in sys.argv:
        name, path, count = sys.argv[2:]
        child(name, path, int(count))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    page = Page("Evaluation speed", ABOUT)
    cores = len(os.sched_getaffinity(0))
    page.text(f"Bound to {cores} core{'s' if cores > 1 else ''}, one thread.")
    paths = {"MNIST": given.mnist, "photographs": given.photos}
    compare(page, paths, given.pairs)
    memory(page, paths)
    if given.out is not None:
        page.write(given.out)


if __name__ == "__main__":
    main()
