"""Networks over a whole codebook (Dual): (1, K, D) -> (1, K, D). They never see an image."""

from __future__ import annotations

from torch import nn

from .codebooks import check_count


def transformer_refiner(
    dim: int, *, num_layers: int, num_heads: int, dropout: float, feedforward: int = 2048
) -> nn.Module:
    """Dual's network over the codebook: a post-norm encoder, no positions, no mask."""
    if dim % num_heads:
        raise ValueError(f"num_heads={num_heads}: must divide the global codes' dim={dim}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: must lie in [0, 1)")
    check_count("num_layers", num_layers)
    layer = nn.TransformerEncoderLayer(dim, num_heads, feedforward, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
