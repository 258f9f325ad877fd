"""`ImageTokenizer`: images to discrete tokens and back.

`decode(encode(images), size=(H, W))` is `reconstruct(images)` bit for bit. Shapes: B images,
C channels, H and W pixels, h = ceil(H / stride) and w = ceil(W / stride) positions of the grid,
T tokens per position.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vqkit.config import require
from vqkit.models import files, hub
from vqkit.models.describe import Description, describe
from vqkit.models.networks import build_networks
from vqkit.models.pixels import check_shape, pad_to_stride, to_unit_range
from vqkit.models.settings import (
    Presets,
    TokenizerConfig,
    build_quantizer,
    config_from_values,
    config_values,
    describe_tensors,
    read_tensors,
    refuse_descriptions,
    zero_tensors,
)
from vqkit.quantizers import Quantized


@dataclass(frozen=True, slots=True)
class TokenizerOutput:
    """What a training forward returns."""

    images: Tensor
    """(B, C, H, W) reconstruction around [-1, 1], not clamped."""
    quantized: Quantized
    """Features after quantization, ids and the quantizer's loss terms."""


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder (VQ-VAE, arXiv:1711.00937) behind one interface.

    Images are float tensors (B, C, H, W) in [-1, 1], or uint8. `encode`, `decode` and `reconstruct`
    behave as in evaluation whatever the mode of the module: they keep no gradient and change no
    state, the statistics of the codebook included.
    """

    def __init__(self, config: TokenizerConfig, *, presets: Presets | None = None) -> None:
        """Build the networks with fresh weights.

        `presets` adds quantizers of your own by name: `{"mine": my_preset}`. Tensors among the
        arguments of the preset are kept by the quantizer; `config` remembers only their shapes.
        """
        super().__init__()
        config = read_tensors(config)
        refuse_descriptions(config)
        self.config = describe_tensors(config)
        self.quantizer = build_quantizer(config.quantizer, presets)
        self.encoder, self.decoder = build_networks(config.network, self.quantizer.channels)
        self.compacted_from: dict[str, Any] | None = None
        """Preset and arguments (JSON values) before `compacted` stored the codes as they are."""

    @property
    def stride(self) -> int:
        """Pixels per position of the grid, along each side."""
        return self.config.network.stride

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode one training batch, with gradients.

        `images` (B, C, H, W) are floats in [-1, 1] whose height and width are multiples of the
        stride; the values are not checked here, which would make a GPU wait at every step.
        """
        check_shape(images, self.config.network.image_channels)
        require(
            images.is_floating_point(),
            f"images.dtype={images.dtype}",
            "training takes floats in [-1, 1]; convert uint8 with images / 127.5 - 1",
        )
        height, width = images.shape[-2:]
        require(
            height % self.stride == 0 and width % self.stride == 0,
            f"images of {height} x {width} pixels",
            f"training needs multiples of {self.stride}; crop them, or use encode, which pads",
        )
        quantized = self.quantizer(self.encoder(images))
        return TokenizerOutput(images=self.decoder(quantized.z_q), quantized=quantized)

    def _check_device(self, name: str, tensor: Tensor) -> None:
        device = self._parameter().device
        require(
            tensor.device == device,
            f"{name}.device={tensor.device}",
            f"the model is on {device}; move one of them with .to(...)",
        )

    def _parameter(self) -> nn.Parameter:
        """Return any parameter of the networks: its device and type are those of the model."""
        return next(self.encoder.parameters())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the int64 ids (B, h, w, T) of images (B, C, H, W) of any height and width.

        Images are uint8, or floats in [-1, 1] on the device of the model; anything else is a
        `ValueError`. Sides that are no multiple of the stride are continued by their last pixels.
        """
        padded = self._prepared(images)
        with evaluation_mode(self):
            return self.quantizer(self.encoder(padded)).ids

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        """Return the latents (B, quantizer.width, h, w) of images, as `encode` before quantization.

        `quantize_latents` of them are the ids of `encode`, bit for bit. Diffusion models learn
        these (VQGAN-LC, section 3.3).
        """
        padded = self._prepared(images)
        with evaluation_mode(self):
            return self.quantizer.latents(self.encoder(padded))

    @torch.no_grad()
    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Return the int64 ids (B, h, w, T) of latents (B, quantizer.width, h, w)."""
        self._check_device("latents", latents)
        with evaluation_mode(self):
            return self.quantizer.quantize_latents(latents).ids

    def _prepared(self, images: Tensor) -> Tensor:
        """Check images and return them as the encoder takes them."""
        check_shape(images, self.config.network.image_channels)
        self._check_device("images", images)
        return pad_to_stride(to_unit_range(images, self._parameter().dtype), self.stride)

    @torch.no_grad()
    def decode(self, ids: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the images (B, C, H, W), clamped to [-1, 1], of ids (B, h, w, T).

        `size` is the (height, width) of the images that were encoded and crops off what padding
        added; without it the images cover the whole grid. Ids that the quantizer does not know and
        sizes that this grid cannot come from are a `ValueError`.
        """
        require(isinstance(ids, Tensor), f"ids={type(ids).__name__}", "expected a tensor")
        self._check_device("ids", ids)
        with evaluation_mode(self):
            z_q = self.quantizer.lookup(ids)
            h, w = z_q.shape[-2:]
            height, width = self.image_size(h, w, size)
            images: Tensor = self.decoder(z_q)
        return images[..., :height, :width].clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return what remains of images (B, C, H, W), of the same size, clamped to [-1, 1]."""
        return self.decode(self.encode(images), size=(images.shape[-2], images.shape[-1]))

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the positions (h, w) that an image of this size takes, padding included."""
        for name, value in (("height", height), ("width", width)):
            require(value >= 1, f"{name}={value}", "an image has at least 1 pixel along each side")
        return -(-height // self.stride), -(-width // self.stride)

    def image_size(self, h: int, w: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return `size` (height, width) of images of h x w positions; None is all of the grid.

        A size that such a grid cannot come from is a `ValueError`.
        """
        height, width = size if size is not None else (h * self.stride, w * self.stride)
        require(
            self.grid_size(height, width) == (h, w),
            f"size={(height, width)}",
            f"ids of {h} x {w} positions come from images of at most {h * self.stride} x "
            f"{w * self.stride} pixels, less than {self.stride} smaller along each side",
        )
        return height, width

    def bits_per_image(self, height: int, width: int) -> float:
        """Return the nominal bits of the tokens of one image, padding and side bits included."""
        h, w = self.grid_size(height, width)
        return self.quantizer.describe(h, w).bits_per_image

    def bits_per_pixel(self, height: int, width: int) -> float:
        """Return `bits_per_image` divided by the pixels of the image before padding."""
        return self.bits_per_image(height, width) / (height * width)

    def describe(self, image_size: tuple[int, int], *, batch_size: int = 1) -> Description:
        """Count what an image of (height, width) costs: bits, parameters, memory, operations.

        `batch_size` counts for the memory of scores that training keeps, where a quantizer does.
        """
        return describe(self, image_size, batch_size=batch_size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, which is made if needed.

        Everything is written as it is, for further training too; `compacted(tokenizer)` has a
        smaller form. Existing files are replaced only once both new ones are complete on the disk.
        """
        values: dict[str, Any] = {"tokenizer": config_values(self.config)}
        if self.compacted_from is not None:
            values["compacted_from"] = self.compacted_from
        files.write_model(Path(folder), values, self.state_dict())

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        presets: Presets | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Load a model from a folder, or from the Hugging Face hub, in evaluation mode.

        `name` is a folder written by `save_pretrained`, or else a hub id such as "user/model", of
        which `revision` names a branch, tag or commit. `presets` holds the functions of quantizers
        that are not vqkit's own; a file never names code to import. Whatever does not fit
        (a version, a missing, damaged or foreign file, tensors of another model) is a `ValueError`.
        """
        folder = hub.find_model(name, revision=revision, token=token, cache_dir=cache_dir)
        values = files.read_config(folder)
        weights = files.read_weights(folder, values)
        try:
            config = zero_tensors(config_from_values(values.get("tokenizer")))
            with torch.random.fork_rng(devices=[]):  # loading draws nothing from the caller's
                model = cls(config, presets=presets)
        except (ValueError, TypeError, RuntimeError) as error:  # also of tensors that torch refuses
            raise ValueError(f"{folder / files.CONFIG}: {error}") from error
        free = {
            f"{part}.{name}"
            for part, module in model.named_modules()
            for name in getattr(module, "free_length", ())
        }
        where = f"{folder / files.WEIGHTS}"
        files.check_tensors(model.state_dict(), weights, where, free_length=free)
        model.load_state_dict(weights)
        origin = values.get("compacted_from")
        model.compacted_from = origin if isinstance(origin, dict) else None
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        private: bool = False,
        token: str | None = None,
        message: str = "Upload a vqkit tokenizer",
        compact: bool = True,
    ) -> str:
        """Upload the model to the Hugging Face hub and return the address of the commit.

        The repository is made if needed; it gets a short README, unless it has one. `license` is
        what you publish these weights under, such as "apache-2.0" or "cc-by-4.0". Codes that are
        computed from features or by a network go there as plain codes (`compacted`); with
        `compact=False` features and network go there instead, for those who train on.
        """
        from vqkit.models.compact import compacted  # which needs this class

        model = compacted(self) if compact else self
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            card = hub.model_card(model, repo_id, license)
            (Path(folder) / hub.CARD).write_text(card, encoding="utf-8")
            return hub.upload(Path(folder), repo_id, private=private, token=token, message=message)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block with `model` in evaluation mode; afterwards each part is in the mode it had."""
    modes = [(part, part.training) for part in model.modules()]
    if not any(training for _, training in modes):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()  # parts drop here what they computed once for evaluation
        for part, training in modes:
            part.training = training
