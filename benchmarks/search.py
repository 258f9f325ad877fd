"""Time nearest-code search against plain rivals and print a markdown table.

    python benchmarks/search.py --repeats 5 --threads 2

Medians in milliseconds. A rival that would hold more than `--rival-gib` of scores is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from vqkit.search import (
    code_counts_and_sums,
    nearest,
    nearest_k,
    nearest_with_scores,
    sample_softmax_rows,
)
from vqkit.search.fused import fits, installed

SHAPES = (
    (262144, 256, 4),
    (65536, 1024, 4),
    (4096, 16384, 8),
    (4096, 100000, 8),
    (4096, 16384, 16),
    (4096, 16384, 256),
    (256, 262144, 4),
)
"""(N, K, D); the last is CVQ's closest anchor, codes and vectors swapped."""


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `work` after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def expand_argmin(vectors: Tensor, codes: Tensor) -> Tensor:
    """Search as most published code does: |z|^2 - 2 z c + |c|^2 for all pairs."""
    squares = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
    return (squares - 2 * vectors @ codes.T).argmin(1)


def cdist_argmin(vectors: Tensor, codes: Tensor) -> Tensor:
    """Search with `torch.cdist`, which holds all pairs as well."""
    return torch.cdist(vectors, codes).argmin(1)


def hardware() -> str:
    """Name processor, threads and versions."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = []
    for package in ("torch", "faiss-cpu"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"{package} missing")
    processor = names[0] if names else platform.processor()
    return f"{processor}, {torch.get_num_threads()} threads, {', '.join(packages)}"


def search_row(shape: tuple[int, int, int], device: str, repeats: int, rival_bytes: float) -> str:
    """Time all searches of one shape."""
    num_vectors, num_codes, dim = shape
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_vectors, dim, generator=generator).to(device)
    codes = torch.randn(num_codes, dim, generator=generator).to(device)
    fused = fits(codes, "l2") and installed()
    # Rivals hold three times the scores at their peak.
    rivals = 12 * num_vectors * num_codes <= rival_bytes
    works: list[Callable[[], object] | None] = [
        (lambda: expand_argmin(vectors, codes)) if rivals else None,
        (lambda: cdist_argmin(vectors, codes)) if rivals else None,
        lambda: nearest(vectors, codes, backend="torch"),
        (lambda: nearest(vectors, codes, backend="faiss")) if fused else None,
        lambda: nearest_with_scores(vectors, codes),
    ]
    cells = ["–" if work is None else f"{milliseconds(work, repeats):.1f}" for work in works]
    return f"| {num_vectors}, {num_codes}, {dim} | {' | '.join(cells)} |"


def other_rows(device: str, repeats: int) -> list[str]:
    """Time the other functions of the room at LooC's size (N=262144, K=256, D=4)."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(262144, 4, generator=generator).to(device)
    codes = torch.randn(256, 4, generator=generator).to(device)
    uniforms = torch.rand(256, generator=generator).to(device)
    ids = nearest(vectors, codes)
    works: dict[str, Callable[[], object]] = {
        "nearest_k, k=8": lambda: nearest_k(vectors, codes, 8),
        "nearest, cosine": lambda: nearest(vectors, codes, "cosine"),
        "sample_softmax_rows": lambda: sample_softmax_rows(vectors, codes, uniforms),
        "code_counts_and_sums": lambda: code_counts_and_sums(vectors, ids, 256),
    }
    return [f"| {name} | {milliseconds(work, repeats):.1f} |" for name, work in works.items()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rival-gib", type=float, default=6.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{hardware()}; median of {args.repeats}, milliseconds\n")
    print("| N, K, D | expand + argmin | cdist + argmin | torch | faiss | nearest_with_scores |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        print(search_row(shape, args.device, args.repeats, args.rival_gib * 2**30), flush=True)
    print("\n| 262144 vectors, 256 codes, 4 dimensions | ms |\n|---|---|")
    for row in other_rows(args.device, args.repeats):
        print(row, flush=True)


if __name__ == "__main__":
    main()
