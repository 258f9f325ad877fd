"""Training: one loop on Accelerate, checkpoints that resume bit for bit, logs and health checks.

`train(config)` trains and returns a tokenizer; `load_run(folder)` loads what a run has made.
"""

from vqkit.training.checkpoint import list_checkpoints, load_checkpoint
from vqkit.training.doctor import diagnose
from vqkit.training.interrupt import Terminated
from vqkit.training.log import CLOCK_KEYS, read_log
from vqkit.training.loop import TrainResult, train
from vqkit.training.objective import Losses, Objective, TokenizerObjective
from vqkit.training.run_folder import load_run
from vqkit.training.watch import HealthWarning, Watch

__all__ = [
    "CLOCK_KEYS",
    "HealthWarning",
    "Losses",
    "Objective",
    "Terminated",
    "TokenizerObjective",
    "TrainResult",
    "Watch",
    "diagnose",
    "list_checkpoints",
    "load_checkpoint",
    "load_run",
    "read_log",
    "train",
]
