"""What changes during a run, and one optimizer step of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqkit.config import RunConfig, require
from vqkit.data import Batch, to_float
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.settings import Presets
from vqkit.training.adversary import Adversary
from vqkit.training.average import WeightAverage
from vqkit.training.backward import Backward
from vqkit.training.checkpoint import Snapshot, load_optimizer_tensors, optimizer_tensors
from vqkit.training.epochs import EpochUsage
from vqkit.training.gradients import average_gradients
from vqkit.training.health import not_finite
from vqkit.training.objective import Losses, Objective
from vqkit.training.schedule import learning_rate_factor, set_learning_rate
from vqkit.training.step_report import StepReport
from vqkit.training.stops import describe_gradients
from vqkit.training.window import CodeWindow

if TYPE_CHECKING:
    from accelerate import Accelerator

Pair = tuple[Tensor, Tensor]
"""Images and their reconstructions, both without gradient."""


class Trainer:
    """Model, optimizers and weight average of one process.

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
        self.tokenizer.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tokenizer.quantizer.auto_step = False  # stepped once, after the optimizer
        self.tokenizer.quantizer.check_values = False  # a loss that is not finite stops all at once
        self.tokenizer.quantizer.set_micro_batches(config.optim.accumulate)
        self.tokenizer.train()
        self.optimizer = make_optimizer(self.tokenizer, config)
        self.adversary = self._adversary()
        decay = config.optim.weight_ema
        self.average = WeightAverage(self.tokenizer, decay) if decay is not None else None
        self.term_weights = {
            f"quantizer.{path}": weight * config.objective.quantizer_weight
            for path, weight in self.tokenizer.quantizer.term_weights().items()
        }
        self.window = CodeWindow(self.tokenizer.quantizer, accelerator.device)
        self.epochs = EpochUsage(self.window)
        if config.optim.compile:
            self._compile()
        self.done = 0
        """Optimizer steps done."""

    def _adversary(self) -> Adversary | None:
        if self.config.adversarial is None:
            return None
        channels = self.config.network.image_channels
        adversary = Adversary(self.config.adversarial, self.config.optim, channels)
        adversary.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return adversary.train()

    def _compile(self) -> None:
        """Compile the networks in place; the quantizer's search is no graph and gains nothing."""
        # The adaptive weight runs backward twice, so that no buffer may be given away in between.
        torch._functorch.config.donated_buffer = False
        self.tokenizer.encoder.compile()
        self.tokenizer.decoder.compile()
        if self.adversary is not None:
            self.adversary.discriminator.compile()

    def step(self, batch: Batch) -> StepReport:
        """Make one optimizer step on this process's share of a batch; law 3 orders the updates.

        Nothing is updated before all gradients of the step, the discriminator's included, are
        known to be finite on all processes.
        """
        images = to_float(batch.images.to(self.accelerator.device))
        parts = images.contiguous(memory_format=torch.channels_last).chunk(
            self.config.optim.accumulate
        )
        factor = self._set_learning_rates()
        seen, pairs = self._generator(parts)
        judged = self._discriminator(pairs)
        average_gradients(self.tokenizer.parameters())
        norms = {"gradient_norm": _norm(self.tokenizer)}
        if judged and self.adversary is not None:
            norms["discriminator_gradient_norm"] = self.adversary.collect()
        named = seen | judged | norms
        values = torch.stack([v.float() for v in named.values()]).tolist()  # the one wait
        report = dict(zip(named, values, strict=True)) | self._raw_terms(named, values)
        norm = report.pop("gradient_norm")
        problem = not_finite(report, self.tokenizer, norm)
        gradients: dict[str, Any] = {}
        if self.agree(bool(problem)):
            problem = problem or "another process met a loss that is not finite"
            self.tokenizer.quantizer.forget()
            gradients = describe_gradients(self.tokenizer, self.adversary)
        else:
            self._update(norms["gradient_norm"], judged)
        self.optimizer.zero_grad(set_to_none=True)
        if self.adversary is not None:
            self.adversary.optimizer.zero_grad(set_to_none=True)
        losses = report | {"learning_rate": factor * self.config.optim.lr}
        return StepReport(losses, norm, problem, gradients)

    def _generator(self, parts: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], list[Pair]]:
        """Collect the tokenizer's gradients; return the mean losses, and pairs to be judged."""
        asking = self.adversary is not None and self.adversary.asks(self.done)
        learning = self.adversary is not None and self.adversary.learns(self.done)
        adversary = self.adversary if asking else None
        backward = Backward(self.tokenizer, adversary, self.done, len(parts))
        sums: dict[str, Tensor] = {}
        pairs: list[Pair] = []
        for part in parts:
            with self.window.watching(), self._autocast():
                output = self.tokenizer(part)
                losses = self.objective(part, output)
                self.window.count(output.quantized.ids)
                self.epochs.count(output.quantized.ids)
                said = backward.add(output.images, losses)
            _add(sums, named_values(losses) | said, len(parts))
            if learning:
                pairs.append((part, output.images.detach()))
        return backward.finish(sums), pairs

    def _discriminator(self, pairs: list[Pair]) -> dict[str, Tensor]:
        """Collect the discriminator's gradients; return its mean losses, empty if it rests."""
        sums: dict[str, Tensor] = {}
        for real, fake in pairs:
            assert self.adversary is not None  # only it asks for pairs
            with self._autocast():
                seen = self.adversary.accumulate(real, fake, self.done, len(pairs))
            _add(sums, seen, len(pairs))
        return sums

    def _autocast(self) -> torch.autocast:
        """Run networks in the precision of the run; the quantizer leaves it by itself."""
        wanted = self.config.optim.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=wanted)

    def _set_learning_rates(self) -> float:
        factor = learning_rate_factor(self.config.optim, self.done)
        set_learning_rate(self.optimizer, factor * self.config.optim.lr)
        if self.adversary is not None:
            set_learning_rate(self.adversary.optimizer, factor * self.adversary.lr)
        return factor

    def _update(self, norm: Tensor, judged: dict[str, Tensor]) -> None:
        clip = self.config.optim.clip_norm
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self.tokenizer.parameters(), clip, norm)
        self.optimizer.step()
        self.tokenizer.quantizer.step()
        if judged and self.adversary is not None:
            self.adversary.update(judged, self.done)
        self.done += 1
        if self.average is not None:
            self.average.update(self.tokenizer, self.done)

    def _raw_terms(self, losses: dict[str, Tensor], values: list[float]) -> dict[str, float]:
        """Return the quantizer's terms before their weights, as `quantizer.<path>_raw`."""
        found = dict(zip(losses, values, strict=True))
        return {
            f"{name}_raw": found[name] / weight
            for name, weight in self.term_weights.items()
            if weight and name in found
        }

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

    def models(self) -> tuple[nn.Module, ...]:
        """List the networks that learn, the tokenizer first."""
        return (self.tokenizer, *([self.adversary] if self.adversary is not None else []))

    def snapshot(self, record: dict[str, Any]) -> Snapshot:
        """Return the state after `done` steps; every process calls this at the same step."""
        names = {parameter: name for name, parameter in self.tokenizer.named_parameters()}
        trainer = self.window.state() | self.epochs.state() | {"random.cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            trainer["random.cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        adversary, its_optimizer = None, None
        if self.adversary is not None:
            adversary = self.adversary.state_dict()
            its_names = {p: name for name, p in self.adversary.named_parameters()}
            its_optimizer = optimizer_tensors(self.adversary.optimizer, its_names)
        return Snapshot(
            step=self.done,
            model=self.tokenizer.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, names),
            trainer=trainer,
            average=self.average.by_name(self.tokenizer) if self.average is not None else None,
            discriminator=adversary,
            discriminator_optimizer=its_optimizer,
            record=record,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue where `snapshot` was taken, on any number of processes."""
        self.done = snapshot.step
        self.tokenizer.load_state_dict(snapshot.model)
        names = {parameter: name for name, parameter in self.tokenizer.named_parameters()}
        load_optimizer_tensors(self.optimizer, names, snapshot.optimizer)
        if self.adversary is not None:
            self.adversary.load(snapshot.discriminator or {})
            its_names = {p: name for name, p in self.adversary.named_parameters()}
            its_tensors = snapshot.discriminator_optimizer or {}
            load_optimizer_tensors(self.adversary.optimizer, its_names, its_tensors)
        if self.average is not None and snapshot.average is not None:
            self.average.load(snapshot.average)
        for counts in (self.window, self.epochs):
            counts.load(snapshot.trainer, main=self.accelerator.is_main_process)
        torch.set_rng_state(snapshot.trainer["random.cpu"])
        if self.accelerator.device.type == "cuda" and "random.cuda" in snapshot.trainer:
            torch.cuda.set_rng_state(snapshot.trainer["random.cuda"], self.accelerator.device)

    def result(self) -> ImageTokenizer:
        """Return a copy of the tokenizer for use: averaged weights, if the run keeps them."""
        final = copy.deepcopy(self.tokenizer)
        if self.average is not None:
            final.load_state_dict(self.average.state_for(self.tokenizer))
        return final.eval()


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


def _add(sums: dict[str, Tensor], values: dict[str, Tensor], parts: int) -> None:
    """Add the share of one of `parts` micro-batches to the means."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value / parts


def _norm(module: nn.Module) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
