"""A finished diffusion model: latents from noise, quantized to the tokens of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vqkit.config import from_dict, require, to_dict
from vqkit.config.diffusion import DiffusionConfig, DiffusionSampling
from vqkit.config.forms import check_form
from vqkit.generation.diffusion.model import LatentModel
from vqkit.generation.diffusion.sampling import sample_latents, sources
from vqkit.generation.generator import Card, Generator
from vqkit.models import ImageTokenizer
from vqkit.models.files import CONFIG, WEIGHTS, check_tensors, read_weights


class DiffusionGenerator(Generator):
    """LDM, DiT or SiT: samples latents, which the tokenizer's codebook turns into tokens."""

    kind: ClassVar[str] = "diffusion"
    network: LatentModel

    def __init__(self, card: Card, model: LatentModel) -> None:
        super().__init__(card, model)

    def sample(
        self,
        tokenizer: ImageTokenizer,
        labels: Tensor | None = None,
        *,
        seed: int,
        start: int = 0,
        count: int | None = None,
        sampling: DiffusionSampling | None = None,
    ) -> Tensor:
        """Return ids int64 (N, h, w, T) on the CPU: sampled latents, quantized by the tokenizer.

        Arguments and errors are those of `Generator.sample`.
        """
        classes = self.check_request(tokenizer, labels, count)
        width = tokenizer.quantizer.width
        require(
            width == self.network.channels,
            f"tokenizer with {width} channels of latents",
            f"this generator samples {self.network.channels}",
        )
        sampling = sampling if sampling is not None else DiffusionSampling()
        require(
            isinstance(sampling, DiffusionSampling),
            f"sampling={type(sampling).__name__}",
            "this generator is a diffusion model; give DiffusionSampling",
        )
        device = next(tokenizer.parameters()).device
        ids = [
            tokenizer.quantize_latents(latents.to(device)).cpu()
            for latents in self._batches(classes, seed, start, sampling)
        ]
        return torch.cat(ids)

    def sample_latents(
        self,
        labels: Tensor,
        *,
        seed: int,
        start: int = 0,
        sampling: DiffusionSampling | None = None,
    ) -> Tensor:
        """Return the latents (N, C, h, w) themselves; a label `num_classes` asks for no class."""
        batches = self._batches(labels, seed, start, sampling or DiffusionSampling())
        return torch.cat(list(batches))

    def _batches(
        self, classes: Tensor, seed: int, start: int, sampling: DiffusionSampling
    ) -> list[Tensor]:
        out, first = [], start
        for part in classes.split(sampling.batch_size):
            draws = sources(seed, first, len(part))
            out.append(sample_latents(self.network, part.to(self.device), draws, sampling))
            first += len(part)
        return out

    @property
    def knows_no_class(self) -> bool:
        """Whether images of no class can be asked for."""
        return self.num_classes == 0 or self.network.config.label_dropout > 0

    def settings(self) -> dict[str, Any]:
        """Return the settings of the model as JSON values."""
        return model_settings(self.network)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], card: Card) -> DiffusionGenerator:
        """Open the generator in `folder` from its `config.json` and card.

        Raises:
            ValueError: settings or weights that do not fit.
        """
        check_form(config, {"model": {"channels": int}}, f"{folder / CONFIG}", "copy it again")
        settings = config["model"]
        values = {key: value for key, value in settings.items() if key != "channels"}
        with torch.random.fork_rng(devices=[]):  # loading draws nothing from the caller's
            model = LatentModel(
                from_dict(DiffusionConfig, values, "model."),
                channels=settings["channels"],
                grid=card.grid,
                num_classes=card.num_classes,
            )
        weights = read_weights(folder, dict(config))
        check_tensors(model.state_dict(), weights, f"{folder / WEIGHTS}")
        model.load_state_dict(weights)
        return cls(card, model)


def model_settings(model: LatentModel) -> dict[str, Any]:
    """Return what rebuilds a model beside its card, as JSON values."""
    return {**to_dict(model.config), "channels": model.channels}
