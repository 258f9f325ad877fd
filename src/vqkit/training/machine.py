"""Where a run runs: the Accelerate engine, and a record of software and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vqkit

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator() -> Accelerator:
    """Return Accelerate's engine for this process: one device, or one of several by `torchrun`.

    Autocast is ours, not Accelerate's: its precision is one setting for the whole life of a
    process, so that two runs of different precision could not follow one another.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise ValueError("training needs accelerate: pip install 'vqkit[train]'") from error
    cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    return Accelerator(mixed_precision="no", cpu=cpu)


@contextmanager
def reproducible(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Ask CUDA for deterministic kernels within the block; a CPU is deterministic as it is."""
    if device.type != "cuda" or not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def describe_machine(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Return versions, git revision and hardware as JSON values, for every result of a run."""
    versions = {"python": platform.python_version(), "vqkit": vqkit.__version__}
    for package in ("torch", "numpy", "accelerate", "safetensors", "faiss-cpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "num_processes": num_processes,
        "system": platform.platform(),
    }
    return {"versions": versions, "git_revision": git_revision(), "hardware": hardware}


def command_line() -> list[str]:
    """Return the words that started this process; of the program its name, not its place."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return [name, *sys.argv[1:]]


def utc_now() -> str:
    """Return the time in UTC, to the second: `2026-01-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_revision() -> str | None:
    """Return the commit of this source tree, with "-dirty" if changed; None if it is installed."""
    folder = Path(__file__).parent
    if not _git(folder, "ls-files", Path(__file__).name):
        return None  # inside somebody else's repository, or in none
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
