"""Compile every CUDA kernel of the search for a GPU that need not be there.

    python benchmarks/cuda_compile.py --keep FOLDER [--capability 90]

Runs the host side of the search on CPU tensors of many shapes, types and metrics; instead of being
launched, each kernel is compiled to machine code for the capability. Prints registers, spilled
bytes (`stack`) and shared memory of every variant; fails if one does not compile or does not fit.
Needs `pip install triton` (3.6 or newer), no GPU. Do not set TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from vqkit.search import cuda, cuda_frame

SHAPES = (
    (1, 300, 1000, 1),
    (1, 300, 1000, 4),
    (2, 65536, 256, 4),
    (1, 4096, 16384, 8),
    (1, 256, 262144, 8),
    (1, 300, 1000, 13),
    (1, 300, 1000, 16),
    (1, 300, 1000, 17),
    (1, 300, 1000, 64),
    (3, 300, 1000, 100),
    (1, 4096, 16384, 256),
    (1, 300, 1000, 300),
    (1, 4096, 100000, 768),
)
"""(G, N, K, D)."""
CASES = (
    (torch.float32, "l2"),
    (torch.bfloat16, "l2"),
    (torch.float16, "dot"),
    (torch.float32, "cosine"),
    (torch.float64, "l2"),
    (torch.float64, "cosine"),
)
TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
SPILLED = 64
"""Bytes of stack that are no loss: a few values around a loop."""
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one program can have, by capability."""


def argument_type(value: object) -> str:
    """Name a launch argument as the compiler does; ones are compiled in."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int)
    if value == 1:
        return "constexpr"
    return "i32" if abs(value) < 2**31 else "i64"


def source_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict]:
    """Specialise a kernel as a launch with these arguments would -> (source, options)."""
    names = list(kernel.arg_names)
    values = dict(zip(names, args, strict=False))
    values.update({name: value for name, value in kwargs.items() if name in names})
    fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        kind = "constexpr" if name in fixed else argument_type(value)
        signature[name] = kind
        if kind == "constexpr":
            constants[name] = value
        elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return source, options


def resources(cubin: bytes, folder: Path) -> tuple[int, int]:
    """Read (registers, bytes of stack) of machine code."""
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run(
        [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


@contextmanager
def compiling(target: GPUTarget, folder: Path, rows: dict[tuple, tuple]) -> Iterator[None]:
    """Make launches compile for `target` and note what came out in `rows`."""
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
        source, options = source_of(self, args, kwargs)
        key = (self.__name__, source.hash(), *options.values())
        if key in rows:
            return
        built = triton.compile(source, target=target, options=options)
        registers, stack = resources(built.asm["cubin"], folder)
        label = f"{len(rows):03d}_{self.__name__}"
        for kind in ("ttgir", "ptx", "cubin"):
            text = built.asm[kind]
            (folder / f"{label}.{kind}").write_bytes(text if kind == "cubin" else text.encode())
        shared = built.metadata.shared
        rows[key] = (label, registers, stack, shared, built.metadata.num_warps)
        print(*rows[key], flush=True)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = launch


def main() -> None:
    """Compile all cases and fail where one does not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90, choices=sorted(SHARED))
    parser.add_argument("--keep", type=Path, required=True, help="folder of the compiled code")
    parser.add_argument("--dims", type=int, nargs="*", default=None, help="only these dimensions")
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    if cuda.interpreted():
        sys.exit("TRITON_INTERPRET=1: nothing is compiled then; unset it")
    shared = SHARED[arguments.capability] * 1024
    cuda_frame.limits = lambda device: cuda_frame.Limits(132, shared)  # type: ignore[assignment]
    rows: dict[tuple, tuple] = {}
    print(f"triton {triton.__version__}; kernel, registers, stack, shared bytes, warps")
    with compiling(GPUTarget("cuda", arguments.capability, 32), arguments.keep, rows):
        for groups, num_vectors, num_codes, dim in SHAPES:
            if arguments.dims and dim not in arguments.dims:
                continue
            for dtype, metric in CASES:
                print("#", groups, num_vectors, num_codes, dim, dtype, metric, flush=True)
                vectors = torch.zeros(groups, num_vectors, dim, dtype=dtype)
                codes = torch.zeros(groups, num_codes, dim, dtype=dtype)
                cuda._nearest(vectors, codes, metric)
    wrong = [row[0] for row in rows.values() if row[3] > shared or row[2] > SPILLED]
    print(f"{len(rows)} variants compiled")
    if wrong:
        sys.exit(f"too many registers or too much shared memory: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
