"""Token sets on disk, tokenizing at scale, entropy coder.

Sets: `write_token_set` writes the tokens of images into a folder of parquet shards, which
`TokenSet.open` maps into memory and `TokenStream` shuffles into batches.

The coder: `TokenCoder.of(tokenizer)` turns token maps into the bytes of a `.vqk` file and back
exactly; `count_frequencies` makes the table of code frequencies that shortens them; `CodedRate`
counts real bytes. constriction (the extra `tokens`) is imported when tokens are coded; without it
files are packed bits.
"""

from vqkit.tokens.alphabet import Alphabet
from vqkit.tokens.coder import SUFFIX, TokenCoder, TokenMaps, read_file
from vqkit.tokens.entropy import can_code
from vqkit.tokens.frequencies import (
    Frequencies,
    count_frequencies,
    find_frequencies,
    tokenizer_hash,
)
from vqkit.tokens.rate import CodedRate, coded_rate
from vqkit.tokens.sets import TokenBatch, TokenSet, TokenStream, write_token_set

__all__ = [
    "SUFFIX",
    "Alphabet",
    "CodedRate",
    "Frequencies",
    "TokenBatch",
    "TokenCoder",
    "TokenMaps",
    "TokenSet",
    "TokenStream",
    "can_code",
    "coded_rate",
    "count_frequencies",
    "find_frequencies",
    "read_file",
    "tokenizer_hash",
    "write_token_set",
]
