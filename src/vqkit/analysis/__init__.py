"""What a codebook is used for: usage by epoch, frequencies, t-SNE maps, token replacement.

Each analysis is a function with a typed result, a function that draws it, and `save_analysis`,
which writes the figure and its numbers side by side. `vqkit analyze` does all three.
"""

from vqkit.analysis.conditions import Conditions
from vqkit.analysis.embedding import BookMap, CodeMap, map_codes
from vqkit.analysis.figures import frequency_figure, tsne_figure, usage_figure
from vqkit.analysis.frequency import BookFrequency, Frequency, code_frequency
from vqkit.analysis.neighbours import other_codes
from vqkit.analysis.pictures import replacement_figure
from vqkit.analysis.replacement import (
    ReplacedPicture,
    Replacement,
    ReplacementPoint,
    replace_tokens,
)
from vqkit.analysis.saving import save_analysis, save_counts
from vqkit.analysis.tables import CodeTable, code_tables
from vqkit.analysis.usage import BookUsage, EpochUsage, RunUsage, usage_of_run

__all__ = [
    "BookFrequency",
    "BookMap",
    "BookUsage",
    "CodeMap",
    "CodeTable",
    "Conditions",
    "EpochUsage",
    "Frequency",
    "ReplacedPicture",
    "Replacement",
    "ReplacementPoint",
    "RunUsage",
    "code_frequency",
    "code_tables",
    "frequency_figure",
    "map_codes",
    "other_codes",
    "replace_tokens",
    "replacement_figure",
    "save_analysis",
    "save_counts",
    "tsne_figure",
    "usage_figure",
    "usage_of_run",
]
