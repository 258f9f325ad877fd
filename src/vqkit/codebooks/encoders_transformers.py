"""Vision models of the library transformers, from a local folder of safetensors.

Nothing is fetched, nothing is unpickled, and no code in a folder is run.

Legend: B images, H W pixels, h w positions of the grid, D dim, n tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vqkit.codebooks.encoders import (
    POOL,
    PatchEncoder,
    check_images,
    check_sizes,
    device_of,
    grid_of_tokens,
    with_planes,
)
from vqkit.codebooks.preprocessing import read_preprocessing
from vqkit.codebooks.set_folders import read_object
from vqkit.config import require
from vqkit.weights import sha256_of

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
# Parts that folders of classifiers lack and that features do not pass through.
_UNUSED = ("pooler.", "logit_scale", "text_model.", "text_projection.", "classifier.")


class TransformersEncoder(PatchEncoder):
    """A vision model in a local folder: CLIP, ViT, DeiT, DINOv2, MAE, ResNet, ConvNeXt and others.

    Features are the patches of the last layer as the model gives them. Of CLIP they pass its
    `post_layernorm` and, where the folder has one, its visual projection, which otherwise only the
    class token does: VQGAN-LC's features (arXiv:2406.11837, and its code). MAE sees all patches.
    Class, distillation and register tokens are left out.

    Args:
        folder: what `save_pretrained` writes: config.json and model.safetensors (or its parts).
        layer: -1 is the model's output; other numbers are hidden states, 0 the embeddings, just as
            the model gives them: no normalisation, no projection.
        size: side of the square images; by default that of preprocessor_config.json in the folder,
            else that of the model.

    Raises:
        ValueError: no such folder, or one without config.json or safetensors; weights of another
            model; a model without a grid of features; no such layer; an image size that the model
            cannot take.
        ImportError: transformers is not installed.
    """

    def __init__(self, folder: str | Path, *, layer: int = -1, size: int | None = None) -> None:
        self._folder = Path(folder).expanduser()
        weights = _weights(self._folder)
        model = _load(self._folder)
        self._config = getattr(model.config, "vision_config", model.config)
        self._kind = str(model.config.model_type)
        self._vision = getattr(model, "vision_model", model)
        self._norm, self._projection = _clip_head(model, self._vision)
        del model  # and with it a text tower
        self._vision.eval().requires_grad_(False)
        self._channels = int(getattr(self._config, "num_channels", 3))
        self._preprocessing = read_preprocessing(self._folder, self._kind, self._config, size)
        check_sizes(self._preprocessing.size, self._preprocessing.resize)
        self.size, self.resize = self._preprocessing.size, self._preprocessing.resize
        self.pool = POOL
        self._layer = layer
        self._sha256 = _hash_files(weights)
        self.dim, self._grid = self._try()

    def _try(self) -> tuple[int, int]:
        """Encode a black image: what does not fit is found before any image is read."""
        assert self.size is not None
        image = torch.zeros(1, self._channels, self.size, self.size, dtype=torch.uint8)
        try:
            with torch.no_grad():
                shape = self(image).shape
        except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ValueError) and str(error).startswith(("encoder=", "layer=")):
                raise
            cause = str(error).split("\n")[0]
            raise ValueError(
                f"encoder={self._folder}: cannot encode an image of {self.size} x {self.size} "
                f"({cause}); give another size, or wrap the model and pass it to ModuleEncoder"
            ) from error
        return shape[1], shape[2]

    def __call__(self, images: Tensor) -> Tensor:
        """See `PatchEncoder.__call__`."""
        check_images(images, self.size)
        pixels = self._preprocessing.normalised(with_planes(images.to(self.device), self._channels))
        options: dict[str, Any] = {"output_hidden_states": True} if self._layer != -1 else {}
        positions = self._positions()
        if self._config.model_type == "vit_mae" and positions is not None:
            # Patches are shuffled by the order of this noise, even where none is masked.
            order = torch.arange(positions[0] * positions[1], device=pixels.device)
            options["noise"] = order.float().expand(len(pixels), -1)
        output = self._vision(pixels, return_dict=True, **options)
        features = self._chosen(output)
        require(
            isinstance(features, Tensor) and features.dim() in (3, 4),
            f"encoder={self._folder}",
            f"{self._kind} gives no features by position; wrap it and pass it to ModuleEncoder",
        )
        if features.dim() == 3:
            who = f"encoder={self._folder} ({self._kind})"
            registers = int(getattr(self._config, "num_register_tokens", 0) or 0)
            features = grid_of_tokens(features, who, positions, extras=(0, 1, 2, 1 + registers))
        restore = getattr(output, "ids_restore", None)
        if restore is not None:
            places = restore[:, None].expand(-1, features.shape[1], -1)
            features = features.flatten(2).gather(2, places).view_as(features)
        return features.float()

    def _chosen(self, output: Any) -> Any:
        """Pick the layer, and finish CLIP's last one."""
        if self._layer == -1:
            features = getattr(output, "last_hidden_state", None)
            if features is not None and self._norm is not None:
                features = self._norm(features)
            if features is not None and self._projection is not None:
                features = self._projection(features)
            return features
        states = getattr(output, "hidden_states", None) or ()
        require(
            -len(states) <= self._layer < len(states),
            f"layer={self._layer}",
            f"{self._kind} has hidden states 0 to {len(states) - 1}, and -1 for its output",
        )
        return states[self._layer]

    def _positions(self) -> tuple[int, int] | None:
        """Return the grid that the patches of the images make, if the model says their size."""
        patch = getattr(self._config, "patch_size", None)
        if isinstance(patch, list | tuple):
            patch = patch[-1]
        if not isinstance(patch, int) or self.size is None:
            return None
        return self.size // patch, self.size // patch

    @property
    def stride(self) -> int:
        """Pixels per position, rounded."""
        return round((self.size or 0) / self._grid)

    def describe(self) -> dict[str, Any]:
        """See `PatchEncoder.describe`; the SHA-256 is that of the file (of several: of theirs)."""
        return {
            "kind": "transformers",
            "name": self._folder.resolve().name,
            "sha256": self._sha256,
            "layer": self._layer,
            "model": self._kind,
            "projected": self._layer == -1 and self._projection is not None,
            **asdict(self._preprocessing),
        }

    @property
    def device(self) -> torch.device:
        """That of the model."""
        return device_of(self._vision)

    def to(self, device: str | torch.device) -> None:
        """Move the model."""
        for part in (self._vision, self._norm, self._projection):
            if part is not None:
                part.to(device)


