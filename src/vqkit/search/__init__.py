"""Nearest codes, exactly: vectors in, ids out. Knows no model and never holds vectors x codes.

`nearest` and its kin serve quantizers, k-means, anchors and codebook analysis;
`sample_softmax_rows` draws one vector per code; `code_counts_and_sums` gathers the statistics of
an assignment.
"""

from vqkit.search.counting import code_counts_and_sums
from vqkit.search.inputs import METRICS, Metric
from vqkit.search.nearest import BACKENDS, Backend, nearest, nearest_k, nearest_with_scores
from vqkit.search.sampling import choose_by_weight, sample_softmax_rows, softmax_row_log_weights

__all__ = [
    "BACKENDS",
    "METRICS",
    "Backend",
    "Metric",
    "choose_by_weight",
    "code_counts_and_sums",
    "nearest",
    "nearest_k",
    "nearest_with_scores",
    "sample_softmax_rows",
    "softmax_row_log_weights",
]
