"""Search on a CUDA device against what torch offers; called by `on_cuda.py`.

Ids are compared with a float64 reference, times alternate in one process, and the physical limit
is measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from side_by_side import Limits, Page, alternate, median, ratio
from torch import Tensor

from vqkit.search import nearest
from vqkit.search.nearest import NEAR_TIE

SHAPES = (
    (262144, 256, 4),
    (65536, 1024, 4),
    (4096, 16384, 8),
    (4096, 100000, 8),
    (4096, 16384, 256),
    (4096, 100000, 256),
    (65536, 100000, 8),
    (65536, 16384, 256),
    (256, 262144, 8),
)
"""(N, K, D); the last is CVQ's closest anchor, codes and vectors swapped."""
SCORES_AT_ONCE = 2**32
"""Bytes of scores that a rival may hold; beyond, it is called on blocks of rows."""
ABOUT = """
Every work finds ids (N,) of the nearest codes by squared distance; vectors and codes are standard
normal. `cdist + argmin` and `compiled expand + argmin` (torch.compile of |z|² + |c|² - 2 z c, then
argmin) hold all scores; where these need more than 4 GiB they are called on blocks of rows.
`in a graph` replays the search from a CUDA graph, without the time Python takes to launch kernels.
Median of alternating calls. The limit is the longest of: the products at the measured bf16 matrix
rate, reading vectors and codes and writing ids at the measured bandwidth, and three instructions a
pair at half the measured float32 matrix rate (one instruction there is two operations).
`near ties` counts ids that differ from the float64 reference although their distances differ by
less than the stated bound; `wrong` must be 0.
"""


def expand_argmin(vectors: Tensor, codes: Tensor) -> Tensor:
    """Search as most published code does: |z|^2 - 2 z c + |c|^2 for all pairs."""
    squares = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
    return (squares - 2 * vectors @ codes.T).argmin(1)


def cdist_argmin(vectors: Tensor, codes: Tensor) -> Tensor:
    """Search with `torch.cdist`."""
    return torch.cdist(vectors, codes).argmin(1)


