"""Sampling from a GPT: with its cache, without, and with transformers' own `generate`.

    python benchmarks/gpt_sampling.py --page ../docs/results/gpt_sampling.md
    python benchmarks/gpt_sampling.py --device cuda --page ../docs/results/gpt_sampling_cuda.md
    python benchmarks/gpt_sampling.py --quick                                  (tries it)

On a CPU: 256 tokens of 1,024 codes from a Llama of 6 layers and width 384, 1 and 16 images at once.
On CUDA: the 404 million parameter GPT of VQGAN-LC with 100,000 codes in bfloat16, 1 and 64 images.
Weights are random: what is drawn does not change the work.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from side_by_side import Page, synchronise

from vqkit.config import GPTConfig, GPTSampling
from vqkit.generation import Card
from vqkit.generation.gpt import GPTGenerator, as_transformers
from vqkit.generation.gpt.generator import build_gpt
from vqkit.quantizers import Slot
from vqkit.recipes import generator_recipe

CLASSES = 10
TOP_K = 0.1
ABOUT_CPU = """
One thread. Times are CPU seconds of the process, since other work ran on the same machine: with one
thread they are what a quiet machine would need, but for what others push out of the caches. Three
ways to draw the same number of tokens: cached and `generate` take turns, medians of {rounds} rounds
after one to warm up; then one round of the recomputation.
"""
ABOUT_CUDA = """
Seconds of the clock, waiting for the device before and after; medians of {rounds} rounds after one
to warm up, in which the step is compiled. *Bound*: bytes that one token of all images needs (all
weights but the tables of embeddings, in bfloat16, and on average half the keys and values) over the
bandwidth that a copy of 4 GiB reaches on this device. *Share*: bound over time.
"""


def main() -> None:
    """Measure, print, and write the page if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the script")
    given = parser.parse_args()
    cuda = given.device.startswith("cuda")
    about = (ABOUT_CUDA if cuda else ABOUT_CPU).format(rounds=given.rounds)
    page = Page("Sampling from a GPT" + (" on CUDA" if cuda else ""), about)
    if cuda:
        on_cuda(page, given.device, given.rounds, quick=given.quick)
    else:
        torch.set_num_threads(1)
        on_cpu(page, given.rounds, quick=given.quick)
    if given.page is not None:
        page.write(given.page)


# ---------------------------------------------------------------------------------------- CPU


