"""What changes while `fit` trains: a model, its optimizer and its average; and one step of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vqkit.config import OptimConfig, require
from vqkit.quantizers import ranks
from vqkit.training.average import WeightAverage
from vqkit.training.checkpoint import Snapshot, load_optimizer_tensors, optimizer_tensors
from vqkit.training.fit_task import Groups, Task
from vqkit.training.gradients import average_gradients
from vqkit.training.health import not_finite
from vqkit.training.schedule import learning_rate_factor
from vqkit.training.step_report import StepReport
from vqkit.training.stops import describe_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator


class FitTrainer:
    """Model, optimizer and weight average of one process; all processes hold the same bits.

    No random state is kept: every step seeds what it draws.
    """

    def __init__(
        self,
        task: Task,
        optim: OptimConfig,
        accelerator: Accelerator,
        *,
        seed: int,
        parts: Callable[[Any, int], Sequence[Any]],
        groups: Groups | None,
    ) -> None:
        processes = accelerator.num_processes
        require(
            optim.batch_size % (processes * optim.accumulate) == 0,
            f"optim.batch_size={optim.batch_size}",
            f"must be a multiple of {processes} processes times optim.accumulate="
            f"{optim.accumulate}",
        )
        self.task, self.optim, self.device, self._seed = task, optim, accelerator.device, seed
        self._parts = parts
        self.model = task.model.to(accelerator.device).train()
        self.optimizer = make_optimizer(self.model, optim, groups or decaying_groups)
        self.optimizer.register_step_pre_hook(self._touch)
        self._touched = False
        decay = optim.weight_ema
        self.average = WeightAverage(self.model, decay) if decay is not None else None
        if optim.compile:
            self.model.compile()
        self.done = 0
        """Optimizer steps done."""

    # ------------------------------------------------------------------ a step

    def step(self, batch: Any) -> StepReport:
        """Make one optimizer step on this process's share of a batch.

        Nothing is updated before all gradients are known to be finite on all processes.
        """
        self._touched = False
        factor = self._set_learning_rates()
        sums = self._backward(batch)
        average_gradients(self.model.parameters())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        values = torch.stack([v.float() for v in [*sums.values(), norm]]).tolist()  # the one wait
        report = dict(zip(sums, values[:-1], strict=True))
        problem = not_finite(report, self.model, values[-1])
        found: dict[str, Any] = {}
        if self.agree(bool(problem)):
            problem = problem or "another process met a loss that is not finite"
            found = describe_gradients(self.model)
        else:
            self._update(norm)
        self.optimizer.zero_grad(set_to_none=True)
        losses = report | {"learning_rate": factor * self.optim.lr}
        return StepReport(losses, values[-1], problem, found)

    def _backward(self, batch: Any) -> dict[str, Tensor]:
        """Collect the gradients of all parts; return their mean losses."""
        sums: dict[str, Tensor] = {}
        count = self.optim.accumulate
        for number, part in enumerate(self._parts(batch, count)):
            losses = self._losses(part, self._generator(number))
            (losses["loss"] / count).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / count
        return sums

    def _losses(self, part: Any, generator: torch.Generator) -> dict[str, Tensor]:
        wanted = self.optim.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted):
            return self.task.losses(part, generator)

    def _generator(self, part: int) -> torch.Generator:
        """Return the generator of one part of this step, and seed torch's global one likewise."""
        words = np.random.SeedSequence([self._seed, self.done, part, ranks.rank()])
        own, everywhere = words.generate_state(2, np.uint64).tolist()
        torch.manual_seed(everywhere)
        return torch.Generator().manual_seed(own)

    def _set_learning_rates(self) -> float:
        factor = learning_rate_factor(self.optim, self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.optim.lr * group["lr_scale"]
        return factor

    def _update(self, norm: Tensor) -> None:
        if self.optim.clip_norm is not None:
            parameters = self.model.parameters()
            nn.utils.clip_grads_with_norm_(parameters, self.optim.clip_norm, norm)
        self.optimizer.step()
        self.done += 1
        if self.average is not None:
            self.average.update(self.model, self.done)

    def _touch(self, *_: Any) -> None:
        self._touched = True

    def undo(self, error: BaseException) -> bool:
        """After an error within `step`, free what it held; False if weights were updated."""
        traceback.clear_frames(error.__traceback__)  # they hold the step's activations
        if self._touched:
            return False
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def agree(self, wish: bool) -> bool:
        """Return whether any process wishes it: all of them stop together, or none."""
        return bool(ranks.sum_over_ranks(torch.tensor(float(wish), device=self.device)) > 0)

    def mean_over_processes(self, losses: dict[str, float]) -> dict[str, float]:
        """Return the losses of the whole batch; every process calls this at the same step."""
        if ranks.world_size() == 1:
            return losses
        mine = torch.tensor(list(losses.values()), device=self.device)
        everyone = (ranks.sum_over_ranks(mine) / ranks.world_size()).tolist()
        return dict(zip(losses, everyone, strict=True))

    # ------------------------------------------------------------------ state

    def models(self) -> tuple[nn.Module, ...]:
        """List the networks that learn."""
        return (self.model,)

    def snapshot(self, record: dict[str, Any]) -> Snapshot:
        """Return the state after `done` steps."""
        return Snapshot(
            step=self.done,
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, self._names()),
            trainer={},
            average=self.average.by_name(self.model) if self.average is not None else None,
            record=record,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue where `snapshot` was taken, on any number of processes."""
        self.done = snapshot.step
        self.model.load_state_dict(snapshot.model)
        load_optimizer_tensors(self.optimizer, self._names(), snapshot.optimizer)
        if self.average is not None and snapshot.average is not None:
            self.average.load(snapshot.average)

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}

    @contextmanager
    def finished(self) -> Iterator[nn.Module]:
        """Lend the model for use: in evaluation mode, with averaged weights if the run keeps them.

        Gradients are off. Weights are swapped in place, so that what was compiled still serves.
        """
        average = self.average.weights if self.average is not None else {}
        own = {p: p.detach().clone() for p, name in self._names().items() if name in average}
        with torch.no_grad():
            for parameter, name in self._names().items():
                if name in average:
                    parameter.copy_(average[name])
            self.model.eval()
            try:
                yield self.model
            finally:
                for parameter, before in own.items():
                    parameter.copy_(before)
                self.model.train()


def make_optimizer(model: nn.Module, optim: OptimConfig, groups: Groups) -> torch.optim.Optimizer:
    """Return AdamW (decoupled decay; without decay it is Adam) over the groups of `model`.

    On CUDA all parameters are updated by one kernel.
    """
    chosen: list[dict[str, Any]] = [
        {"lr_scale": 1.0, "weight_decay": optim.weight_decay, **group} for group in groups(model)
    ]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(chosen, optim.lr, optim.betas, optim.eps, fused=fused)


def decaying_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Group the parameters that learn: tables and matrices decay; biases and gains do not."""
    learning = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in learning if p.ndim >= 2]
    others = [p for p in learning if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
