"""The backward pass of one optimizer step of the generator, over all its micro-batches.

The loss of the whole batch is L_image + L_codes + λ w L_GAN. L_image and L_GAN are functions of the
output images alone, so their gradients are taken there once, and weighed before they run through
the tokenizer. λ compares the two at the decoder's last layer for the whole batch: with one
micro-batch a process it is known before that; with several, both are kept apart until the last one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqkit.models import ImageTokenizer
from vqkit.training.adversary import Adversary, adaptive_weight
from vqkit.training.objective import Losses


class Backward:
    """Collects the gradients of the tokenizer's parameters in one step."""

    def __init__(
        self, tokenizer: ImageTokenizer, adversary: Adversary | None, step: int, parts: int
    ) -> None:
        """`adversary` is None unless it asks for its loss at `step`."""
        self.adversary, self.parts = adversary, parts
        self.weight = adversary.weight(step) if adversary is not None else 0.0
        self.parameters = [p for p in tokenizer.parameters() if p.requires_grad]
        self.tokenizer = tokenizer
        self._apart: list[Tensor | None] = []
        """Gradients of the adversarial loss, where they are kept apart."""

    def add(self, images: Tensor, losses: Losses) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch; return what the adversary said.

        Args:
            images: (b, C, H, W) as the decoder gave them, with their graph.
            losses: of these images.
        """
        if self.adversary is None:
            with _in_full(images):
                (losses.total / self.parts).backward()
            return {}
        generator = self.adversary.generator_loss(images)
        with _in_full(images):
            return self._weigh(images, losses, generator)

    def _weigh(self, images: Tensor, losses: Losses, generator: Tensor) -> dict[str, Tensor]:
        assert self.adversary is not None  # it gave this loss
        (of_image,) = torch.autograd.grad(losses.image / self.parts, images)
        (of_generator,) = torch.autograd.grad(generator / self.parts, images)
        seen = {"generator": generator.detach()}
        config = self.adversary.config
        if config.adaptive and self.parts > 1:
            found = torch.autograd.grad(
                images, self.parameters, of_generator, retain_graph=True, allow_unused=True
            )
            before = self._apart or [None] * len(found)
            self._apart = [_added(a, b) for a, b in zip(before, found, strict=True)]
            self._run(images, of_image, losses.codes)
            return seen
        weight: Tensor | float = self.weight
        if config.adaptive:
            last = self._last_weight()
            ratio = adaptive_weight(
                torch.autograd.grad(images, last, of_image, retain_graph=True),
                torch.autograd.grad(images, last, of_generator, retain_graph=True),
                config,
            )
            seen["adaptive_weight"] = ratio
            weight = self.weight * ratio
        seen["generator_weighted"] = weight * generator.detach()
        self._run(images, of_image + weight * of_generator, losses.codes)
        return seen

    def finish(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Join what was kept apart; `seen` are the means of `add` over the micro-batches."""
        if not self._apart:
            return seen
        assert self.adversary is not None  # nothing is kept apart without one
        last = self._last_weight()
        place = next(n for n, p in enumerate(self.parameters) if p is last)
        of_image, of_generator = last.grad, self._apart[place]
        assert of_image is not None  # the last layer makes the images
        assert of_generator is not None
        ratio = adaptive_weight([of_image.clone()], [of_generator.clone()], self.adversary.config)
        for parameter, gradient in zip(self.parameters, self._apart, strict=True):
            if gradient is not None:
                gradient = self.weight * ratio * gradient
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        weighted = self.weight * ratio * seen["generator"]
        return seen | {"adaptive_weight": ratio, "generator_weighted": weighted}

    def _last_weight(self) -> nn.Parameter:
        last = self.tokenizer.decoder.last_weight
        assert isinstance(last, nn.Parameter)  # `build_networks` promises it
        return last

    def _run(self, images: Tensor, gradient: Tensor, codes: Tensor) -> None:
        """Send the gradient at the images, and that of the quantizer's terms, through the net."""
        ends, gradients = [images], [gradient]
        if codes.requires_grad:
            ends.append(codes)
            gradients.append(torch.full_like(codes, 1 / self.parts))
        torch.autograd.backward(ends, gradients)


def _in_full(images: Tensor) -> torch.autocast:
    """Leave autocast: backward follows the types of forward, and float32 parts stay float32."""
    return torch.autocast(images.device.type, enabled=False)


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