def _clip_head(model: nn.Module, vision: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Return what CLIP puts behind its class token: a normalisation and, if loaded, a projection.

    Models of its family that normalise all tokens themselves (SigLIP) have neither.
    """
    family = "clip" in str(getattr(model, "config").model_type)  # noqa: B009 (not typed)
    norm = getattr(vision, "post_layernorm", None)
    if not family or not isinstance(norm, nn.Module):
        return None, None
    projection = getattr(model, "visual_projection", None)
    return norm, projection if isinstance(projection, nn.Module) else None


def _load(folder: Path) -> Any:
    """Build the model of config.json and load its tensors, in float32."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"encoder={folder}: is a model of transformers, which is not installed; "
            "pip install 'vqkit[features]'"
        ) from error
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), **local)
            if config.model_type == "vit_mae":
                config.mask_ratio = 0.0
            alone = config.model_type == "clip_vision_model"
            projected = alone and "CLIPVisionModelWithProjection" in (config.architectures or ())
            kind: Any = transformers.AutoModel
            if projected:
                kind = transformers.CLIPVisionModelWithProjection
                local.pop("trust_remote_code")
            model, report = kind.from_pretrained(
                str(folder), config=config, use_safetensors=True, output_loading_info=True, **local
            )
        except (
            ValueError,
            OSError,
            RuntimeError,
            LookupError,
            TypeError,
            SafetensorError,
        ) as error:
            cause = " ".join(str(error).split())[:300]
            raise ValueError(
                f"encoder={folder}: transformers cannot load it ({cause}); name a folder that "
                "save_pretrained of a vision model has written"
            ) from error
    missing = sorted(n for n in report["missing_keys"] if not any(part in n for part in _UNUSED))
    require(
        not missing,
        f"encoder={folder}",
        f"its weights lack {len(missing)} tensors of {config.model_type} (first: "
        f"{missing[0] if missing else ''}); config.json and weights are of different models",
    )
    return model.float()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from writing bars and reports of heads that are not loaded."""
    talk = transformers.utils.logging
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()


def _weights(folder: Path) -> list[Path]:
    """Return the files of weights, of which there may be several with an index."""
    require(folder.is_dir(), f"encoder={folder}", "is no folder; name one with a saved model")
    require(
        (folder / "config.json").is_file(),
        f"encoder={folder}",
        "has no config.json; name a folder that save_pretrained has written",
    )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    require(
        (folder / INDEX).is_file(),
        f"encoder={folder}",
        f"has no {WEIGHTS}; pickled weights are not loaded, so convert them on a machine that you "
        "trust them on: model.save_pretrained(folder, safe_serialization=True)",
    )
    parts = read_object(folder / INDEX).get("weight_map", {})
    files = [folder / name for name in sorted(set(parts.values()))]
    absent = [file.name for file in files if not file.is_file()]
    require(not absent and bool(files), f"encoder={folder}", f"lacks {', '.join(absent)}")
    return files


def _hash_files(files: list[Path]) -> str:
    """Return the SHA-256 of one file, or of the SHA-256 of several, a line each."""
    digests = [sha256_of(file) for file in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )
