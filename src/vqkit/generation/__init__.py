"""Images from tokens: GPTs that write them, and diffusion models of what lies before them.

`train_generator(run, out)` trains one on a token set (`vqkit tokenize`), `load_generator(folder)`
opens a finished one, `generator.sample(tokenizer, labels, seed=0)` gives ids for
`tokenizer.decode`. transformers and diffusers (the extra `generation`) are imported when a network
is built.
"""

from vqkit.generation.generator import PRODUCT, Card, Generator, save_generator
from vqkit.generation.loading import load_generator
from vqkit.generation.training import train_generator

__all__ = [
    "PRODUCT",
    "Card",
    "Generator",
    "load_generator",
    "save_generator",
    "train_generator",
]
