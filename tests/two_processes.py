"""Run by `test_processes.py` under torchrun: train every case, save each rank's state."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent))
from quantizer_cases import CASES, make


class Model(nn.Module):
    """An encoder of one layer before the quantizer, as in somebody's own model."""

    def __init__(self, name):
        super().__init__()
        self.quantizer = make(name)
        self.encoder = nn.Conv2d(3, self.quantizer.channels, 1)

    def forward(self, images):
        out = self.quantizer(self.encoder(images))
        return out.z_q.square().mean() + out.loss


def batches(count, size):
    source = torch.Generator().manual_seed(11)
    return [torch.randn(size, 3, 4, 5, generator=source) for _ in range(count)]


def train(name, *, steps=3, size=4, rank=0, world=1, accumulate=1, foreign=True):
    """Train a case on this process's share of every batch; foreign loops know no step()."""
    model = Model(name)
    model.quantizer.auto_step = foreign
    model.quantizer.set_micro_batches(accumulate)
    wrapped = model
    if world > 1:
        # What a foreign loop has by default is broadcast_buffers=True; our own loop turns it off.
        wrapped = DistributedDataParallel(
            model, broadcast_buffers=foreign, find_unused_parameters=True
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for images in batches(steps, size):
        optimizer.zero_grad()
        share = images.chunk(world)[rank]
        for part in share.chunk(accumulate):
            (wrapped(part) / accumulate).backward()
        optimizer.step()
        if not foreign:
            model.quantizer.step()
    model.quantizer.step()  # what a foreign loop has left pending
    return model.state_dict()


def main(folder):
    """Train all cases with and without step() and save this rank's states."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    states = {}
    for name in CASES:
        for foreign in (True, False):
            states[f"{name}|{foreign}"] = train(name, rank=rank, world=world, foreign=foreign)
    torch.save(states, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
