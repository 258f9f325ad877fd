"""What a quantizer costs and what it is made of, read off its parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grid import GridQuantizer

_BLOCK_BYTES = 64 << 20  # bound of the memory of blocks of scores, in the search too; see the tests


@dataclass(frozen=True, slots=True)
class QuantizerDescription:
    """Costs of one image whose feature map has `height` × `width` positions."""

    height: int
    width: int
    tokens_per_position: int
    tokens_per_image: int
    bits_per_token: str
    """`8` where all slots agree, else how many slots have how many bits: `4×10 + 1×1`."""
    bits_per_position: float
    side_bits: float
    bits_per_image: float
    """Nominal: every token costs log2 of its number of codes."""
    codebook_floats: int
    """Numbers that a decoder must hold; nothing for a lattice."""
    codebook_bytes: int
    """In float32."""
    multiplications: int
    """Of the nearest-code search, vectors × codes × dim (LooC, supplement 1.2)."""
    score_bytes: int
    """Tensors of vectors × codes that a training step holds from forward to backward; only where
    the definition needs them (Gumbel, SQ-VAE). Evaluation holds none. On a CPU a step's peak above
    its inputs is this and at most `block_bytes`, beside tensors as large as the vectors or the
    codebook."""
    block_bytes: int
    """Bound of the memory of scores made block by block, in the search or for the draw."""
    batch_size: int
    """Images for which `score_bytes` counts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Lines for people."""
        mebibytes = self.block_bytes / 2**20
        rows = [
            ("feature map", f"{self.height}×{self.width} positions"),
            (
                "tokens",
                f"{self.tokens_per_position} per position, {self.tokens_per_image:,} per image",
            ),
            ("bits per token", self.bits_per_token),
            (
                "bits per image",
                f"{self.bits_per_image:,.0f} ({self.bits_per_position:,.2f} a position)",
            ),
            ("side information", f"{self.side_bits:g} bits a position"),
            ("codebook", f"{self.codebook_floats:,} floats, {self.codebook_bytes:,} bytes"),
            ("multiplications", f"{self.multiplications:,} per image for the search"),
            ("memory of blocks", f"below {mebibytes:.0f} MiB" if mebibytes else "none"),
            ("score memory", f"{self.score_bytes / 2**20:,.1f} MiB at batch {self.batch_size}"),
        ]
        return "\n".join(f"{name:<18}{value}" for name, value in rows)


def describe_quantizer(
    grid: GridQuantizer, height: int, width: int, batch_size: int
) -> QuantizerDescription:
    """State the costs of feature maps of height × width positions."""
    for setting, value in (("height", height), ("width", width), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{setting}={value}: must be at least 1")
    positions = height * width
    calls = grid.beta**2 if grid.layout == "paper" else 1
    costs = grid.quantizer.search_costs()
    compared = [c for c in costs if c.compares]
    books = {id(leaf.codebook): leaf.codebook for leaf in grid.quantizer.leaves()}
    floats = sum(book.stored_floats() for book in books.values())
    scores = sum(c.rows * c.num_codes * c.score_copies for c in costs)
    return QuantizerDescription(
        height=height,
        width=width,
        tokens_per_position=len(grid.slots),
        tokens_per_image=len(grid.slots) * positions,
        bits_per_token=_bits_per_token([slot.num_codes for slot in grid.slots]),
        bits_per_position=grid.bits_per_position,
        side_bits=grid.side_bits,
        bits_per_image=grid.bits_per_position * positions,
        codebook_floats=floats,
        codebook_bytes=4 * floats,
        multiplications=positions * calls * sum(c.rows * c.num_codes * c.dim for c in compared),
        score_bytes=4 * batch_size * positions * calls * scores,
        block_bytes=_BLOCK_BYTES if compared else 0,
        batch_size=batch_size,
    )


def _bits_per_token(sizes: list[int]) -> str:
    counts = Counter(sizes)
    if len(counts) == 1:
        return f"{math.log2(sizes[0]):.6g}"
    return " + ".join(f"{n}×{math.log2(size):.6g}" for size, n in counts.items())


def _join(phrases: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(p for p in phrases if p)) or "none"


def summarize(grid: GridQuantizer) -> dict[str, str]:
    """Read the parts off a built quantizer: question of the algebra -> the part that answers it."""
    leaves = list(grid.quantizer.leaves())
    wrapper = [] if grid.project_in is None else [f"1×1 {grid.channels} → {grid.width}"]
    wrapper += [f"β = {grid.beta}, {grid.layout} layout"] if grid.beta > 1 else []
    estimators = [e.__name__.replace("_", " ") for e in grid.quantizer.estimators()]
    return {
        "codebook": _join([leaf.codebook.summary() for leaf in leaves]),
        "assignment": _join([leaf.assignment.summary() for leaf in leaves]),
        "update": _join([_join([r.summary() for r in leaf.rules]) for leaf in leaves]),  # type: ignore[operator]
        "terms": _join([", ".join(f"{t.weight:g} {t.name}" for t in x.terms) for x in leaves]),
        "composition": grid.quantizer.summary(),
        "grid": _join([*wrapper, *estimators]),
    }
