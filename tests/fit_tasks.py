"""A tiny task for the tests of `fit`; run as a script it trains it, and kills itself if told to."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from vqkit.config import LogConfig, OptimConfig
from vqkit.models.files import write_model
from vqkit.quantizers import ranks
from vqkit.training.fit import fit

STEPS = 12


class TinyTask:
    """Which of four classes do eight tokens of five codes belong to: their sum modulo four."""

    def __init__(self, *, seed=0, size=8, dropout=0.2, noise=0.1, fingerprint="tokens"):
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Embedding(5, 6), nn.Flatten(), nn.Dropout(dropout), nn.Linear(48, 4)
        )
        self.seed, self.size, self.noise, self.fingerprint = seed, size, noise, fingerprint

    def batch(self, step):
        source = torch.Generator().manual_seed(1000 * self.seed + step)
        ids = torch.randint(5, (self.size, 8), generator=source)
        share = slice(
            *(torch.tensor([0, 1]) + ranks.rank())
            .mul(self.size)
            .floor_divide(ranks.world_size())
            .tolist()
        )
        return {"ids": ids[share], "labels": ids.sum(1)[share] % 4}

    def losses(self, batch, generator):
        logits = self.model(batch["ids"])
        noisy = logits + self.noise * torch.randn(logits.shape, generator=generator)
        loss = F.cross_entropy(noisy.float(), batch["labels"])
        right = (logits.argmax(1) == batch["labels"]).float().mean()
        return {"loss": loss, "accuracy": right}

    def validate(self, model):
        assert not model.training
        assert not torch.is_grad_enabled()
        batch = self.batch(10_000)
        right = model(batch["ids"]).argmax(1) == batch["labels"]
        return {"top1": float(right.float().mean())}

    def save(self, model, folder):
        write_model(folder, {"model": "tiny"}, model.state_dict())

    def facts(self):
        return {"fingerprint": self.fingerprint}


def run_tiny(folder, task=None, *, settings=None, log=None, completed=dict, **optim):
    """Twelve steps of eight, a checkpoint every four, with an average of the weights."""
    optim = {"lr": 1e-2, "weight_ema": 0.9, "clip_norm": 1.0, "weight_decay": 0.1} | optim
    return fit(
        task or TinyTask(),
        name="tiny",
        folder=folder,
        product="classifier",
        settings={"task": "tiny"} if settings is None else settings,
        optim=OptimConfig(**{"num_steps": STEPS, "batch_size": 8} | optim),
        log=log or LogConfig(every=1, checkpoint_every=4, keep=10),
        seed=0,
        free=("place:",),
        completed=completed,
        progress=False,
    )


def main(folder, kill_at="0"):
    """Train; kill this process in the middle of writing line `kill_at` if it is above 0."""
    from vqkit.training import log

    torch.set_num_threads(1)
    real = log.RunLog.write

    def write(self, line):
        real(self, line)
        if line["step"] == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    log.RunLog.write = write
    task = TinyTask(dropout=0.0, noise=0.0) if "RANK" in os.environ else None
    run_tiny(Path(folder), task, **({"eps": 1e-3} if task else {}))


if __name__ == "__main__":
    main(*sys.argv[1:])
