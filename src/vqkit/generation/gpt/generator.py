"""A trained GPT: from its folder, and to token maps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vqkit.config import GPTConfig, GPTSampling, from_dict, require, to_dict
from vqkit.generation.draws import uniform_draws
from vqkit.generation.generator import Card, Generator
from vqkit.generation.gpt.network import GPT
from vqkit.generation.gpt.writer import Writer
from vqkit.models import ImageTokenizer
from vqkit.models.files import check_tensors, read_weights


class GPTGenerator(Generator):
    """A GPT that writes token maps (`Generator`)."""

    kind: ClassVar[Literal["gpt", "diffusion"]] = "gpt"
    network: GPT

    def __init__(self, card: Card, config: GPTConfig, network: GPT) -> None:
        super().__init__(card, network)
        self.config = config
        self._writer: Writer | None = None

    @classmethod
    def load(cls, folder: Path, values: dict[str, Any], card: Card) -> GPTGenerator:
        """Open what `save` wrote; `values` is its `config.json`."""
        config: GPTConfig = from_dict(GPTConfig, values["model"], "model.")
        network = build_gpt(config, card)
        state = read_weights(folder, values)
        check_tensors(network.state_dict(), state, str(folder))
        network.load_state_dict(state)
        return cls(card, config, network)

    @property
    def knows_no_class(self) -> bool:
        """Whether images of no class can be asked for."""
        return self.num_classes == 0 or self.config.label_dropout > 0

    def settings(self) -> dict[str, Any]:
        """Return the settings of the network as JSON values."""
        return to_dict(self.config)

    def to(self, device: torch.device | str) -> GPTGenerator:
        """Move the network and return the generator."""
        self._writer = None
        super().to(device)
        return self

    def sample(
        self,
        tokenizer: ImageTokenizer,
        labels: Tensor | None = None,
        *,
        seed: int,
        start: int = 0,
        count: int | None = None,
        sampling: Any = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Return ids int64 (N, h, w, T) on the CPU; sample i draws from (seed, start + i) alone.

        `sampling` is a `GPTSampling`. `prompt` are ids (N, rows, w, T), or (rows, w, T) for all,
        with which the images begin; the rows below are written. The rest is described by
        `Generator.sample`.

        Raises:
            ValueError: also for guidance without classes, and for a prompt that does not fit.
        """
        labels = self.check_request(tokenizer, labels, count)
        sampling = sampling if sampling is not None else GPTSampling()
        require(
            isinstance(sampling, GPTSampling),
            f"sampling={type(sampling).__name__}",
            "this generator is a GPT; give GPTSampling",
        )
        return self.write(labels, seed=seed, start=start, sampling=sampling, prompt=prompt)

    def write(
        self,
        labels: Tensor,
        *,
        seed: int,
        start: int = 0,
        sampling: GPTSampling,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Return ids as `sample` does, without a tokenizer; label `num_classes` means no class."""
        require(
            sampling.guidance == 1 or self.num_classes > 0,
            f"guidance={sampling.guidance}",
            "this generator was trained without classes; leave it out",
        )
        require(
            sampling.guidance == 1 or self.config.label_dropout > 0,
            f"guidance={sampling.guidance}",
            "this generator never saw a hidden class (model.label_dropout=0); leave it out",
        )
        network, device = self.network, self.device
        given = network.as_units(self.check_prompt(prompt, len(labels)))
        shape = (network.units, network.unit_tokens)
        writer, written = self._writer_of(sampling), []
        for first in range(0, len(labels), sampling.batch_size):
            some = slice(first, first + sampling.batch_size)
            count = len(labels[some])
            uniforms = uniform_draws(seed, start + first, count, shape[0] * shape[1])
            batch = [labels[some], uniforms.view(count, *shape), given[some]]
            if sampling.compile:  # every batch has the shape that was compiled
                batch = [_filled(part, sampling.batch_size) for part in batch]
            units = writer.write(*(part.to(device) for part in batch))
            written.append(units[:count].cpu())
        return torch.cat(written).view(len(labels), *self.grid, len(self.slots))

    def check_prompt(self, prompt: Tensor | None, count: int) -> Tensor:
        """Return the first rows of every image, (N, rows, w, T); none is (N, 0, w, T).

        Raises:
            ValueError: ids of another shape or type, out of range, or longer than the image.
        """
        rows, columns = self.grid
        num_slots = len(self.slots)
        if prompt is None:
            return torch.zeros((count, 0, columns, num_slots), dtype=torch.int64)
        prompt = prompt.cpu()
        shape = tuple(prompt.shape)
        require(
            prompt.dtype == torch.int64
            and prompt.ndim in (3, 4)
            and shape[-2:] == (columns, num_slots)
            and (prompt.ndim == 3 or len(prompt) == count),
            f"prompt of shape {shape} and type {prompt.dtype}",
            f"give int64 ids ({count}, rows, {columns}, {num_slots}), or (rows, {columns}, "
            f"{num_slots}) for all",
        )
        require(
            shape[-3] < rows,
            f"prompt of {shape[-3]} rows",
            f"an image has {rows}; leave at least one to be written",
        )
        for number, slot in enumerate(self.slots):
            ids = prompt[..., number]
            require(
                ids.numel() == 0 or (int(ids.min()) >= 0 and int(ids.max()) < slot.num_codes),
                f"prompt: slot {slot.name or number}",
                f"ids lie in [0, {slot.num_codes})",
            )
        return prompt if prompt.ndim == 4 else prompt.expand(count, *shape)

    def _writer_of(self, sampling: GPTSampling) -> Writer:
        """The writer for this sampling; the latest is kept, with what was compiled for it."""
        if self._writer is None or self._writer.sampling != sampling:
            network = self.network
            if sampling.precision == "bf16":
                network = _in_bf16(network)
            self._writer = Writer(network, sampling)
        return self._writer


def build_gpt(config: GPTConfig, card: Card) -> GPT:
    """Return a new network with random weights (of torch's global generator)."""
    return GPT(config, grid=card.grid, slots=card.slots, num_classes=card.num_classes)


def _filled(part: Tensor, size: int) -> Tensor:
    """Repeat the first row until there are `size`."""
    missing = size - len(part)
    return torch.cat((part, part[:1].expand(missing, *part.shape[1:]))) if missing else part


def _in_bf16(network: GPT) -> GPT:
    """Copy a network with weights in bfloat16; tables of positions stay as they are."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return network
