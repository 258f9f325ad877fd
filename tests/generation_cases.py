"""A generator that is quick and needs no training, and a tokenizer for it."""

import torch

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.config.generation import GPTSampling
from vqkit.generation.draws import uniform_draws
from vqkit.generation.generator import Card, Generator
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.tokens import tokenizer_hash

CODES = 16


def small_tokenizer(channels=1):
    torch.manual_seed(3)
    return ImageTokenizer(
        TokenizerConfig(
            quantizer=QuantizerConfig(preset="vq_vae", args={"num_codes": CODES, "dim": 4}),
            network=NetworkConfig(
                image_channels=channels, hidden=8, residual_hidden=4, num_residual_blocks=1
            ),
        )
    ).eval()


def card_of(tokenizer, num_classes=3, names=("zero", "one, uno", "two")):
    return Card(
        grid=(2, 2),
        slots=tokenizer.quantizer.slots,
        num_classes=num_classes,
        label_names=names if num_classes else (),
        tokenizer=tokenizer_hash(tokenizer),
        tokens="f" * 64,
    )


class Drawing(Generator):
    """Ids straight from the draws of each sample, moved by its class."""

    kind = "gpt"

    def __init__(self, card):
        super().__init__(card, torch.nn.Linear(1, 1))
        self.calls = []
        self.fail_at = None

    def sample(self, tokenizer, labels=None, *, seed, start=0, count=None, sampling=None):
        labels = self.check_request(tokenizer, labels, count)
        self.calls.append((start, len(labels)))
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        size = self.grid[0] * self.grid[1]
        draws = uniform_draws(seed, start, len(labels), size)
        ids = ((draws * CODES).long() + labels[:, None]) % CODES
        return ids.reshape(len(labels), *self.grid, 1)

    def settings(self):
        return {}


def sampling(**options):
    return GPTSampling(**{"batch_size": 4, **options})
