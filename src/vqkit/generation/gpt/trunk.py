"""The transformer of a GPT, from the transformers library, without its table of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vqkit.config import GPTConfig

if TYPE_CHECKING:
    from vqkit.generation.gpt.cache import KeyValues

# B = images, L = inputs of this call, D = width


class Trunk(nn.Module):
    """Causal transformer: (B, L, D) to (B, L, D), normalised at the end.

    Args:
        config: architecture, heads, width and dropout.
        layers: Number of layers.
        length: Inputs that it can ever see.
    """

    def __init__(self, config: GPTConfig, *, layers: int, length: int) -> None:
        super().__init__()
        self.layers, self.length = layers, length
        build = _llama if config.architecture == "llama" else _gpt2
        self.model = build(config, layers, length)

    def forward(
        self, x_BLD: Tensor, cache: KeyValues | None = None, number: Tensor | None = None
    ) -> Tensor:
        """Continue what `cache` holds, which is extended, or begin at the first position.

        `number`, int64 (L,), says where the inputs stand; a static cache needs it to go on.
        """
        if cache is None:
            return self.model(inputs_embeds=x_BLD, use_cache=False).last_hidden_state
        positions, mask = cache.place(x_BLD.shape[1], x_BLD.device, number)
        return self.model(
            inputs_embeds=x_BLD,
            past_key_values=cache,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
        ).last_hidden_state

    def new_cache(self, *, static: bool) -> KeyValues:
        """Return an empty cache."""
        from vqkit.generation.gpt.cache import KeyValues

        return KeyValues(self.layers, self.length, static=static)


def _llama(config: GPTConfig, layers: int, length: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    settings = LlamaConfig(
        **_COMMON,
        hidden_size=config.width,
        intermediate_size=config.mlp or _rounded(8 * config.width / 3, 64),
        num_hidden_layers=layers,
        num_attention_heads=config.heads,
        max_position_embeddings=length,
        attention_dropout=config.dropout,
    )
    model: Any = LlamaModel(settings)
    model.embed_tokens = None  # inputs come as vectors
    return model


def _gpt2(config: GPTConfig, layers: int, length: int) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    settings = GPT2Config(
        **_COMMON,
        n_embd=config.width,
        n_inner=config.mlp,
        n_layer=layers,
        n_head=config.heads,
        n_positions=length,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        resid_pdrop=config.dropout,
    )
    model: Any = GPT2Model(settings)
    model.wte = None
    return model


_COMMON: dict[str, Any] = {
    "vocab_size": 1,  # tokens have a table of their own
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "sdpa",
}


def _rounded(value: float, step: int) -> int:
    return -int(-value // step) * step
