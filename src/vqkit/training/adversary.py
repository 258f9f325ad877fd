"""The discriminator's part in the training of a tokenizer: what it asks for and how it learns.

All steps are optimizer steps of the generator, counted from 0. The two networks are judged on the
same reconstructions: those made before either was updated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vqkit.config import AdversarialConfig, OptimConfig
from vqkit.models.discriminator import PatchDiscriminator
from vqkit.quantizers import ranks
from vqkit.training import gan
from vqkit.training.gradients import average_gradients, average_in_place


class Adversary(nn.Module):
    """A discriminator, its losses and its schedule (`AdversarialConfig`).

    Its state (weights, statistics of batch normalisation, LeCam's means) is in `state_dict`; the
    optimizer is beside it.
    """

    lecam_real: Tensor
    lecam_fake: Tensor
    last_r1: Tensor

    def __init__(self, config: AdversarialConfig, optim: OptimConfig, image_channels: int) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config, image_channels)
        # Running means of the logits, which LeCam compares with.
        self.register_buffer("lecam_real", torch.zeros(()))
        self.register_buffer("lecam_fake", torch.zeros(()))
        # R1 is not computed in every step; the log shows the last one.
        self.register_buffer("last_r1", torch.zeros(()))
        self.lr = config.lr if config.lr is not None else optim.lr
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), self.lr, optim.betas, optim.eps
        )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint; older ones do not know the last R1."""
        self.load_state_dict({"last_r1": torch.zeros_like(self.last_r1), **state})

    def asks(self, step: int) -> bool:
        """Tell whether its judgement is part of the generator's loss at `step`."""
        return step >= self.config.start and self.config.weight > 0

    def learns(self, step: int) -> bool:
        """Tell whether it is trained at `step`: from `warmup` steps before `start` on."""
        return step >= self.config.start - self.config.warmup

    def weight(self, step: int) -> float:
        """Return the factor of the generator's adversarial loss, without the adaptive weight."""
        if not self.asks(step):
            return 0.0
        ramp = self.config.ramp
        return self.config.weight * (min(1.0, (step - self.config.start + 1) / ramp) if ramp else 1)

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Return the loss of reconstructions (b, C, H, W), before all weights; a scalar."""
        return gan.generator_loss(self.config.generator_loss, self.discriminator(fake))

    def accumulate(self, real: Tensor, fake: Tensor, step: int, parts: int) -> dict[str, Tensor]:
        """Add the gradient of one of `parts` micro-batches; return its losses and logits.

        `r1` is that of the last step that had one, 0 before; `r1_weighted` what it adds to the loss
        of a step on average.

        Args:
            real: (b, C, H, W) images in [-1, 1].
            fake: (b, C, H, W) their reconstructions, without gradient.
            step: of the generator.
            parts: micro-batches of this process in this step.
        """
        real_logits, fake_logits = (
            self.discriminator(real).float(),
            self.discriminator(fake).float(),
        )
        loss = gan.discriminator_loss(self.config.discriminator_loss, real_logits, fake_logits)
        factor = self.config.discriminator_weight
        seen = {"discriminator": loss.detach(), "discriminator_weighted": factor * loss.detach()}
        if self.config.lecam:
            # The means of the steps before, zero at first; the paper's code takes this step's in
            # already, which micro-batches and processes could not agree on before the loss.
            lecam = gan.lecam(real_logits, fake_logits, self.lecam_real, self.lecam_fake)
            loss = loss + self.config.lecam * lecam
            seen["lecam"] = lecam.detach()
            seen["lecam_weighted"] = factor * self.config.lecam * lecam.detach()
        if self.config.r1:
            penalty = self.last_r1.clone()
            if self._penalises(step):
                penalty = self._r1(real)
                loss = loss + self.config.r1 * self.config.r1_every * penalty
            seen["r1"] = penalty.detach()
            seen["r1_weighted"] = factor * self.config.r1 * penalty.detach()
        with torch.autocast(real.device.type, enabled=False):  # backward has the types of forward
            (factor * loss / parts).backward()
        accuracy_real, accuracy_fake = gan.accuracy(real_logits, fake_logits)
        return seen | {
            "logits_real": real_logits.detach().mean(),
            "logits_fake": fake_logits.detach().mean(),
            "accuracy_real": accuracy_real.detach(),
            "accuracy_fake": accuracy_fake.detach(),
        }

    def _penalises(self, step: int) -> bool:
        return self.config.r1 > 0 and step % self.config.r1_every == 0

    def _r1(self, real: Tensor) -> Tensor:
        """Half the mean squared gradient at real images, in float32."""
        images = real.detach().float().requires_grad_()
        with torch.autocast(images.device.type, enabled=False):
            # The plain module: what is compiled cannot be differentiated twice.
            return gan.r1_penalty(self.discriminator.forward(images), images)

    def collect(self) -> Tensor:
        """Average the gradients over processes; return their norm."""
        average_gradients(self.discriminator.parameters())
        return nn.utils.get_total_norm(
            [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        )

    def update(self, seen: dict[str, Tensor], step: int) -> None:
        """Step the optimizer; `seen` are the means of `accumulate` over the micro-batches."""
        self.optimizer.step()
        buffers = [b for b in self.discriminator.buffers() if b.is_floating_point()]
        average_in_place(buffers)  # the running statistics of batch normalisation
        if self._penalises(step):
            self.last_r1.copy_(ranks.sum_over_ranks(seen["r1"].float()) / ranks.world_size())
        if self.config.lecam:
            means = torch.stack([seen["logits_real"], seen["logits_fake"]])
            means = ranks.sum_over_ranks(means) / ranks.world_size()
            before = step - max(0, self.config.start - self.config.warmup)
            for buffer, mean in zip((self.lecam_real, self.lecam_fake), means, strict=True):
                buffer.copy_(gan.running_mean(buffer, mean, self.config.lecam_decay, before))


def adaptive_weight(
    of_images: Sequence[Tensor], of_generator: Sequence[Tensor], config: AdversarialConfig
) -> Tensor:
    """Return |∇ L_rec| / (|∇ L_GAN| + δ), clamped to [0, adaptive_max] (Dual, equation 2).

    Args:
        of_images: gradient of the reconstruction and perceptual loss with respect to the last layer
            of the decoder, summed over micro-batches, of this process.
        of_generator: gradient of the generator's adversarial loss, likewise.
        config: δ and the clamp.

    Returns:
        A scalar without gradient: that of the whole batch, the same on all processes.
    """
    average_in_place([*of_images, *of_generator])
    above = nn.utils.get_total_norm(list(of_images))
    below = nn.utils.get_total_norm(list(of_generator)) + config.adaptive_delta
    return (above / below).clamp(0.0, config.adaptive_max).detach()
