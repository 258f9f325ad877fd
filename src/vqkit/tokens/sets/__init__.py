"""Token sets: the tokens of a set of images in parquet shards, written at any scale.

`write_token_set` (the engine of `vqkit tokenize`) writes one, `TokenSet.open` maps it into memory,
`TokenStream` cuts it into training batches.
"""

from vqkit.tokens.sets.decoding import decoded_images
from vqkit.tokens.sets.merging import merge_token_sets
from vqkit.tokens.sets.stream import TokenBatch, TokenStream
from vqkit.tokens.sets.token_set import TokenSet
from vqkit.tokens.sets.writing import write_token_set

__all__ = [
    "TokenBatch",
    "TokenSet",
    "TokenStream",
    "decoded_images",
    "merge_token_sets",
    "write_token_set",
]
