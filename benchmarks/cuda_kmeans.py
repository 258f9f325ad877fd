"""k-means at the size of VQGAN-LC's codebook on a CUDA device; called by `on_cuda.py`."""

from __future__ import annotations

from typing import Any

import torch
from cuda_search import limit_seconds
from side_by_side import Limits, Page, synchronise

from vqkit.clustering import kmeans

ROWS_AT_ONCE = 2**17


def made(num_vectors: int, dim: int, device: torch.device) -> torch.Tensor:
    """Draw vectors (N, D) in float16 on the device, around as many centres as square root of N."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(int(num_vectors**0.5) + 1, dim, generator=generator, device=device)
    vectors = torch.empty(num_vectors, dim, dtype=torch.float16, device=device)
    for block in vectors.split(ROWS_AT_ONCE):
        of = torch.randint(len(centres), (len(block),), generator=generator, device=device)
        noise = torch.randn(len(block), dim, generator=generator, device=device)
        block.copy_(centres[of] + noise)
    return vectors


def kmeans_part(
    page: Page, device: torch.device, limits: Limits, *,
    num_vectors: int, dim: int, num_clusters: int, iterations: int,
) -> dict[str, Any]:  # fmt: skip
    """Time Lloyd's iterations from random rows."""
    vectors = made(num_vectors, dim, device)
    synchronise()
    found = kmeans(
        vectors, num_clusters, init="random", iterations=iterations, seed=0, progress=False
    )
    seconds = [iteration.seconds for iteration in found.report.iterations]
    limit = limit_seconds((num_vectors, num_clusters, dim), limits, element=2)
    page.text("## k-means")
    page.text(
        f"{num_vectors:,} vectors of {dim} dimensions in float16 on the device, {num_clusters:,} "
        "centres from random rows, Lloyd. The limit is that of one search (see above), read in "
        "float16. The first iteration compiles kernels."
    )
    page.table(
        ["iteration", "seconds", "share of the limit", "inertia", "moved"],
        [
            [
                number,
                iteration.seconds,
                f"{100 * limit / iteration.seconds:.0f} %",
                f"{iteration.inertia:.7g}",
                "–" if iteration.moved is None else f"{100 * iteration.moved:.2f} %",
            ]
            for number, iteration in enumerate(found.report.iterations, 1)
        ],
    )
    return {
        "num_vectors": num_vectors,
        "dim": dim,
        "num_clusters": num_clusters,
        "seconds": seconds,
        "limit": limit,
        "inertia": [iteration.inertia for iteration in found.report.iterations],
    }
