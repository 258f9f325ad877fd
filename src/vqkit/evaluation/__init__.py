"""One evaluator for every tokenizer: quality, code usage and rates side by side, stamped.

`evaluate(tokenizer, image_set)` gives an `Evaluation`; `compare_table([...])` sets several next to
each other; `rosetta(tokenizer, image_set)` measures one under every known protocol.
"""

from vqkit.evaluation.evaluator import evaluate, evaluate_under
from vqkit.evaluation.result import Evaluation, Metric
from vqkit.evaluation.rosetta import Rosetta, rosetta
from vqkit.evaluation.tables import compare_table

__all__ = [
    "Evaluation",
    "Metric",
    "Rosetta",
    "compare_table",
    "evaluate",
    "evaluate_under",
    "rosetta",
]
