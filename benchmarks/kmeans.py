"""k-means against its rivals, side by side: same vectors, same first centres, same iterations.

    python benchmarks/kmeans.py --photos PHOTOS --out docs/results/kmeans.md

Shapes: 200,000 x 8 to 16,384 centres, 100,000 x 64 to 1,000 (normal numbers), and whitened patches
of 8 x 8 pixels of the photographs in the folder PHOTOS (100,000 x 64 to 1,000 and x 16 to 4,096).
Inertia is computed here, in float64, for all alike. `--quick` tries everything in small.

On a GPU (`--device cuda`) rivals do not run; it shows seconds of an iteration and the share of the
limit, also with `--large`: 10 million x 768 to 100,000 centres.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import side_by_side
import torch
from torch import Tensor

from vqkit.clustering import Clustering, kmeans

PATCH = 8


def patches(folder: Path, count: int, dim: int) -> Tensor:
    """Cut `count` random patches out of the images of a folder and whiten them -> (count, dim)."""
    from PIL import Image

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"photos={folder}: holds no .jpg or .png file; name a folder of pictures")
    source = np.random.default_rng(0)
    rows = []
    for number, file in enumerate(files):
        share = count * (number + 1) // len(files) - count * number // len(files)
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
        tops = source.integers(0, pixels.shape[0] - PATCH + 1, share)
        lefts = source.integers(0, pixels.shape[1] - PATCH + 1, share)
        rows += [
            pixels[t : t + PATCH, x : x + PATCH].ravel() for t, x in zip(tops, lefts, strict=True)
        ]
    vectors = torch.from_numpy(np.stack(rows)).double()
    vectors -= vectors.mean(0)
    values, axes = torch.linalg.eigh(vectors.T @ vectors / count)
    best = values.argsort(descending=True)[:dim]
    return (vectors @ axes[:, best] / (values[best] + 1e-6).sqrt()).float().contiguous()


def inertia(vectors: Tensor, centres: Tensor) -> float:
    """Sum up the squared distances from the nearest centres in float64."""
    centres, total = centres.double(), 0.0
    squares = centres.square().sum(1)
    for part in vectors.double().split(max(1, 2**24 // len(centres))):
        scores = torch.addmm(squares, part, centres.T, alpha=-2)
        total += float((scores.amin(1) + part.square().sum(1)).clamp(min=0).sum())
    return total


class Contest:
    """All rivals on one set of vectors, from the same first centres."""

    def __init__(self, vectors: Tensor, num_clusters: int, iterations: int) -> None:
        self.vectors, self.num_clusters, self.iterations = vectors, num_clusters, iterations
        rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(1))
        self.start = vectors[rows[:num_clusters].to(vectors.device)].clone()
        self.found: dict[str, Tensor] = {}

    def ours(self) -> None:
        """Run Lloyd's algorithm."""
        result = self._kmeans(iterations=self.iterations)
        self.found["vqkit"] = result.centres

    def faiss(self) -> None:
        """Run faiss.Kmeans without sampling."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        rival = faiss.Kmeans(
            self.vectors.shape[1],
            self.num_clusters,
            niter=self.iterations,
            min_points_per_centroid=1,
            max_points_per_centroid=len(self.vectors),
        )
        rival.train(self.vectors.numpy(), init_centroids=self.start.numpy())
        self.found["faiss"] = torch.from_numpy(rival.centroids)

    def sklearn(self) -> None:
        """Run scikit-learn's Lloyd."""
        from sklearn.cluster import KMeans

        rival = KMeans(
            self.num_clusters,
            init=self.start.numpy(),
            n_init=1,
            max_iter=self.iterations,
            tol=0,
            algorithm="lloyd",
        )
        self.found["scikit-learn"] = torch.from_numpy(
            rival.fit(self.vectors.numpy()).cluster_centers_
        )

    @property
    def batch(self) -> int:
        """Vectors of a batch."""
        return min(4 * self.num_clusters, len(self.vectors))

    @property
    def steps(self) -> int:
        """Batches: as many vectors as in half the iterations."""
        return max(1, self.iterations * len(self.vectors) // (2 * self.batch))

    def ours_in_batches(self) -> None:
        """Run mini-batches of random rows."""
        result = self._kmeans(
            algorithm="minibatch", batch_size=self.batch, batch_run=1, iterations=self.steps
        )
        self.found["vqkit, batches"] = result.centres

    def sklearn_in_batches(self) -> None:
        """Run scikit-learn's mini-batches, without the labels at the end."""
        from sklearn.cluster import MiniBatchKMeans

        rival = MiniBatchKMeans(
            self.num_clusters,
            init=self.start.numpy(),
            n_init=1,
            batch_size=self.batch,
            compute_labels=False,
            tol=0,
            max_no_improvement=None,
            random_state=0,
        )
        # max_iter counts epochs; partial steps are asked for directly.
        source = np.random.default_rng(0)
        values = self.vectors.numpy()
        for _ in range(self.steps):
            rival.partial_fit(values[source.integers(0, len(values), self.batch)])
        self.found["scikit-learn, batches"] = torch.from_numpy(rival.cluster_centers_)

    def _kmeans(self, **settings: object) -> Clustering:
        return kmeans(self.vectors, self.num_clusters, init=self.start, progress=False, **settings)


def shapes(arguments: argparse.Namespace) -> list[tuple[str, Tensor, int]]:
    """Return (name, vectors, K) of all contests."""
    shrink = 20 if arguments.quick else 1
    source = torch.Generator().manual_seed(0)

    def normal(count: int, dim: int) -> Tensor:
        return torch.randn(count // shrink, dim, generator=source).to(arguments.device)

    found = [
        ("normal", normal(200_000, 8), 16384 // shrink),
        ("normal", normal(100_000, 64), 1000 // shrink),
    ]
    if arguments.photos:
        for dim, count in ((64, 1000), (16, 4096)):
            vectors = patches(arguments.photos, 100_000 // shrink, dim).to(arguments.device)
            found.append(("patches of photographs", vectors, count // shrink))
    if arguments.large:
        vectors = torch.empty(10_000_000 // shrink, 768, device=arguments.device)
        for part in vectors.split(2**16):
            part.normal_()
        found.append(("normal", vectors, 100_000 // shrink))
    return found


def lloyd_rows(
    contests: dict[str, Contest], arguments: argparse.Namespace, limits: side_by_side.Limits
) -> list[list[object]]:
    """Time Lloyd's algorithm: one row for each shape."""
    rows: list[list[object]] = []
    for name, contest in contests.items():
        works: dict[str, Callable[[], object]] = {"vqkit": contest.ours}
        if arguments.device == "cpu":
            works["faiss"] = contest.faiss
        times = side_by_side.alternate(works, arguments.pairs)
        if arguments.device == "cpu" and arguments.sklearn:
            slow = side_by_side.alternate(
                {"vqkit": contest.ours, "scikit-learn": contest.sklearn}, min(3, arguments.pairs)
            )
            times["scikit-learn"] = slow["scikit-learn"]
            against = side_by_side.ratio(slow, "vqkit", "scikit-learn")
        (count, dim), centres = contest.vectors.shape, contest.num_clusters
        products = 2 * count * centres * dim * contest.iterations
        memory = contest.vectors.nbytes * contest.iterations / limits.bytes_per_second
        ours = side_by_side.median(times["vqkit"])
        measured = {n: inertia(contest.vectors, c) for n, c in contest.found.items()}
        best = measured["vqkit"]
        row: list[object] = [name, contest.iterations, ours]
        nan = float("nan")
        for rival in ("faiss", "scikit-learn"):
            known = rival in times
            row += [side_by_side.median(times[rival])] if known else [nan]
            if rival == "faiss":
                row += [side_by_side.ratio(times, "vqkit", rival)] if known else [nan]
            else:
                row += [against] if known else [nan]
            row += [f"{100 * (best / measured[rival] - 1):+.4f} %"] if known else [nan]
        row += [
            f"{best:.6g}",
            products / limits.float32_flops,
            products / limits.bf16_flops,
            memory,
        ]
        rows.append(row)
    return rows


def batch_rows(contests: dict[str, Contest], arguments: argparse.Namespace) -> list[list[object]]:
    """Time mini-batches: one row for each shape."""
    rows: list[list[object]] = []
    for name, contest in contests.items():
        works: dict[str, Callable[[], object]] = {"ours": contest.ours_in_batches}
        if arguments.device == "cpu" and arguments.sklearn:
            works["theirs"] = contest.sklearn_in_batches
        times = side_by_side.alternate(works, min(3, arguments.pairs))
        ours = inertia(contest.vectors, contest.found["vqkit, batches"])
        lloyd = inertia(contest.vectors, contest.found["vqkit"])
        row: list[object] = [name, f"{contest.steps} × {contest.batch:,}"]
        row += [side_by_side.median(times["ours"])]
        if "theirs" in times:
            theirs = inertia(contest.vectors, contest.found["scikit-learn, batches"])
            row += [side_by_side.median(times["theirs"])]
            row += [side_by_side.ratio(times, "ours", "theirs")]
            row += [f"{100 * (ours / theirs - 1):+.2f} %"]
        else:
            row += [float("nan")] * 3
        row += [f"{100 * (ours / lloyd - 1):+.2f} %"]
        rows.append(row)
    return rows


def seeding_rows(contests: dict[str, Contest]) -> list[list[object]]:
    """Compare the ways to begin: seconds of the seeding, inertia before and after iterations."""
    rows: list[list[object]] = []
    for name, contest in contests.items():
        for init in ("random", "k-means++"):
            began = time.perf_counter()
            found = kmeans(
                contest.vectors,
                contest.num_clusters,
                init=init,
                iterations=contest.iterations,
                progress=False,
            )
            side_by_side.synchronise()
            iterations = found.report.iterations
            seconds = [iteration.seconds for iteration in iterations]
            rows.append(
                [
                    name,
                    init,
                    time.perf_counter() - began - sum(seconds),
                    side_by_side.median(seconds),
                    f"{iterations[0].inertia:.6g}",
                    f"{inertia(contest.vectors, found.centres):.6g}",
                ]
            )
    return rows


def main() -> None:
    """Run all contests and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photographs, searched recursively")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=side_by_side.PAIRS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-sklearn", dest="sklearn", action="store_false")
    parser.add_argument("--out", type=Path, help="the page; without it only printed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="sklearn")
    logging.disable(logging.WARNING)
    if arguments.quick:
        arguments.pairs = 1
    page = side_by_side.Page("k-means, side by side", __doc__ or "")
    limits = side_by_side.limits(arguments.device, 1024 if arguments.quick else None)
    page.text(f"Limits measured in this run: {limits}.")
    contests = {
        f"{kind}, {len(vectors):,} × {vectors.shape[1]} → {count:,}": Contest(
            vectors, count, arguments.iterations
        )
        for kind, vectors, count in shapes(arguments)
    }
    page.text(
        "## Lloyd's algorithm\n\nMedian seconds; ratios are medians over alternating pairs, ours / "
        "theirs; Δ is how much higher our inertia is. The last columns are the least seconds that "
        "the products of vectors and centres, or one reading of the vectors, would take."
    )
    header = ["vectors", "iterations", "vqkit s", "faiss s", "ratio", "Δ", "scikit-learn s"]
    header += ["ratio", "Δ", "inertia", "float32 products s", "bf16 products s", "memory s"]
    page.table(header, lloyd_rows(contests, arguments, limits))
    if arguments.out:  # what is there, should the rest be stopped
        page.write(arguments.out)
    page.text("## Mini-batches\n\nThe same batches in number and size, of random rows.")
    header = ["vectors", "batches", "vqkit s", "scikit-learn s", "ratio", "Δ", "Δ to Lloyd"]
    page.table(header, batch_rows(contests, arguments))
    page.text(
        "## Seeding\n\nSeconds before the first iteration (the survey of all values included)."
    )
    header = ["vectors", "init", "seeding s", "iteration s", "inertia", "after all iterations"]
    page.table(header, seeding_rows(contests))
    if arguments.out:
        page.write(arguments.out)


if __name__ == "__main__":
    main()