def in_blocks(search: Callable[[Tensor, Tensor], Tensor], vectors: Tensor, codes: Tensor) -> Tensor:
    """Call a rival on blocks of rows whose scores fit."""
    rows = max(1, SCORES_AT_ONCE // (4 * len(codes)))
    if rows >= len(vectors):
        return search(vectors, codes)
    return torch.cat([search(block, codes) for block in vectors.split(rows)])


def reference(vectors: Tensor, codes: Tensor) -> Tensor:
    """Find ids in float64."""
    z, c = vectors.double(), codes.double()
    half = c.square().sum(1) / 2
    rows = max(1, SCORES_AT_ONCE // (8 * len(codes)))
    return torch.cat([(block @ c.T - half).argmax(1) for block in z.split(rows)])


def compared(vectors: Tensor, codes: Tensor, ids: Tensor, expected: Tensor) -> dict[str, int]:
    """Count ids that differ from the reference: near ties and wrong ones."""
    z = vectors.double()
    ours, theirs = codes.double()[ids], codes.double()[expected]
    centre = codes.double().mean(0)
    gap = (z - ours).square().sum(1) - (z - theirs).square().sum(1)
    scale = (z - centre).square().sum(1) + (theirs - centre).square().sum(1)
    differs = ids != expected
    wrong = differs & (gap > NEAR_TIE * scale)
    return {"near_ties": int((differs & ~wrong).sum()), "wrong": int(wrong.sum())}


def captured(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Capture a search in a CUDA graph -> (what replays it, its ids)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = work()
    return graph.replay, ids


def limit_seconds(shape: tuple[int, int, int], limits: Limits, element: int = 4) -> float:
    """Return the time that no search of this shape can beat."""
    num_vectors, num_codes, dim = shape
    pairs = num_vectors * num_codes
    return max(
        2 * pairs * dim / limits.bf16_flops,
        (element * dim * (num_vectors + num_codes) + 8 * num_vectors) / limits.bytes_per_second,
        3 * pairs / (limits.float32_flops / 2),
    )


def peak(work: Callable[[], object]) -> float:
    """Measure MiB of device memory that a call needs beyond what is there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def one_shape(
    shape: tuple[int, int, int], device: torch.device, limits: Limits, pairs: int
) -> dict[str, Any]:
    """Compare and time one shape."""
    num_vectors, num_codes, dim = shape
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_vectors, dim, generator=generator).to(device)
    codes = torch.randn(num_codes, dim, generator=generator).to(device)
    on_cuda = device.type == "cuda"
    torch._dynamo.reset()  # or the ninth shape would not be compiled
    compiled = torch.compile(
        expand_argmin, backend="inductor" if on_cuda else "aot_eager", dynamic=False
    )
    backend = "triton" if on_cuda else None
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: nearest(vectors, codes, backend=backend),
        "cdist": lambda: in_blocks(cdist_argmin, vectors, codes),
        "compiled": lambda: in_blocks(compiled, vectors, codes),
    }
    row: dict[str, Any] = {"shape": shape}
    ids = nearest(vectors, codes, backend=backend)
    expected = reference(vectors, codes)
    row |= compared(vectors, codes, ids, expected)
    row["same"] = (ids == expected).double().mean().item()
    row["cdist_same"] = (works["cdist"]() == expected).double().mean().item()
    row["bf16_input"] = torch.equal(
        nearest(vectors.bfloat16(), codes.bfloat16(), backend=backend),
        nearest(vectors.bfloat16().float(), codes.bfloat16().float(), backend=backend),
    )
    if on_cuda:
        row["mib"] = peak(works["ours"])
        works["graph"], replayed = captured(lambda: nearest(vectors, codes, backend=backend))
    times = alternate(works, pairs)
    if on_cuda:
        row["graph_same"] = torch.equal(replayed, ids)
    row["limit"] = limit_seconds(shape, limits)
    row["times"] = times
    row["ratios"] = {name: 1 / ratio(times, "ours", name) for name in works if name != "ours"}
    return row


def share(limit: float, time: float) -> str:
    """Print which share of the limit was reached."""
    return "–" if time != time else f"{100 * limit / time:.0f} %"


def search_part(
    page: Page, device: torch.device, limits: Limits, *, shrink: int, pairs: int
) -> list[dict[str, Any]]:
    """Run all shapes and put the table on the page; `shrink` divides N and K for a trial."""
    page.text("## Search")
    page.text(ABOUT.strip())
    rows = []
    for num_vectors, num_codes, dim in SHAPES:
        shape = (max(8, num_vectors // shrink), max(8, num_codes // shrink), dim)
        rows.append(one_shape(shape, device, limits, pairs))
    header = ["N, K, D", "ours, ms", "in a graph", "cdist, ms", "compiled, ms", "cdist / ours"]
    header += ["compiled / ours", "share of the limit", "in a graph", "same ids"]
    header += ["near ties", "wrong", "same ids, cdist", "MiB"]
    lines = []
    for row in rows:
        ms = {name: 1e3 * median(times) for name, times in row["times"].items()}
        graph = ms.get("graph", float("nan"))
        limit = 1e3 * row["limit"]
        lines.append(
            [
                "{}, {}, {}".format(*row["shape"]),
                *(ms["ours"], graph, ms["cdist"], ms["compiled"]),
                *(row["ratios"]["cdist"], row["ratios"]["compiled"]),
                *(share(limit, ms["ours"]), share(limit, graph)),
                *(f"{100 * row['same']:.4f} %", row["near_ties"], row["wrong"]),
                *(f"{100 * row['cdist_same']:.4f} %", row.get("mib", float("nan"))),
            ]
        )
    page.table(header, lines)
    return rows
