"""What a step keeps and needs: no vectors × codes but where the definition asks for them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vqkit.quantizers import PRESETS, gumbel, lfq, sq_vae

K = 2048
ARGUMENTS = {
    "vqgan_lc": {"features": torch.zeros(K, 12), "dim": 4, "in_channels": None},
    "vqgan_fc": {"num_codes": K, "dim": 4, "in_channels": None},
    "vit_vqgan": {"num_codes": K, "dim": 4, "in_channels": None},
    "pq": {"num_codes": K, "dim": 4, "num_segments": 2},
    "looc": {"num_codes": K, "dim": 4, "num_segments": 2},
    "movq_codes": {"num_codes": K, "dim": 4, "num_segments": 2},
    # The transformer's attention holds codes × codes, whatever the number of vectors.
    "dual": {"num_codes": K, "dim": 4, "refiner": "linear", "local_update": "cvq"},
    "fsq": {"levels": (8, 8, 8, 4)},
    "lfq": {"dim": 11, "joint_bits": 11},
}
VARIANTS = {
    **{name: (name, ARGUMENTS.get(name, {"num_codes": K, "dim": 4})) for name in PRESETS},
    "cvq contrastive": ("cvq", {"num_codes": K, "dim": 4, "contrastive": 1.0}),
    "cvq probrandom": ("cvq", {"num_codes": K, "dim": 4, "anchors": "probrandom"}),
    "sq_vae hard": ("sq_vae", {"num_codes": K, "dim": 4, "draw": "hard"}),
    "rq restart": ("rq", {"num_codes": K, "dim": 4, "restart_below": 1.0}),
    "pq cvq": ("pq", {**ARGUMENTS["pq"], "update": "cvq"}),
}


def kept_scores(quantizer, z, smallest):
    """Bytes of the tensors of at least `smallest` numbers that a step keeps for its backward."""
    kept = {}

    def pack(tensor):
        if tensor.numel() >= smallest:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = quantizer(z)
        loss = out.loss + out.z_q.square().sum()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_kept_only_where_they_are_predicted(name):
    preset, arguments = VARIANTS[name]
    torch.manual_seed(0)
    quantizer = PRESETS[preset](**arguments).train()
    z = torch.randn(2, quantizer.channels, 12, 12, requires_grad=True)
    kept = kept_scores(quantizer, z, smallest=288 * K // 4)
    predicted = quantizer.describe(12, 12, batch_size=2).score_bytes
    assert kept == predicted
    assert bool(predicted) == (preset in ("gumbel", "sq_vae"))


@pytest.mark.parametrize("make", [gumbel, sq_vae], ids=["gumbel", "sq_vae"])
def test_score_memory_grows_with_vectors_and_codes(make):
    small = make(64, 8).describe(4, 4).score_bytes
    assert small == 2 * 4 * 16 * 64
    assert make(128, 8).describe(4, 4, batch_size=3).score_bytes == 6 * small


def test_the_joint_entropy_needs_no_scores():
    assert lfq(9).describe(6, 6, batch_size=2).score_bytes == 0


MEASURE = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from vqkit.quantizers import PRESETS
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
name, training = sys.argv[1], sys.argv[2] == "train"
def step(quantizer, z):
    with torch.set_grad_enabled(training):
        out = quantizer(z)
        if training:
            (out.loss + out.z_q.sum()).backward()
quantizers = [PRESETS[name](k, 16).train(training) for k in (8192, 512)]
z = torch.randn(4, 16, 32, 32, requires_grad=training)
step(quantizers[1], z[:1, :, :2].detach().requires_grad_(training))  # libraries load
before = peak()
step(quantizers[0], z)
described = quantizers[0].describe(32, 32, batch_size=4)
json.dump([peak() - before, described.score_bytes, described.block_bytes], sys.stdout)
"""


def measured(name, mode):
    """Bytes by which a process's peak rises in one step, and what was predicted."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak of a process is read from Linux")
    # glibc then returns what is freed, so that holes are not counted
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, name, mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gumbel", "sq_vae"])
def test_a_training_step_needs_what_was_predicted(name):
    """4,096 vectors and 8,192 codes: 128 MiB a tensor of scores."""
    rise, scores, blocks = measured(name, "train")
    assert scores == 2 * 4096 * 8192 * 4
    assert 0.98 * scores < rise < scores + blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gumbel", "sq_vae", "vq_vae"])
def test_evaluation_never_holds_the_scores(name):
    rise, _, blocks = measured(name, "evaluate")
    assert rise < blocks
