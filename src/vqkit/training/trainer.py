"""What changes during a run, and one optimizer step of it."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqkit.config import RunConfig, require
from vqkit.data import Batch, to_float
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.settings import Presets
from vqkit.training.average import WeightAverage
from vqkit.training.checkpoint import Snapshot, load_optimizer_tensors, optimizer_tensors
from vqkit.training.health import CodeWindow, not_finite
from vqkit.training.machine import prepare_model
from vqkit.training.objective import Losses, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step of this process gave."""

    losses: dict[str, float]
    """`loss` (the total), its weighted parts and the raw errors, of this process's images."""
    norm: float
    """Length of the gradient of all processes before clipping."""
    problem: str
    """What is not finite; empty if all is. The weights were not touched then."""


class Trainer:
    """Model, optimizer and weight average of one process.

    Every process holds the same bits: the model is built from the same seed, gradients are averaged
    over processes, and `quantizer.step` joins the statistics of all. Nothing is drawn that depends
    on the process, so one process's random state stands for all.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        *,
        presets: Presets | None = None,
    ) -> None:
        self.config, self.accelerator, self.objective = config, accelerator, objective
        share = config.optim.batch_size // accelerator.num_processes
        require(
            share % config.optim.accumulate == 0,
            f"optim.accumulate={config.optim.accumulate}",
            f"must divide each process's share of the batch, {share} images",
        )
        torch.manual_seed(config.seed)
        settings = TokenizerConfig(network=config.network, quantizer=config.quantizer)
        self.tokenizer = ImageTokenizer(settings, presets=presets)
        # 10 to 25 % faster on a CPU.
        self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tokenizer.quantizer.auto_step = False  # stepped once, after the optimizer
        self.tokenizer.quantizer.check_values = False  # a loss that is not finite stops all at once
        self.tokenizer.quantizer.set_micro_batches(config.optim.accumulate)
        self.model: nn.Module = prepare_model(accelerator, self.tokenizer)
        self.model.train()
        self.optimizer = make_optimizer(self.tokenizer, config)
        decay = config.optim.weight_ema
        self.average = WeightAverage(self.tokenizer, decay) if decay is not None else None
        self.window = CodeWindow(self.tokenizer.quantizer, accelerator.device)
        self.done = 0
        """Optimizer steps done."""

    def step(self, batch: Batch) -> StepReport:
        """Make one optimizer step on this process's share of a batch; law 3 orders the updates."""
        images = to_float(batch.images.to(self.accelerator.device))
        parts = images.contiguous(memory_format=torch.channels_last).chunk(
            self.config.optim.accumulate
        )
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                losses = self._losses(part)
                self.accelerator.backward(losses.total / len(parts))
            for name, value in named_values(losses).items():
                sums[name] = sums.get(name, 0) + value / len(parts)
        gradients = [p.grad for p in self.tokenizer.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        *values, length = torch.stack([*sums.values(), norm]).tolist()  # one wait for the device
        report = dict(zip(sums, values, strict=True))
        problem = not_finite(report, self.tokenizer, length)
        if self.agree(bool(problem)):
            problem = problem or "another process met a loss that is not finite"
        else:
            self._update(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return StepReport(report, length, problem)

    def agree(self, wish: bool) -> bool:
        """Return whether any process wishes it: all of them stop together, or none."""
        if self.accelerator.num_processes == 1:
            return wish
        flag = torch.tensor(float(wish), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def mean_over_processes(self, losses: dict[str, float]) -> dict[str, float]:
        """Return the losses of the whole batch; every process calls this at the same step."""
        if self.accelerator.num_processes == 1:
            return losses
        mine = torch.tensor(list(losses.values()), device=self.accelerator.device)
        everyone = self.accelerator.reduce(mine, reduction="mean").tolist()
        return dict(zip(losses, everyone, strict=True))

    def snapshot(self, record: dict[str, Any]) -> Snapshot:
        """Return the state after `done` steps; every process calls this at the same step."""
        names = {parameter: name for name, parameter in self.tokenizer.named_parameters()}
        trainer = {"code_counts": self.window.total(), "random.cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            trainer["random.cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return Snapshot(
            step=self.done,
            model=self.tokenizer.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, names),
            trainer=trainer,
            average=self.average.weights if self.average is not None else None,
            record=record,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue where `snapshot` was taken, on any number of processes."""
        self.done = snapshot.step
        self.tokenizer.load_state_dict(snapshot.model)
        names = {parameter: name for name, parameter in self.tokenizer.named_parameters()}
        load_optimizer_tensors(self.optimizer, names, snapshot.optimizer)
        if self.average is not None and snapshot.average is not None:
            self.average.load(snapshot.average)
        self.window.clear()
        if self.accelerator.is_main_process:  # the others' counts are already in these
            self.window.counts.copy_(snapshot.trainer["code_counts"])
        torch.set_rng_state(snapshot.trainer["random.cpu"])
        if self.accelerator.device.type == "cuda" and "random.cuda" in snapshot.trainer:
            torch.cuda.set_rng_state(snapshot.trainer["random.cuda"], self.accelerator.device)

    def result(self) -> ImageTokenizer:
        """Return a copy of the tokenizer for use: averaged weights, if the run keeps them."""
        final = copy.deepcopy(self.tokenizer)
        if self.average is not None:
            final.load_state_dict(self.average.state_for(self.tokenizer))
        return final.eval()

    def _losses(self, images: Tensor) -> Losses:
        precision = self.config.optim.precision
        device = self.accelerator.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = self.model(images)
        self.window.count(output.quantized.ids)
        return self.objective(images, output)

    def _update(self, norm: Tensor) -> None:
        clip = self.config.optim.clip_norm
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self.tokenizer.parameters(), clip, norm)
        self.optimizer.step()
        self.tokenizer.quantizer.step()
        self.done += 1
        if self.average is not None:
            self.average.update(self.tokenizer, self.done)


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return Adam, or AdamW (decoupled) if `optim.weight_decay` is above 0."""
    optim = config.optim
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optim.weight_decay:
        return torch.optim.AdamW(
            parameters, optim.lr, optim.betas, optim.eps, weight_decay=optim.weight_decay
        )
    return torch.optim.Adam(parameters, optim.lr, optim.betas, optim.eps)


def named_values(losses: Losses) -> dict[str, Tensor]:
    """Return every number of `losses` without gradient, `loss` (the total) first."""
    values = {"loss": losses.total, **losses.weighted, **losses.raw}
    return {name: value.detach() for name, value in values.items()}
