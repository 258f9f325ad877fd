"""What the benchmarks share: alternating timings, the machine's limits, and the page they write."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "faiss-cpu", "scipy", "scikit-learn", "vector-quantize-pytorch")
PAIRS = 11


def synchronise() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def alternate(works: dict[str, Callable[[], object]], pairs: int = PAIRS) -> dict[str, list[float]]:
    """Call all works in turn, `pairs` times after one warm-up each -> seconds of every call.

    What disturbs the machine for a while then disturbs all of them, and pairs stay comparable. The
    order turns around in every round: whoever comes second finds some of the data in cache.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(pairs):
        for name in list(works) if turn % 2 == 0 else list(works)[::-1]:
            times[name].append(seconds_of(works[name]))
    return times


def median(times: list[float]) -> float:
    """Return the median, in seconds."""
    return statistics.median(times)


def ratio(times: dict[str, list[float]], ours: str, rival: str) -> float:
    """Return the median over pairs of (time of ours / time of the rival)."""
    return statistics.median(a / b for a, b in zip(times[ours], times[rival], strict=True))


@dataclass(frozen=True)
class Limits:
    """What the machine does at best, measured in the same run."""

    float32_flops: float
    """Operations a second of a large float32 matrix product."""
    bf16_flops: float
    bytes_per_second: float
    """Read and written by adding two large float32 vectors."""

    def __str__(self) -> str:
        return (
            f"matrix products {self.float32_flops / 1e9:,.0f} GFLOP/s in float32 and "
            f"{self.bf16_flops / 1e9:,.0f} in bf16, memory {self.bytes_per_second / 1e9:,.1f} GB/s"
        )


def limits(device: str | torch.device = "cpu", size: int | None = None) -> Limits:
    """Measure the matrix-product rates and the memory bandwidth of `device` (best of 7)."""
    size = size or (2048 if torch.device(device).type == "cpu" else 8192)
    a = torch.randn(size, size, device=device)
    half = a.bfloat16()
    out, half_out = torch.empty_like(a), torch.empty_like(half)
    long = torch.randn(2**25, device=device)
    total = torch.empty_like(long)
    works: dict[str, Callable[[], object]] = {
        "float32": lambda: torch.mm(a, a, out=out),
        "bf16": lambda: torch.mm(half, half, out=half_out),
        "memory": lambda: torch.add(long, 1.0, out=total),
    }
    best = {name: min(times) for name, times in alternate(works, 7).items()}
    return Limits(
        2 * size**3 / best["float32"], 2 * size**3 / best["bf16"], 8 * len(long) / best["memory"]
    )


def machine() -> str:
    """Name processor, cores, threads and versions."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    processor = names[0] if names else platform.processor()
    parts = [
        f"{processor}, {os.cpu_count()} cores ({', '.join(units) or 'no vector units listed'})",
        f"{torch.get_num_threads()} threads",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"Python {platform.python_version()}")
    for package in PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def revision() -> str:
    """Name the git revision, and whether files differ from it; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", *command], cwd=here, check=True, capture_output=True, text=True)
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", ":/src"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found[0].stdout.strip() + (" with changes" if found[1].stdout.strip() else "")


class Page:
    """A dated result page in markdown; what is added is printed at once."""

    def __init__(self, title: str, about: str) -> None:
        words = [_without_path(word) for word in sys.argv[1:]]
        command = " ".join(["python", Path(sys.argv[0]).name, *map(shlex.quote, words)])
        self.parts: list[str] = []
        self.text(f"# {title}")
        self.text(about.strip())
        self.text(
            f"Command: `{command}` in `benchmarks/`  \nMachine: {machine()}  \n"
            f"Revision: {revision()}  \nDate: {datetime.date.today().isoformat()}"
        )

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(text + "\n")
        print(text + "\n", flush=True)

    def table(self, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
        """Add a table; cells are printed as they are, numbers with three digits."""
        head = list(header)
        lines = [head, ["---"] * len(head), *map(list, rows)]
        self.text("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))

    def write(self, path: Path) -> None:
        """Write the page beside and rename it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        beside.write_text("\n".join(self.parts), encoding="utf-8")
        beside.replace(path)


def _without_path(word: str) -> str:
    """Leave of an absolute path its last part: where things lie on a machine says nothing."""
    return Path(word).name.upper() if Path(word).is_absolute() else word


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
