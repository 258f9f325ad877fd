"""Search never holds vectors x codes: it runs under a memory limit that a naive search breaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqkit.search import fused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="only Linux limits the data of a process"
    ),
]

LIMIT = 64
"""MiB that a search may need beyond its arguments and ids (`architecture`, section 4)."""
COPY = 2 * 100_000 * 256 / 2**20
"""MiB of 100,000 codes of 256 dimensions in bf16, which may come on top."""

MEASURE = """
import ctypes, gc, json, os, resource, torch
torch.set_num_threads(1)
from vqkit.search import nearest, nearest_k, nearest_with_scores, sample_softmax_rows
from vqkit.search import code_counts_and_sums

def now():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmData")))

def run(setup, work, limit):
    torch.manual_seed(0)
    exec(setup, globals())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not serve the search unseen
    most = now() + int(limit * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        eval(work)
    except (RuntimeError, MemoryError) as error:
        return str(error)[:200]
    return "done"

# libraries load and take their buffers outside the measure
z, c = torch.randn(600, 64), torch.randn(4096, 64)
for backend in BACKENDS:
    short = (z[:, :8].contiguous(), c[:, :8].contiguous()) if backend == "faiss" else (z, c)
    nearest(*short, backend=backend)
nearest_k(z, c, 3), torch.cdist(z, c).argmin(1)
for name, setup, work, limit in WORKS:
    out, into = os.pipe()
    child = os.fork()  # every work starts from the same memory
    if child == 0:
        os.write(into, json.dumps(run(setup, work, limit)).encode())
        os._exit(0)
    os.close(into)
    answer = os.read(out, 4096)
    os.close(out)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([name, json.loads(answer) if answer else f"died: {status}"]))
