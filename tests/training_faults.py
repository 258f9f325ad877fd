"""Run under torchrun: one fault after another, each in a run of its own, for one of two processes.

`python -m torch.distributed.run ... training_faults.py FOLDER` trains the settings in FOLDER/*.json
into FOLDER/<name> and writes the exit codes of both processes, and what they said, beside.
"""

import errno
import json
import os
import signal
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch

from vqkit.cli import main
from vqkit.training import checkpoint, validation
from vqkit.training.feed import Feed
from vqkit.training.trainer import Trainer

RANK = int(os.environ.get("RANK", 0))


def signal_in_a_step(patch, number):
    real = Trainer.step

    def step(self, batch):
        if self.done == 4 and RANK == 1:
            os.kill(os.getpid(), number)
        return real(self, batch)

    patch.setattr(Trainer, "step", step)


def signal_in_a_validation(patch):
    real = validation._Sums.add

    def add(self, *args):
        real(self, *args)
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(validation._Sums, "add", add)


def unreadable(patch):
    real, steps = Feed.next, []

    def following(self):
        steps.append(1)
        if RANK == 1 and len(steps) == 6:
            self.error = OSError("the disk is away")
        return real(self)

    patch.setattr(Feed, "next", following)


def unreadable_validation(patch):
    def measure(self, *args):
        raise OSError("the disk is away")

    if RANK == 1:
        patch.setattr(validation.Validator, "_measure", measure)


def full_disk(patch, *steps):
    real = checkpoint.write_whole

    def write(path, content):
        if any(path.parent.name.endswith(f"{step:08}") for step in steps):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    patch.setattr(checkpoint, "write_whole", write)


FAULTS = {
    "none": lambda patch: None,
    "sigterm": lambda patch: signal_in_a_step(patch, signal.SIGTERM),
    "sigint": lambda patch: signal_in_a_step(patch, signal.SIGINT),
    "sigterm_in_validation": signal_in_a_validation,
    "unreadable": unreadable,
    "unreadable_validation": unreadable_validation,
    "full_once": lambda patch: full_disk(patch, 8),
    "full_for_good": lambda patch: full_disk(patch, 4, 8, 12),
}


def run_all(folder):
    torch.set_num_threads(1)
    for name, fault in FAULTS.items():
        words = ["train", "--config", str(folder / "settings.json"), "--out", str(folder / name)]
        outcome = []
        for _ in range(2):  # the same command, without the fault, goes on
            with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as said:
                fault(patch)
                code = main(words)
            torch.distributed.barrier()  # both are done, and go on when both have looked
            steps = sorted(path.name for path in (folder / name).glob("step_*"))
            stop = folder / name / "stopped.json"
            kind = json.loads(stop.read_text())["kind"] if stop.exists() else None
            outcome.append({"code": code, "said": said.getvalue(), "steps": steps, "kind": kind})
            torch.distributed.barrier()
            fault = FAULTS["none"]
        (folder / f"{name}_{RANK}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
