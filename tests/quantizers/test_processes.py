"""One large batch, its parts on two processes, or its parts one after another: the same codes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quantizer_cases import CASES
from two_processes import train

# A mean over the batch inside a logarithm, and pairs across the batch: the parts are not the whole.
# LFQ's mean is joined over processes (BitEntropy), but cannot be over micro-batches.
ACROSS_THE_BATCH = {"cvq contrastive"}
ACROSS_MICRO_BATCHES = {"cvq contrastive", "lfq", "lfq bit by bit"}


@pytest.fixture(scope="module")
def rank_states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).parents[1] / "two_processes.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(port), script, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, foreign, rank_states):
    first, second = (states[f"{name}|{foreign}"] for states in rank_states)
    for key in first:
        assert torch.equal(first[key], second[key]), key
    if name in ACROSS_THE_BATCH:
        return
    alone = train(name, foreign=foreign)
    for key in alone:
        torch.testing.assert_close(first[key], alone[key], rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", sorted(set(CASES) - ACROSS_MICRO_BATCHES))
def test_accumulated_gradients_equal_the_large_batch(name):
    whole = train(name, foreign=False)
    parts = train(name, foreign=False, accumulate=2)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-5, atol=1e-5, msg=key)
