"""Time the search of collapsed codebooks, with and without the short cut, beside faiss.

    python benchmarks/search_collapsed.py --page docs/results/search_collapsed.md

A collapsed codebook has a few codes that win all vectors; the others, dead, stay where they began:
next to zero (uniform in +-1/K) or normal, at a distance. `--quick` tries the script.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from search import faiss_flat
from side_by_side import Page, alternate, median
from torch import Tensor

from vqkit.search import favourites, nearest
from vqkit.search.fused import installed

SHAPES = ((16384, 65536, 64), (16384, 16384, 256))
QUICK = ((2048, 4096, 32),)
ABOUT = """
Milliseconds, medians of calls in turn. Vectors lie around the codes in use, noise 0.2 of their
spread. *Without the short cut* scores every code, as before, and gives the same ids (checked in the
run). In a codebook in use the short cut is left after the first few hundred vectors.
Winners are the codes that were found; noise draws some vectors to others than the one they were
drawn around.
"""


def cases(num_vectors: int, num_codes: int, dim: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return vectors and codes by the state of the codebook."""
    source = torch.Generator().manual_seed(0)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=source)

    def around(codes: Tensor) -> Tensor:
        drawn = torch.randint(len(codes), (num_vectors,), generator=source)
        return codes[drawn] + 0.2 * codes.std() * normal(num_vectors)

    found = {}
    for used in (12, 500):
        few, rest = normal(used), num_codes - used
        near_zero = torch.cat([few, (2 * torch.rand(rest, dim, generator=source) - 1) / num_codes])
        found[f"{used} in use, the others next to zero"] = around(few), near_zero
        found[f"{used} in use, the others normal"] = (
            around(0.3 * few),
            torch.cat([0.3 * few, normal(rest)]),
        )
    codes = normal(num_codes)
    found["all in use"] = around(codes), codes
    return found


def timed(vectors: Tensor, codes: Tensor, pairs: int) -> dict[str, list[float]]:
    """Time ours with and without the short cut, and faiss."""
    from_codes = favourites.CODES

    def without() -> object:
        favourites.CODES = 2**62
        try:
            return nearest(vectors, codes)
        finally:
            favourites.CODES = from_codes

    works: dict[str, Callable[[], object]] = {
        "vqkit": lambda: nearest(vectors, codes),
        "without the short cut": without,
    }
    if installed():
        works["faiss"] = faiss_flat(vectors, codes, None)
    ours, all_codes = works["vqkit"](), without()
    assert isinstance(ours, Tensor)
    assert isinstance(all_codes, Tensor)
    assert torch.equal(ours, all_codes), "the short cut changed an id"
    return alternate(works, pairs)


def main() -> None:
    """Fill the table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    page = Page("Search: collapsed codebooks", ABOUT)
    rows = []
    for shape in QUICK if args.quick else SHAPES:
        for name, (vectors, codes) in cases(*shape).items():
            times = {
                what: median(found) for what, found in timed(vectors, codes, args.pairs).items()
            }
            ours = times["vqkit"]
            peer = times.get("faiss")
            rows.append(
                (
                    "{}, {}, {}".format(*shape),
                    name,
                    f"{len(nearest(vectors, codes).unique()):,}",
                    f"{1e3 * ours:,.0f}",
                    f"{1e3 * times['without the short cut']:,.0f}",
                    "–" if peer is None else f"{1e3 * peer:,.0f}",
                    f"{times['without the short cut'] / ours:.1f}",
                    "–" if peer is None else f"{peer / ours:.1f}",
                )
            )
    head = ("N, K, D", "codebook", "winners", "vqkit, ms", "without the short cut, ms", "faiss, ms")
    page.table((*head, "x without", "x faiss"), rows)
    if args.page is not None:
        page.write(args.page)


if __name__ == "__main__":
    main()