"""

FEW_DIMS = "z, c = torch.randn({n}, 8), torch.randn(100000, 8)"
MANY_DIMS = "z, c = torch.randn({n}, 256), torch.randn(100000, 256)"
WORKS = {
    # name: (arguments, search, MiB allowed); all scores would take 24 GiB, 391 and 195 MiB
    "torch, 8 dimensions": (FEW_DIMS.format(n=8192), "nearest(z, c, backend='torch')", LIMIT),
    "bf16, 8 dimensions": (FEW_DIMS.format(n=8192), "nearest(z, c, backend='bf16')", LIMIT),
    "torch, 256 dimensions": (
        MANY_DIMS.format(n=700),
        "nearest(z, c, backend='torch')",
        LIMIT + COPY,
    ),
    "bf16, 256 dimensions": (
        MANY_DIMS.format(n=1024),
        "nearest(z, c, backend='bf16')",
        LIMIT + COPY,
    ),
    "codes in float16": (
        "z, c = torch.randn(512, 256), torch.randn(100000, 256, dtype=torch.float16)",
        "nearest(z, c)",
        LIMIT + COPY,
    ),
    "codes in bfloat16, cosine": (
        "z, c = torch.randn(256, 256), torch.randn(100000, 256, dtype=torch.bfloat16)",
        "nearest(z, c, 'cosine')",
        LIMIT + COPY,
    ),
    "codes in float64": (
        "z, c = torch.randn(512, 256), torch.randn(100000, 256, dtype=torch.float64)",
        "nearest(z, c, backend='torch')",
        LIMIT,
    ),
    "transposed codes": (
        "z, c = torch.randn(256, 256), torch.randn(256, 100000).T",
        "nearest(z, c, 'dot', backend='torch')",
        LIMIT + COPY,
    ),
    "groups": (
        "z, c = torch.randn(4, 256, 64), torch.randn(4, 50000, 64)",
        "nearest_with_scores(z, c)",
        LIMIT,
    ),
    "a third of the codes are copies": (
        MANY_DIMS.format(n=128) + "; c[::3] = 0; z *= 1e-3",
        "nearest(z, c, backend='bf16')",
        LIMIT + COPY,
    ),
    "one code far away": (
        MANY_DIMS.format(n=128) + "; c[5] *= 1e5",
        "nearest(z, c, backend='torch')",
        LIMIT,
    ),
    "all codes tie": (
        # between the long codes no float32 score can tell the short ones apart
        "z, c = torch.randn(256, 8), torch.randn(8192, 8) * 1e-6; c[::2] += 1e4; c[1::2] -= 1e4",
        "nearest(z, c, backend='torch')",
        LIMIT,
    ),
    "many vectors, few codes": (
        "z, c = torch.randn(2**20, 4), torch.randn(100, 4)",
        "nearest(z, c, backend='torch')",
        LIMIT,
    ),
    "closest anchor": (
        "c, z = torch.randn(1000, 8), torch.randn(65536, 8)",
        "nearest_with_scores(c, z, backend='torch')",
        LIMIT,
    ),
    "k nearest": (
        "z, c = torch.randn(512, 8), torch.randn(100000, 8)",
        "nearest_k(z, c, 8)",
        LIMIT,
    ),
    "k nearest, nearly all tie": (
        "z, c = torch.randn(1024, 64), torch.randn(4096, 64) * 1e-6; c[::2] += 1e4",
        "nearest_k(z, c, 17)",
        LIMIT,
    ),
    "draws": (
        "z, c, u = torch.randn(65536, 8), torch.randn(600, 8), torch.rand(600)",
        "sample_softmax_rows(z, c, u)",  # 300 MiB in float64
        LIMIT,
    ),
    "counts and sums": (
        "z, i = torch.randn(2**20, 8, dtype=torch.float16), torch.randint(1000, (2**20,))",
        "code_counts_and_sums(z, i, 1000)",
        LIMIT,
    ),
}
FAISS = {
    "faiss": (FEW_DIMS.format(n=65536), "nearest(z, c, backend='faiss')", LIMIT),
    "faiss, cosine in float16": (
        "z, c = torch.randn(4096, 8).half(), torch.randn(100000, 8).half()",
        "nearest(z, c, 'cosine', backend='faiss')",
        LIMIT,
    ),
}
WORKS |= FAISS if fused.installed() else {}
NAIVE = {
    "naive, 8 dimensions": (FEW_DIMS.format(n=1024), "torch.cdist(z, c).argmin(1)", LIMIT),
    "naive, 256 dimensions": (MANY_DIMS.format(n=512), "torch.cdist(z, c).argmin(1)", LIMIT + COPY),
}


WHOLE = {
    f"{backend}, 65,536 vectors": (
        FEW_DIMS.format(n=65536),
        f"nearest(z, c, backend='{backend}')",
        LIMIT,
    )
    for backend in ("torch", "bf16")
}


SCATTERING = {
    "codes in float64",
    "transposed codes",
    "groups",
    "a third of the codes are copies",
    "all codes tie",
    "k nearest, nearly all tie",
}
"""Works beyond what the search promises, which free and take blocks of ever other sizes. glibc
raises the size from which it maps memory up to 32 MiB, and keeps what lies below a living block:
how much depends on the machine. For these it maps from 128 KiB on, so that the limit is about what
the search asks for."""
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


def run_under_limits(works, **settings):
    """What became of every work under its limit: "done", or the error."""
    backends = ["torch", "bf16", *(["faiss"] if fused.installed() else [])]
    listed = [[name, *work] for name, work in works.items()]
    code = f"BACKENDS = {backends}\nWORKS = {listed}\n{MEASURE}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def outcome():
    """All works, one after the other, each from the same start."""
    plain = {name: work for name, work in (WORKS | NAIVE).items() if name not in SCATTERING}
    scattering = {name: WORKS[name] for name in SCATTERING}
    return run_under_limits(plain) | run_under_limits(scattering, **MAPPED)


@pytest.mark.parametrize("name", WORKS)
def test_a_search_runs_under_the_limit(outcome, name):
    assert outcome[name] == "done"


@pytest.mark.parametrize("name", NAIVE)
def test_the_limit_stops_a_naive_search(outcome, name):
    assert "allocate" in outcome[name]


@pytest.mark.soak
def test_memory_does_not_grow_with_the_vectors():
    assert set(run_under_limits(WHOLE).values()) == {"done"}
