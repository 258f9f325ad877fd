"""Everything that needs a CUDA device, in one command: checks, search, k-means, steps, trainings.

    python on_cuda.py --out OUT [--parts checks search kmeans presets vqgan]
    python on_cuda.py --out OUT --parts photos --photos PHOTOS [--photo-minutes 3]
    python on_cuda.py --out OUT --parts trainings --data DATA [--minutes 20] [--at_once 8]

checks     the kernels against the blocked search, CUDA graphs, torch.compile, a training step of
           every preset captured and compiled.
search     nearest codes against torch.cdist + argmin and compiled torch: ids, times, the limit.
kmeans     seconds of Lloyd's iterations, 10 million x 768 -> 100,000 (16 GB; `--kmeans-*` shrink).
presets    every preset on the device against the CPU: same ids but for near ties, `lookup` equal to
           `z_q` bit for bit, bf16 autocast, a state saved and continued bit for bit; milliseconds
           of a training step at MNIST's sizes, median of 30.
vqgan      images per second of the adversarial step at 256 x 256, bf16 and compiled, beside the
           same step written plainly in float32; its share of the product rate (`vqgan_step.py`).
photos     VQGAN and Dual on the photographs in PHOTOS/train and PHOTOS/val, full networks at
           256 x 256, some minutes each; their curves as curves.json and curves.md.
trainings  LooC's and its rivals' recipes on DATA/mnist, several at a time, until the minutes are
           over; a second call goes on where they stopped. Left out without --data.

Writes OUT/on_cuda.json and OUT/on_cuda.md after every part, and the runs below OUT/runs. Run it in
`benchmarks/`. `--device cpu --shrink 512` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cuda_checks import checks_part
from cuda_kmeans import kmeans_part
from cuda_search import search_part
from side_by_side import Page, limits
from vqgan_step import vqgan_part

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.quantizers import PRESETS
from vqkit.quantizers.methods import example

TRAININGS = [
    *[f"looc_table5_{k}x4_mnist" for k in (8, 16, 32, 64, 128, 256, 512, 1024)],
    *[f"looc_table3_256x{d}_mnist" for d in (64, 32, 16, 8)],
    "vq_vae_mnist",
    "cvq_mnist",
    "sq_vae_mnist",
    "pq_mnist",
]


def check(name: str, device: torch.device) -> dict[str, object]:
    """Compare one preset on the device with the CPU."""
    torch.manual_seed(0)
    here = PRESETS[name](**example(name))
    there = PRESETS[name](**example(name)).to(device)
    there.load_state_dict(here.state_dict())
    z = torch.randn(4, here.channels, 8, 8)
    a, b = here.eval()(z), there.eval()(z.to(device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        half = there(z.to(device).bfloat16())
    same_bf16 = there(z.to(device).bfloat16().float())
    there.train()

    def steps(quantizer: torch.nn.Module, first: int, count: int) -> list[float]:
        losses = []
        for step in range(first, first + count):
            source = torch.Generator().manual_seed(step)
            out = quantizer(torch.randn(z.shape, generator=source).to(device))
            losses.append((out.loss + out.z_q.square().mean()).item())
            quantizer.step()
        return losses

    first = steps(there, 0, 3)
    twin = PRESETS[name](**example(name)).to(device).train()
    twin.load_state_dict(there.state_dict())
    return {
        "ids_equal": (a.ids == b.ids.cpu()).float().mean().item(),
        "lookup_exact": torch.equal(there.eval().lookup(b.ids), there.lookup(b.ids.clone())),
        "bf16_ids_equal": torch.equal(half.ids, same_bf16.ids),
        "resumes_exactly": steps(twin, 3, 3) == steps(there.train(), 3, 3),
        "finite": all(value == value for value in first),
    }


def step_time(name: str, device: torch.device, batch: int = 128) -> float:
    """Milliseconds of one training step on 28×28 grey images."""
    config = TokenizerConfig(
        network=NetworkConfig(image_channels=1),
        quantizer=QuantizerConfig(preset=name, args=example(name)),
    )
    tokenizer = ImageTokenizer(config).to(device).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-4)
    images = torch.rand(batch, 1, 28, 28, device=device) * 2 - 1
    times = []
    for _ in range(40):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = tokenizer(images)
        loss = (out.images - images).square().mean() + out.quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[10:])


def train_all(names: list[str], data: Path, out: Path, seconds: float, at_once: int) -> None:
    """Run trainings side by side; at the end of the time they save a checkpoint and stop."""
    end = time.monotonic() + seconds
    waiting, running = list(names), {}
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            command = [sys.executable, "-m", "vqkit", "train", name]
            command += ["--path", str(data / "mnist"), "--out", str(out / "runs" / name)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running[name] = subprocess.Popen(command, env=environment)
        time.sleep(1)
        running = {name: process for name, process in running.items() if process.poll() is None}
    for process in running.values():
        process.send_signal(signal.SIGINT)
    for process in running.values():
        process.wait()


PARTS = ("checks", "search", "kmeans", "presets", "vqgan", "photos", "trainings")
CURVES = ("photos_vqgan", "photos_vqgan_dual")
KEPT = ("step", "seconds", "l1", "reconstruction", "perplexity", "codes_used", "adaptive_weight")
"""Numbers of a line of the log that make the curves, and all of its validation."""


def photos_part(page: Page, photos: Path, out: Path, minutes: float) -> dict[str, Any]:
    """Train VQGAN and Dual for some minutes each; return and print their curves."""
    found: dict[str, Any] = {}
    page.text("## VQGAN and Dual on photographs")
    for name in CURVES:
        run = out / "photos" / name
        command = [sys.executable, "-m", "vqkit", "train", name, "--out", str(run)]
        command += ["--path", str(photos / "train"), "--num_steps", "1000000", "--start", "1000"]
        command += ["--network.width", "128", "--network.num_res_blocks", "2"]
        command += ["--data.crop_size", "256", "--optim.batch_size", "16", "--optim.lr", "1.44e-4"]
        command += ["--optim.precision", "bf16", "--optim.compile", "true"]
        command += ["--optim.deterministic", "false", "--data.workers", "8"]
        command += ["--validation.data.source", "folder", "--validation.every", "200"]
        command += ["--validation.data.path", str(photos / "val")]
        command += ["--validation.data.crop", "center", "--validation.data.crop_size", "256"]
        process = subprocess.Popen(command)
        try:
            process.wait(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        found[name] = [
            {k: v for k, v in line.items() if k in KEPT or k.startswith("validation/")}
            for line in lines
        ]
        scored = [line for line in found[name] if "validation/psnr" in line]
        page.text(f"{name}: {lines[-1]['step']} steps in {lines[-1]['seconds']:.0f} s.")
        keys = ("step", "seconds", "validation/psnr", "validation/l1", "validation/perplexity")
        page.table(keys, [[line.get(key, "–") for key in keys] for line in scored])
    return found


def presets_part(page: Page, device: torch.device) -> dict[str, Any]:
    """Compare every preset with the CPU and time its step."""
    found = {"checks": {name: check(name, device) for name in PRESETS}}
    found["step_ms"] = {name: step_time(name, device) for name in PRESETS}
    page.text("## Presets")
    header = ["preset", "training step, ms", *next(iter(found["checks"].values()))]
    rows = [[name, found["step_ms"][name], *row.values()] for name, row in found["checks"].items()]
    page.table(header, rows)
    return found


def save(out: Path, result: dict[str, Any], page: Page) -> None:
    """Write what is there so far, beside and renamed."""
    beside = out / "on_cuda.json.part"
    beside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    beside.replace(out / "on_cuda.json")
    page.write(out / "on_cuda.md")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself")
    parser.add_argument("--pairs", type=int, default=11, help="alternating calls of each search")
    parser.add_argument("--shrink", type=int, default=1, help="divide N and K of the searches")
    parser.add_argument("--kmeans-vectors", type=int, default=10_000_000)
    parser.add_argument("--kmeans-dim", type=int, default=768)
    parser.add_argument("--kmeans-clusters", type=int, default=100_000)
    parser.add_argument("--kmeans-iterations", type=int, default=3)
    parser.add_argument("--data", type=Path, default=None, help="folder with mnist")
    parser.add_argument("--photos", type=Path, default=None, help="folder with train and val")
    parser.add_argument("--photo-minutes", type=float, default=3)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--at_once", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=None, help="trainings; default all")
    return parser.parse_args()


def main() -> None:
    """Run the parts and write the results."""
    arguments = parsed()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("device=cuda: torch sees none; run this on a machine that has one")
    start = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = Page("vqkit on a CUDA device", "One run of `on_cuda.py`.")
    # The rivals' float32 is float32; the searches of vqkit do not depend on this setting.
    torch.backends.cuda.matmul.allow_tf32 = False
    known = limits(device)
    page.text(f"Measured in this run: {known}.")
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "limits": asdict(known),
    }
    parts: dict[str, Callable[[], Any]] = {
        "checks": lambda: checks_part(page, device),
        "search": lambda: search_part(
            page, device, known, shrink=arguments.shrink, pairs=arguments.pairs
        ),
        "kmeans": lambda: kmeans_part(
            page,
            device,
            known,
            num_vectors=arguments.kmeans_vectors,
            dim=arguments.kmeans_dim,
            num_clusters=arguments.kmeans_clusters,
            iterations=arguments.kmeans_iterations,
        ),
        "presets": lambda: presets_part(page, device),
        "vqgan": lambda: vqgan_part(
            page, device, batch=16, pairs=arguments.pairs, quick=device.type == "cpu"
        ),
        "photos": lambda: photos_part(
            page, arguments.photos, arguments.out, arguments.photo_minutes
        ),
    }
    for name in arguments.parts:
        if name != "trainings" and (name != "photos" or arguments.photos is not None):
            result[name] = parts[name]()
            save(arguments.out, result, page)
    if "trainings" in arguments.parts and arguments.data is not None:
        left = 60 * arguments.minutes - (time.monotonic() - start)
        names = TRAININGS if arguments.only is None else arguments.only
        train_all(names, arguments.data, arguments.out, left, arguments.at_once)


if __name__ == "__main__":
    main()
