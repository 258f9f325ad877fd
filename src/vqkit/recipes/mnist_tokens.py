"""Small tokenizers of MNIST for what is built on tokens: generation, classification, modelability.

No published experiments. All three spend 8 bits on each of 7 x 7 positions (0.5 bits per pixel),
have the same networks of 64 channels, and project them to 8 channels before quantization, which
are the latents of diffusion models.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Unpack

from vqkit.config import (
    DataConfig,
    LogConfig,
    NetworkConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    require,
)
from vqkit.recipes.small_images import RunOptions

TokenMethod = Literal["vq_vae", "looc", "dual"]

_WIDTH: Final = 64
_PRESETS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "vq_vae": ("vq_ema", {"num_codes": 256, "dim": 8, "restart_below": 1.0}),
    "looc": ("looc", {"num_codes": 16, "dim": 4, "num_segments": 2}),
    "dual": (
        "dual",
        {"num_codes": 16, "dim": 4, "num_layers": 2, "num_heads": 2, "dropout": 0.0},
    ),
}
"""1 token of 256 codes, or 2 of 16. VQ-VAE's codes are moving averages (its appendix A.1), those
that are hardly drawn restart at features: in so few steps the gradient leaves most codes unused."""


def mnist_tokens(method: TokenMethod = "vq_vae", **options: Unpack[RunOptions]) -> RunConfig:
    """A tokenizer of MNIST for generation: VQ-VAE, LooC or Dual at 0.5 bits per pixel.

    Command: `vqkit train mnist_tokens`, with `--method looc` and `--method dual` the others of
    `docs/results/mnist_generation.md`. 1,000 steps of 32 images: some 2 minutes on one core of a
    server CPU.
    """
    require(method in _PRESETS, f"method={method!r}", f"expected one of {', '.join(_PRESETS)}")
    preset, args = _PRESETS[method]
    where = options.get("path", "data/mnist")
    num_steps = options.get("num_steps", 1000)
    return RunConfig(
        name=options.get("name", f"mnist_tokens_{method}"),
        quantizer=QuantizerConfig(
            preset=preset, args={**args, "in_channels": _WIDTH, "commitment": 1.0}
        ),
        network=NetworkConfig(image_channels=1, hidden=_WIDTH),
        data=DataConfig(source="mnist", path=where, channels=1),
        test_data=DataConfig(source="mnist", path=where, channels=1, split="test"),
        optim=OptimConfig(
            num_steps=num_steps,
            batch_size=options.get("batch_size", 32),
            lr=1e-3,
            schedule="cosine",
            warmup_steps=min(50, num_steps // 10),
            final_lr=0.05,
        ),
        log=LogConfig(every=20, checkpoint_every=max(1, num_steps // 2)),
    )
