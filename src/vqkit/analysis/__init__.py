"""What a codebook is used for, and what it makes of images, as figures with their numbers.

Each analysis is a function with a typed result, a function that draws it, and `save_analysis`,
which writes the figure and its numbers side by side. `vqkit analyze` does all three.
"""

from vqkit.analysis.codes.bars import bars_figure
from vqkit.analysis.codes.grid import BookGrid, CodeGrid, codes_of_run
from vqkit.analysis.codes.grid_figure import grid_figure
from vqkit.analysis.codes.segments import SegmentBook, SegmentUsage, segment_usage
from vqkit.analysis.codes.segments_figure import segments_figure
from vqkit.analysis.conditions import Conditions
from vqkit.analysis.curves import SizePoint, size_point
from vqkit.analysis.curves_figure import scaling_figure, sizes_figure
from vqkit.analysis.embedding import BookMap, CodeMap, map_codes
from vqkit.analysis.figures import frequency_figure, tsne_figure, usage_figure
from vqkit.analysis.frequency import BookFrequency, Frequency, code_frequency
from vqkit.analysis.neighbours import other_codes
from vqkit.analysis.pictures import replacement_figure
from vqkit.analysis.rebuilt.crops import Crops, Region, crops, crops_figure
from vqkit.analysis.rebuilt.error_maps import ErrorMaps, error_maps, error_maps_figure
from vqkit.analysis.rebuilt.extremes import Extremes, Ranked, extremes, extremes_figure
from vqkit.analysis.rebuilt.rebuilding import RebuiltImage, RebuiltImages, rebuild_images
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
    "BookGrid",
    "BookMap",
    "BookUsage",
    "CodeGrid",
    "CodeMap",
    "CodeTable",
    "Conditions",
    "Crops",
    "EpochUsage",
    "ErrorMaps",
    "Extremes",
    "Frequency",
    "Ranked",
    "RebuiltImage",
    "RebuiltImages",
    "Region",
    "ReplacedPicture",
    "Replacement",
    "ReplacementPoint",
    "RunUsage",
    "SegmentBook",
    "SegmentUsage",
    "SizePoint",
    "bars_figure",
    "code_frequency",
    "code_tables",
    "codes_of_run",
    "crops",
    "crops_figure",
    "error_maps",
    "error_maps_figure",
    "extremes",
    "extremes_figure",
    "frequency_figure",
    "grid_figure",
    "map_codes",
    "other_codes",
    "rebuild_images",
    "replace_tokens",
    "replacement_figure",
    "save_analysis",
    "save_counts",
    "scaling_figure",
    "segment_usage",
    "segments_figure",
    "size_point",
    "sizes_figure",
    "tsne_figure",
    "usage_figure",
    "usage_of_run",
]
