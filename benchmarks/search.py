"""Time nearest-code search against its peers, side by side, and write a page.

    python benchmarks/search.py --photos PHOTOS --page docs/results/search.md

Each row runs ours and the peers in turn, a few rounds; a peer that takes more than `--slow` times
as long as ours runs once. Then ours and the fastest peer alternate, `--pairs` times. Without
`--photos` the rows of real vectors are left out. `--quick` tries the script.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from real_vectors import real_case
from side_by_side import PAIRS, Page, alternate, limits, median, ratio, seconds_of
from torch import Tensor

from vqkit.search import (
    code_counts_and_sums,
    nearest,
    nearest_k,
    nearest_with_scores,
    sample_softmax_rows,
)
from vqkit.search.fused import installed
from vqkit.search.sums import code_sums, sum_grid

SHAPES = (
    (262144, 256, 4),
    (65536, 1024, 4),
    (4096, 16384, 8),
    (4096, 100000, 8),
    (4096, 16384, 256),
    (4096, 100000, 256),
)
QUICK = ((2048, 256, 4), (512, 1024, 64))
CHECKED = 512
"""Vectors whose nearest code is looked up in float64."""
CHECKED_ELEMENTS = 2**31
OURS = "vqkit"
MOST_BYTES = 2**33
"""Beyond it the one-hot matrix is not tried."""
ROUNDS = 5
Work = Callable[[], object]


def expand_argmin(vectors: Tensor, codes: Tensor) -> Tensor:
    """Search as taming-transformers does: |z|^2 + |c|^2 - 2 z c for all pairs."""
    squares = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
    return (squares - 2 * torch.einsum("nd,kd->nk", vectors, codes)).argmin(1)


def cdist_argmin(vectors: Tensor, codes: Tensor) -> Tensor:
    """Search with `torch.cdist`, which holds all pairs as well."""
    return torch.cdist(vectors, codes).argmin(1)


def peer_module(codes: Tensor) -> torch.nn.Module:
    """Give vector-quantize-pytorch the codes; in evaluation it only looks up."""
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=codes.shape[1], codebook_size=len(codes)).eval()
    module._codebook.embed.data.copy_(codes[None])
    return module


def faiss_flat(vectors: Tensor, codes: Tensor, threshold: int | None) -> Work:
    """Search with faiss; its fused kernel is tuned in by a lower BLAS threshold."""
    import faiss

    def work() -> object:
        before = faiss.cvar.distance_compute_blas_threshold
        if threshold is not None:
            faiss.cvar.distance_compute_blas_threshold = threshold
        try:
            return faiss.knn(vectors.numpy(), codes.numpy(), 1)[1]
        finally:
            faiss.cvar.distance_compute_blas_threshold = before

    faiss.omp_set_num_threads(torch.get_num_threads())
    return work


def tree(vectors: Tensor, codes: Tensor) -> object:
    """Build a k-d tree of the codes, which move in training, and ask it."""
    from scipy.spatial import cKDTree

    return cKDTree(codes.numpy()).query(vectors.numpy(), workers=torch.get_num_threads())[1]


def works_of(vectors: Tensor, codes: Tensor) -> dict[str, Work]:
    """List ours and the peers for one row."""
    module = peer_module(codes)
    works: dict[str, Work] = {
        OURS: lambda: nearest(vectors, codes),
        "expand + argmin": lambda: expand_argmin(vectors, codes),
        "cdist + argmin": lambda: cdist_argmin(vectors, codes),
        "vector-quantize-pytorch": lambda: module(vectors[None])[1],
    }
    if codes.shape[1] > 16:
        works["ours, blocked float32"] = lambda: nearest(vectors, codes, backend="torch")
    if installed():
        works["faiss as installed"] = faiss_flat(vectors, codes, None)
        works["faiss tuned"] = faiss_flat(vectors, codes, 1 if codes.shape[1] <= 16 else None)
    if codes.shape[1] <= 16:
        works["k-d tree"] = lambda: tree(vectors, codes)
    if codes.shape[1] > 16:
        works.pop("faiss tuned", None)  # the fused kernel ends at 16 dimensions
    return works


def timed(works: dict[str, Work], pairs: int, slow: float) -> dict[str, list[float]]:
    """Time all works in turn; much slower ones once."""
    works[OURS]()
    ours = min(seconds_of(works[OURS]) for _ in range(2))
    first = {name: seconds_of(work) for name, work in works.items() if name != OURS}
    slower = {name: [seconds] for name, seconds in first.items() if seconds > slow * ours}
    return alternate({n: w for n, w in works.items() if n not in slower}, pairs) | slower


def nearest_in_float64(vectors: Tensor, codes: Tensor) -> Tensor:
    """Ids of the first vectors by differences in float64; fewer of them where codes are large."""
    wide = codes.double()
    some = min(CHECKED, max(1, CHECKED_ELEMENTS // codes.numel()))
    return torch.stack([(z.double() - wide).square().sum(1).argmin() for z in vectors[:some]])


def right(vectors: Tensor, ids: Tensor, codes: Tensor, search: Callable[..., Tensor]) -> float:
    """Share of vectors whose id is that of a float64 search, in percent."""
    return 100 * (search(vectors[: len(ids)], codes) == ids).float().mean().item()


def search_table(page: Page, cases: list[tuple[str, Tensor, Tensor]], pairs: int, slow: float):
    """Fill one table: milliseconds of all, and the ratio to the fastest peer."""
    names = [OURS, "expand + argmin", "cdist + argmin", "vector-quantize-pytorch"]
    names += ["ours, blocked float32", "faiss as installed", "faiss tuned", "k-d tree"]
    rows, ratios = [], []
    for label, vectors, codes in cases:
        works = works_of(vectors, codes)
        times = timed(works, min(pairs, ROUNDS), slow)
        cells = [1e3 * median(times[name]) if name in times else float("nan") for name in names]
        peers = [n for n in times if not n.startswith("ours") and n != OURS]
        best = min(peers, key=lambda name: median(times[name]))
        turns = alternate({name: works[name] for name in (OURS, best)}, pairs)
        of_best = ratio(turns, OURS, best)
        exact = nearest_in_float64(vectors, codes)
        rows.append(
            [
                f"{len(vectors)}, {len(codes)}, {codes.shape[1]} {label}",
                *cells,
                f"{of_best:.3f} of {best}",
                median(times["expand + argmin"]) / median(times[OURS]),
                median(times["cdist + argmin"]) / median(times[OURS]),
                right(vectors, exact, codes, nearest),
                right(vectors, exact, codes, expand_argmin),
            ]
        )
        each = [f"{a / b:.2f}" for a, b in zip(turns[OURS], turns[best], strict=True)]
        ratios.append(f"{rows[-1][0]}: {' '.join(each)} ({best})")
    head = ["N, K, D, vectors", *(f"{name}, ms" for name in names), "time of ours / fastest peer"]
    head += ["x expand", "x cdist", "ours right, %", "expand right, %"]
    page.table(head, rows)
    page.text("Pairs, time of ours / time of the fastest peer: " + "; ".join(ratios) + ".")


def count_table(page: Page, pairs: int, quick: bool) -> None:
    """Time counts and sums per code against the ways that are used elsewhere."""
    rows = []
    shapes = [(262144, 256, 4), (200000, 16384, 8), (100000, 1000, 64), (4096, 16384, 256)]
    for num_vectors, num_codes, dim in [(2048, 64, 4)] if quick else shapes:
        source = torch.Generator().manual_seed(0)
        z = torch.randn(num_vectors, dim, generator=source)
        ids = torch.randint(num_codes, (num_vectors,), generator=source)
        grid = sum_grid(z.abs().max().item(), num_vectors)

        def one_hot(z=z, ids=ids, k=num_codes) -> object:
            hot = torch.nn.functional.one_hot(ids, k).type(z.dtype)
            return hot.sum(0), hot.T @ z

        def scatter(z=z, ids=ids, k=num_codes) -> object:
            to = ids[:, None].expand(-1, z.shape[1])
            return torch.bincount(ids, minlength=k), z.new_zeros(k, z.shape[1]).scatter_add_(
                0, to, z
            )

        def backward(z=z, ids=ids, k=num_codes) -> object:
            sums = torch.ops.aten.embedding_dense_backward(z, ids, k, -1, False)
            return torch.bincount(ids, minlength=k), sums

        def by_sorting(z=z, ids=ids, k=num_codes) -> object:
            counts = torch.bincount(ids, minlength=k)
            return torch.segment_reduce(z[ids.argsort()], "sum", lengths=counts, unsafe=True)

        works: dict[str, Work] = {
            OURS: lambda z=z, ids=ids, k=num_codes: code_counts_and_sums(z, ids, k),
            "scatter_add": scatter,
            "embedding backward": backward,
            "sort + segments": by_sorting,
            "ours, in any order": lambda z=z, ids=ids, k=num_codes, g=grid: code_sums(z, ids, k, g),
        }
        times = alternate(works, pairs)
        hot_bytes = 12 * num_vectors * num_codes  # int64, and its copy in float32
        fits = hot_bytes < MOST_BYTES
        times["one-hot"] = alternate({"one-hot": one_hot}, 1)["one-hot"] if fits else [math.nan]
        rows.append(
            [f"{num_vectors}, {num_codes}, {dim}", *(1e3 * median(t) for t in times.values())]
        )
    page.table(["N, K, D", *(f"{name}, ms" for name in times)], rows)


def other_table(page: Page, pairs: int, quick: bool) -> None:
    """Time the other functions of the room at LooC's size."""
    source = torch.Generator().manual_seed(0)
    num_vectors = 2048 if quick else 262144
    vectors = torch.randn(num_vectors, 4, generator=source)
    codes = torch.randn(256, 4, generator=source)
    uniforms = torch.rand(256, generator=source)
    grouped = vectors.view(32, -1, 4), torch.randn(32, 64, 4, generator=source)
    works: dict[str, Work] = {
        "nearest": lambda: nearest(vectors, codes),
        "nearest, cosine": lambda: nearest(vectors, codes, "cosine"),
        "nearest, 32 groups of 64 codes": lambda: nearest(*grouped),
        "nearest_with_scores": lambda: nearest_with_scores(vectors, codes),
        "nearest_with_scores, roles swapped (closest anchors)": lambda: nearest_with_scores(
            codes, vectors
        ),
        "nearest_k, k=8": lambda: nearest_k(vectors, codes, 8),
        "sample_softmax_rows (probrandom anchors)": lambda: sample_softmax_rows(
            vectors, codes, uniforms
        ),
    }
    times = alternate(works, min(pairs, 5))
    page.table(
        [f"{num_vectors} vectors, 256 codes, 4 dimensions", "ms"],
        [[name, 1e3 * median(seconds)] for name, seconds in times.items()],
    )


