"""Search never holds vectors x codes: the peak of a process's memory, measured in a fresh one."""

import json
import os
import subprocess
import sys

import pytest

from vqkit.search import fused

pytest.importorskip("resource", reason="memory is measured on Unix")

LIMIT = 64
"""MiB that a search may need beyond its arguments (`architecture`, section 4)."""

MEASURE = """
import json, resource, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from vqkit.search import nearest, nearest_k, sample_softmax_rows
torch.manual_seed(0)

def peak():
    # Linux hands ru_maxrss down to a child, which would hide everything below the parent's size.
    if Path("/proc/self/status").exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

z, c = torch.randn(65536, 8), torch.randn(100000, 8)
z_wide, c_wide = torch.randn(4096, 256), torch.randn(8192, 256)
tied = torch.cat([c[:16384] * 1e-12, c[:1]])  # one long code makes the bound coarse for all
uniforms = torch.rand(600)
for backend in {backends}:
    nearest(z[:9], c[:9], backend=backend)  # libraries load outside the measure
nearest(z_wide[:9], c_wide[:600])
before = peak()
rise = {{}}
for name, work in {works}:
    eval(work)
    rise[name] = (peak() - before) / 2**20
json.dump(rise, sys.stdout)
"""

FAISS = {"all by faiss": "nearest(z, c, backend='faiss')"}  # all scores: 24 GiB
WORKS = {
    "many codes": "nearest(z[:1024], c, backend='torch')",  # 391 MiB
    "many vectors": "nearest(z, c[:1000], backend='torch')",  # 250 MiB
    "closest anchor": "nearest(c[:1000], z, backend='torch')",  # 250 MiB
    "k nearest": "nearest_k(z[:512], c, 8)",  # 195 MiB
    "draws": "sample_softmax_rows(z, c[:600], uniforms)",  # 300 MiB in float64
    "many dimensions": "nearest(z_wide, c_wide)",  # 128 MiB
    "near ties only": "nearest(z[:512], tied, backend='torch')",  # 8 million candidates
}
NAIVE = {"naive": "torch.cdist(z[:4096], c[:10000]).argmin(1)"}  # 156 MiB


@pytest.fixture(scope="module")
def rise():
    """MiB by which the peak stands above the arguments after each work, one after the other."""
    works = {**(FAISS if fused.installed() else {}), **WORKS, **NAIVE}
    backends = ["torch", *(["faiss"] if fused.installed() else [])]
    code = MEASURE.format(works=list(works.items()), backends=backends)
    # glibc then returns what is freed, so that one work does not pay for the holes of another
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not fused.installed(), reason="faiss is optional")
def test_faiss_with_65536_vectors_and_100000_codes(rise):
    assert rise["all by faiss"] < LIMIT


@pytest.mark.parametrize("name", WORKS)
def test_torch_holds_blocks_only(rise, name):
    assert rise[name] < LIMIT


def test_the_measure_sees_a_matrix_of_all_scores(rise):
    assert rise["naive"] > 140