def on_cpu(page: Page, rounds: int, *, quick: bool) -> None:
    """Cached sampling against recomputation and against `generate`."""
    side, width = (4, 32) if quick else (16, 384)
    config = GPTConfig(layers=6, heads=width // 64 or 1, width=width)
    made = generator(config, codes=1024, side=side)
    count = sum(p.numel() for p in made.network.parameters())
    page.text(
        f"{config.layers} layers, width {config.width}: {count / 1e6:.1f} million parameters, "
        f"{side * side} tokens of 1,024 codes, drawn among the likeliest {TOP_K:.0%}, float32."
    )
    model, rows = as_transformers(made), []
    for batch in (1, 16):
        labels = torch.arange(batch) % CLASSES
        sampling = GPTSampling(top_k=TOP_K, batch_size=batch)
        ids: dict[str, torch.Tensor] = {}

        def cached(ids: Any = ids, labels: Any = labels, sampling: Any = sampling) -> None:
            ids["cached"] = made.write(labels, seed=0, sampling=sampling)

        def whole(ids: Any = ids, labels: Any = labels, sampling: Any = sampling) -> None:
            full = replace(sampling, cache="none")
            ids["whole"] = made.write(labels, seed=0, sampling=full)

        def generated(labels: Any = labels) -> None:
            generate(model, made, labels)

        ours, theirs = in_turn([cached, generated], rounds)
        full = statistics.median(in_turn([whole], 1, warm=False)[0])
        own = statistics.median(ours)
        pairs = [one / other for one, other in zip(theirs, ours, strict=True)]
        same = int((ids["cached"] == ids["whole"]).flatten(1).all(1).sum())
        rows.append(
            [
                batch,
                f"{own:.2f}",
                f"{full:.2f}",
                f"{full / own:.1f}",
                f"{statistics.median(theirs):.2f}",
                f"{statistics.median(pairs):.2f}",
                f"{same} of {batch}",
            ]
        )
    page.table(
        [
            "images",
            "cached, s",
            "recomputed, s",
            "times faster",
            "`generate`, s",
            "times faster",
            "images with the same ids",
        ],
        rows,
    )
    page.text(greedy_line(made, model))


def generate(model: Any, made: GPTGenerator, labels: torch.Tensor, **options: Any) -> Any:
    """Let transformers draw as many tokens, from the same distribution."""
    codes, classes = 1024, CLASSES + 1
    options = {"do_sample": True, "top_k": round(TOP_K * codes)} | options
    return model.generate(
        codes + labels[:, None],
        attention_mask=torch.ones(len(labels), 1, dtype=torch.int64),
        max_new_tokens=made.network.units,
        pad_token_id=codes,
        suppress_tokens=list(range(codes, codes + classes)),
        **options,
    )[:, 1:]


def greedy_line(made: GPTGenerator, model: Any) -> str:
    """Compare the likeliest tokens, which need no random numbers."""
    labels = torch.arange(2)
    ours = made.write(labels, seed=0, sampling=GPTSampling(temperature=0)).flatten(1)
    theirs = generate(model, made, labels, do_sample=False, top_k=None)
    same = int((ours == theirs).all(1).sum())
    return f"Taking the likeliest token, both give the same ids for {same} of 2 images."


def in_turn(
    works: list[Callable[[], object]], rounds: int, *, warm: bool = True
) -> list[list[float]]:
    """Return CPU seconds of every round of every work."""
    if warm:
        for work in works:
            work()
    times: list[list[float]] = [[] for _ in works]
    for turn in range(rounds):
        order = list(range(len(works)))
        for number in order if turn % 2 == 0 else order[::-1]:
            start = time.process_time()
            works[number]()
            times[number].append(time.process_time() - start)
    return times


# --------------------------------------------------------------------------------------- CUDA


def on_cuda(page: Page, device: str, rounds: int, *, quick: bool) -> None:
    """Tokens per second of the published size, and the share of the bandwidth."""
    base = generator_recipe("lc_gpt")
    assert base is not None
    config = base().model
    assert isinstance(config, GPTConfig)
    config = replace(config, layers=2, width=128) if quick else config
    codes, side = (1000, 4) if quick else (100_000, 16)
    made = generator(config, codes=codes, side=side, device=device)
    rate = bandwidth(device, size=2**26 if quick else 2**32)
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else device
    page.text(f"{name}: a copy moves {rate / 1e9:,.0f} GB/s.")
    rows = []
    for batch in (1, 64):
        bound = needed_bytes(made, batch) / rate
        for cache, compiled in (("growing", False), ("static", False), ("static", True)):
            sampling = GPTSampling(
                top_k=TOP_K, batch_size=batch, cache=cache, compile=compiled, precision="bf16"
            )
            labels = torch.arange(batch) % CLASSES
            times = []
            for turn in range(rounds + 1):
                synchronise()
                start = time.perf_counter()
                made.write(labels, seed=turn, sampling=sampling)
                synchronise()
                times.append(time.perf_counter() - start)
            each = statistics.median(times[1:]) / made.network.units
            way = f"{cache}{', compiled' if compiled else ''}"
            rows.append(
                [
                    batch,
                    way,
                    f"{batch / each:,.0f}",
                    f"{each * 1e3:.3f}",
                    f"{bound * 1e3:.3f}",
                    f"{bound / each:.0%}",
                ]
            )
    page.table(["images", "cache", "tokens per second", "ms per step", "bound, ms", "share"], rows)


def bandwidth(device: str, size: int) -> float:
    """Return bytes per second that a copy reads and writes."""
    source = torch.zeros(size // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(5):
        synchronise()
        start = time.perf_counter()
        target.copy_(source)
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def needed_bytes(made: GPTGenerator, batch: int) -> float:
    """Return what one step must read: weights in bfloat16, and keys and values so far."""
    network = made.network
    weights = sum(p.numel() for p in network.trunk.parameters()) + network.head.weight.numel()
    states = 2 * made.config.layers * made.config.width * network.units / 2
    return 2 * (weights + batch * states)


def generator(config: GPTConfig, *, codes: int, side: int, device: str = "cpu") -> GPTGenerator:
    """A GPT with random weights."""
    card = Card(
        grid=(side, side),
        slots=(Slot("token", codes),),
        num_classes=CLASSES,
        label_names=(),
        tokenizer="none",
        tokens="none",
    )
    torch.manual_seed(0)
    return GPTGenerator(card, config, build_gpt(config, card)).to(device)


if __name__ == "__main__":
    main()