def main() -> None:
    """Run all tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--keep", type=Path, default=Path("runs/benchmark_vectors"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--slow", type=float, default=4.0)
    parser.add_argument("--shapes", type=int, nargs="*", help="only these, counted from 0")
    parser.add_argument("--vectors", nargs="*", help="only these kinds, such as 'real x 10'")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    page = Page("Search: time beside its peers", ABOUT)
    page.text(f"Limits, measured in this run: {limits()}.")
    page.text("## Nearest codes")
    shapes = QUICK if args.quick else SHAPES
    for shape in shapes if args.shapes is None else [shapes[n] for n in args.shapes]:
        num_vectors, num_codes, dim = shape
        source = torch.Generator().manual_seed(0)
        vectors = torch.randn(num_vectors, dim, generator=source)
        cases = [("random", vectors, torch.randn(num_codes, dim, generator=source))]
        if args.photos is not None:
            z, codes = real_case(args.photos, args.keep, shape)
            cases.append(("real", z, codes))
            cases.append(("real x 10", 10 * z, 10 * codes))
            cases.append(("real + 100", z + 100, codes + 100))
        cases = [case for case in cases if args.vectors is None or case[0] in args.vectors]
        search_table(page, cases, args.pairs, args.slow)
        if args.page is not None:
            page.write(args.page)  # what there is, should the rest be stopped
    page.text("## Counts and sums per code")
    count_table(page, args.pairs, args.quick)
    page.text("## The other searches")
    other_table(page, args.pairs, args.quick)
    if args.page is not None:
        page.write(args.page)


ABOUT = """
Milliseconds, medians. All searches of a row run in turn in one process, five rounds; those that
take several times as long as ours ran once. The ratio to the fastest peer comes from pairs of those
two alone, who goes first changing from pair to pair.
*Right* is the share of the first 512 vectors (fewer with large codebooks) whose id is that of a
float64 search. Random vectors are normal; real ones are the vectors of a small tokenizer of
photographs, with codes made from them by k-means (those of 100,000 x 256 are other vectors, as
drawn). The k-d tree is built in every call, as codes move in training; above 16 dimensions it is a
linear scan and left out, and so is faiss's fused kernel, which ends there.
"""

if __name__ == "__main__":
    main()
