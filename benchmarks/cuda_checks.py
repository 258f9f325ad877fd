"""What must hold on a CUDA device and cannot be tested without one; called by `on_cuda.py`.

A check that raises is a result like any other: its message stands in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cuda_search import captured
from side_by_side import Page
from torch import Tensor

from vqkit.quantizers import PRESETS
from vqkit.quantizers.methods import example
from vqkit.search import code_counts_and_sums, nearest
from vqkit.search.inputs import METRICS

SHAPES = ((700, 300, 4), (700, 5000, 16), (700, 300, 17), (300, 5000, 256), (300, 700, 768))


def outcome(work: Callable[[], object]) -> str:
    """Run one check: `ok`, `FAILED`, or what it raised."""
    try:
        result = work()
    except Exception as error:  # the table is the report
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return "ok" if result is True else "FAILED"


def pair(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw vectors (N, D) and codes (K, D)."""
    num_vectors, num_codes, dim = shape
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_vectors, dim, generator=generator)
    return vectors.to(device), torch.randn(num_codes, dim, generator=generator).to(device)


def search_checks(device: torch.device) -> dict[str, Callable[[], object]]:
    """Compare the kernels with the blocked search, eagerly, captured and compiled."""
    checks: dict[str, Callable[[], object]] = {}
    mode = {"backend": "inductor" if device.type == "cuda" else "aot_eager", "fullgraph": True}
    for shape in SHAPES:
        vectors, codes = pair(shape, device)
        for metric in METRICS:

            def close(v: Tensor = vectors, c: Tensor = codes, m: str = metric) -> bool:
                ours, other = nearest(v, c, m), nearest(v, c, m, backend="torch")
                allowed = 0 if c.shape[1] > 16 else 2
                return int((ours != other).sum()) <= allowed

            checks[f"search {shape} {metric}: ids of backend torch"] = close

        def halves(v: Tensor = vectors, c: Tensor = codes) -> bool:
            return torch.equal(nearest(v, c)[100:], nearest(v[100:], c))

        def groups(v: Tensor = vectors, c: Tensor = codes) -> bool:
            both = nearest(torch.stack([v, -v]), torch.stack([c, c]))
            return torch.equal(both[0], nearest(v, c)) and torch.equal(both[1], nearest(-v, c))

        def equal_codes(v: Tensor = vectors, c: Tensor = codes) -> bool:
            twice = torch.cat([c, c])
            return torch.equal(nearest(v, twice), nearest(v, c))

        def compiled(v: Tensor = vectors, c: Tensor = codes) -> bool:
            work = torch.compile(lambda z, k: k[nearest(z * 2, k)], **mode)
            return torch.equal(work(v, c), c[nearest(v * 2, c)])

        checks[f"search {shape}: ids do not depend on the batch"] = halves
        checks[f"search {shape}: groups"] = groups
        checks[f"search {shape}: lowest id among equal codes"] = equal_codes
        checks[f"search {shape}: torch.compile, fullgraph"] = compiled
        if device.type == "cuda":

            def graph(v: Tensor = vectors, c: Tensor = codes) -> bool:
                replay, ids = captured(lambda: nearest(v, c))
                replay()
                return torch.equal(ids, nearest(v, c))

            checks[f"search {shape}: CUDA graph"] = graph
    return checks


def statistics_checks(device: torch.device) -> dict[str, Callable[[], object]]:
    """Counts and sums: the same bits twice and after a permutation, and near float64."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(100000, 32, generator=generator).to(device)
    ids = torch.randint(777, (100000,), generator=generator).to(device)

    def repeats() -> bool:
        first, again = (code_counts_and_sums(vectors, ids, 777) for _ in range(2))
        return all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def right() -> bool:
        sums = torch.zeros(777, 32, dtype=torch.float64, device=device)
        sums.index_add_(0, ids, vectors.double())
        return torch.allclose(code_counts_and_sums(vectors, ids, 777)[1].double(), sums, atol=1e-3)

    return {"counts and sums: the same bits twice": repeats, "counts and sums: right": right}


def step_checks(device: torch.device) -> dict[str, Callable[[], object]]:
    """One training step of every preset: captured in a CUDA graph, and compiled."""
    checks: dict[str, Callable[[], object]] = {}
    for name in PRESETS:

        def made(name: str = name) -> tuple[Any, Tensor]:
            torch.manual_seed(0)
            quantizer = PRESETS[name](**example(name)).to(device).train()
            z = torch.randn(4, quantizer.channels, 8, 8, device=device, requires_grad=True)
            return quantizer, z

        def compiled(made: Callable[[], tuple[Any, Tensor]] = made) -> bool:
            quantizer, z = made()
            twin, _ = made()
            twin.load_state_dict(quantizer.state_dict())
            backend = "inductor" if device.type == "cuda" else "aot_eager"
            out = torch.compile(quantizer, backend=backend)(z)
            (out.loss + out.z_q.square().mean()).backward()
            return torch.equal(out.ids, twin(z.detach()).ids) and bool(z.grad.isfinite().all())

        checks[f"{name}: compiled training step"] = compiled
        if device.type != "cuda":
            continue

        def graph(made: Callable[[], tuple[Any, Tensor]] = made) -> bool:
            quantizer, z = made()

            def step() -> Tensor:
                z.grad = None
                out = quantizer(z)
                (out.loss + out.z_q.square().mean()).backward()
                return out.ids

            replay, ids = captured(step)
            replay()
            torch.cuda.synchronize()
            return bool((ids >= 0).all()) and bool(z.grad.isfinite().all())

        checks[f"{name}: training step in a CUDA graph"] = graph
    return checks


def checks_part(page: Page, device: torch.device) -> dict[str, str]:
    """Run all checks and put the table on the page."""
    checks = {**search_checks(device), **statistics_checks(device), **step_checks(device)}
    results = {name: outcome(work) for name, work in checks.items()}
    good = sum(result == "ok" for result in results.values())
    page.text("## Checks")
    page.text(f"{good} of {len(results)} hold; those that do not:")
    page.table(["check", "result"], [item for item in results.items() if item[1] != "ok"])
    return results
