"""A GPT as a causal language model of transformers, for its `generate` and what builds on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqkit.config import require

if TYPE_CHECKING:
    from vqkit.generation.gpt.generator import GPTGenerator


def as_transformers(made: GPTGenerator) -> Any:
    """Return a `LlamaForCausalLM` or `GPT2LMHeadModel` with copies of the weights of `made`.

    Its vocabulary is the K codes and then the classes, the last of which is "no class": an image is
    written after the one token K + class, and the classes are to be suppressed
    (`suppress_tokens=range(K, K + num_classes + 1)`).

    Raises:
        ValueError: several tokens per position.
    """
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    network: Any = made.network
    require(
        network.num_slots == 1,
        f"{network.num_slots} tokens per position",
        "a language model of transformers has one kind of token",
    )
    llama = made.config.architecture == "llama"
    settings: dict[str, Any] = network.trunk.model.config.to_dict()
    settings |= {
        "vocab_size": len(network.tokens.weight) + len(network.labels.weight),
        "max_position_embeddings" if llama else "n_positions": network.units + 1,
        "tie_word_embeddings": False,
    }
    config: Any = type(network.trunk.model.config)(**settings)
    config._attn_implementation = "sdpa"
    kind: Any = LlamaForCausalLM if llama else GPT2LMHeadModel
    model = kind(config)
    inner = "model" if llama else "transformer"
    trunk = network.trunk.model.state_dict()
    state = {f"{inner}.{name}": value.clone() for name, value in trunk.items()}
    labels = network.labels.weight.detach()
    table = torch.cat((network.tokens.weight.detach(), labels))
    state[f"{inner}.{'embed_tokens' if llama else 'wte'}.weight"] = table
    state["lm_head.weight"] = torch.cat((network.head.weight.detach(), torch.zeros_like(labels)))
    if not llama:  # a place for the last token, after which nothing is written
        places = state["transformer.wpe.weight"]
        state["transformer.wpe.weight"] = torch.cat((places, places[:1]))
    model.load_state_dict(state)
    return model.to(made.device).eval()
