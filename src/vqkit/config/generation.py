"""Settings of a generator, of its training on a token set, and of sampling from a GPT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vqkit.config.core import check_at_least, check_choice, require
from vqkit.config.diffusion import DiffusionConfig
from vqkit.config.optim import OptimConfig
from vqkit.config.run import LogConfig

Architecture = Literal["llama", "gpt2"]
SlotOrder = Literal["depth", "interleave"]
CacheKind = Literal["growing", "static", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """A transformer that writes the tokens of an image one after another, in raster order.

    24 layers, 16 heads and a width of 1,024 are VQGAN-LC's (arXiv:2406.11837, section 4.1).
    """

    kind: Literal["gpt"] = "gpt"
    architecture: Architecture = "llama"
    """`llama`: rotary positions, RMS norm, gated MLP. `gpt2`: learned positions, layer norm, GELU;
    minGPT, which VQGAN-LC uses, is of this kind."""
    layers: int = 24
    heads: int = 16
    width: int = 1024
    """A multiple of `heads`; of 2 × `heads` for `llama`."""
    mlp: int | None = None
    """Width inside the MLP; None is 4 × `width` (`gpt2`), or 8/3 × `width`, rounded up to a
    multiple of 64 (`llama`): as many weights."""
    dropout: float = 0.0
    """Share of activations set to zero in training, of attention too."""
    slots: SlotOrder | None = None
    """Several tokens per position: `depth` adds a small transformer that writes them one after
    another (RQ-Transformer, arXiv:2203.01941), `interleave` puts all tokens into one long row.
    None is for one token per position."""
    depth_layers: int = 4
    """Layers of the depth transformer."""
    conditional: bool = True
    """Whether classes are learnt; needs a token set with labels."""
    label_dropout: float = 0.1
    """Share of training images whose class is hidden, for classifier-free guidance."""
    token_noise: float = 0.0
    """Share of input tokens replaced by any of their slot in training; VQGAN-LC's code: 0.2."""
    tie_embeddings: bool = False
    """Whether the last layer uses the table of token embeddings."""

    def __post_init__(self) -> None:
        check_choice("model.architecture", self.architecture, Architecture)
        if self.slots is not None:
            check_choice("model.slots", self.slots, SlotOrder)
        check_at_least("model", self, ("layers", "heads", "width", "mlp", "depth_layers"), 1)
        step = 2 * self.heads if self.architecture == "llama" else self.heads
        require(
            self.width % step == 0,
            f"model.width={self.width}",
            f"must be a multiple of {step} with {self.heads} heads ({self.architecture})",
        )
        for name in ("dropout", "label_dropout", "token_noise"):
            value = getattr(self, name)
            require(0 <= value < 1, f"model.{name}={value}", "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTSampling:
    """How tokens are drawn from a GPT. The defaults draw from the model as it is."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | float | None = None
    """Draw among the likeliest so many tokens (1 or more), or among that share of the vocabulary
    (below 1; VQGAN-LC: 0.1)."""
    top_p: float | None = None
    """Draw among the likeliest tokens that together have this probability."""
    guidance: float = 1.0
    """Classifier-free guidance: logits are `free + guidance × (asked - free)`; 1 is none."""
    batch_size: int = 64
    """Images at once; it does not change what is drawn, but for rounding."""
    cache: CacheKind = "growing"
    """Keys and values of earlier tokens: `growing` as far as needed, `static` in tensors of full
    length (what `compile` needs), `none` computes them again for every token."""
    compile: bool = False
    """Compile the step of one token with `torch.compile`; needs cache='static'."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: weights and caches in bfloat16; the drawing itself stays in float32 or better."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature={self.temperature}", "must not be negative")
        require(
            self.top_k is None
            or 0 < self.top_k < 1
            or (self.top_k >= 1 and self.top_k == int(self.top_k)),
            f"top_k={self.top_k}",
            "give a whole number of tokens, or a share of the vocabulary below 1",
        )
        require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p={self.top_p}",
            "is a probability: above 0, at most 1",
        )
        require(self.guidance >= 0, f"guidance={self.guidance}", "must not be negative")
        require(self.batch_size >= 1, f"batch_size={self.batch_size}", "must be at least 1")
        check_choice("cache", self.cache, CacheKind)
        check_choice("precision", self.precision, Literal["fp32", "bf16"])
        require(
            not self.compile or self.cache == "static",
            f"compile with cache={self.cache!r}",
            "needs cache='static', whose tensors keep their shape",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorRun:
    """One run: which generator is trained on which tokens, how."""

    name: str
    """Names the run in tables, and its default folder `runs/<name>`."""
    tokens: str | None = None
    """Folder of the token set to train on (`vqkit tokenize`); `vqkit train --tokens` gives it."""
    held_out: str | None = None
    """Folder of a token set of the same tokenizer, on which the model is validated: its bits are
    measured at every checkpoint, and nothing is chosen by them."""
    model: GPTConfig | DiffusionConfig = field(default_factory=GPTConfig)
    optim: OptimConfig
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.name), "name=''", "a run needs a name")
