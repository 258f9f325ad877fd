"""One evaluator for every tokenizer: quality, code usage and rates side by side, stamped.

`evaluate(tokenizer, image_set)` gives an `Evaluation`; `compare_table([...])` sets several next to
each other.
"""

from vqkit.evaluation.evaluator import evaluate
from vqkit.evaluation.result import Evaluation, Metric
from vqkit.evaluation.tables import compare_table

__all__ = ["Evaluation", "Metric", "compare_table", "evaluate"]
