"""What every test stands on: one thread, no network, fixed seeds."""

import os

# Before anything imports torch or huggingface_hub. One thread per process: the test processes
# already fill the cores, and sums come out in one order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import socket

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches beyond this machine fails; processes that talk to each other may."""
    connect = socket.socket.connect

    def guarded(self, address):
        remote = self.family in (socket.AF_INET, socket.AF_INET6)
        if remote and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test must not use the network, but connects to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Code that draws from torch's global generator draws the same in every order of tests."""
    torch.manual_seed(0)


@pytest.fixture
def generator():
    """A seeded source of random numbers for one test."""
    return torch.Generator().manual_seed(0)
