"""Tiny GPTs for the tests of generation, with weights large enough to have opinions."""

import torch

from vqkit.config import GPTConfig
from vqkit.generation import Card
from vqkit.generation.gpt import GPTGenerator
from vqkit.generation.gpt.generator import build_gpt
from vqkit.quantizers import Slot

GRID = (3, 4)
CODES = {None: (11,), "depth": (11, 5, 7), "interleave": (11, 5, 7)}
CASES = [
    (architecture, slots) for architecture in ("llama", "gpt2") for slots in (None, "depth")
] + [("llama", "interleave")]


def tiny_card(codes, *, num_classes=3, tokenizer="t", grid=GRID):
    slots = tuple(Slot(f"slot{number}", count) for number, count in enumerate(codes))
    return Card(
        grid=grid,
        slots=slots,
        num_classes=num_classes,
        label_names=tuple("abc")[:num_classes],
        tokenizer=tokenizer,
        tokens="s",
    )


def tiny_gpt(architecture="llama", slots=None, *, codes=None, num_classes=3, seed=0, **settings):
    """A generator of 3 x 4 positions with random weights, three times as large as new ones."""
    config = GPTConfig(
        architecture=architecture,
        layers=2,
        heads=2,
        width=16,
        slots=slots,
        depth_layers=1,
        **settings,
    )
    card = tiny_card(codes or CODES[slots], num_classes=num_classes)
    torch.manual_seed(seed)
    made = GPTGenerator(card, config, build_gpt(config, card))
    with torch.no_grad():
        for weight in made.network.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return made


def random_ids(made, count, *, seed=0):
    source = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(slot.num_codes, (count, *made.grid), generator=source) for slot in made.slots
    ]
    return torch.stack(columns, dim=-1)
