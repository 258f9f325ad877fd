"""Classification of token maps: what tokens tell of the classes of images.

`train_classifier(run, out)` trains a vision transformer or a linear probe on a token set;
`evaluate_run` measures it on another one, and `table` puts several tokenizers side by side.
`pixels` holds a classifier of images, which reads what generated ones show.
"""

from vqkit.classification.classifier import TokenClassifier
from vqkit.classification.evaluation import Found, Row, measure, table
from vqkit.classification.maps import Maps
from vqkit.classification.task import ClassifierTask
from vqkit.classification.training import evaluate_run, held_out_of, train_classifier

__all__ = [
    "ClassifierTask",
    "Found",
    "Maps",
    "Row",
    "TokenClassifier",
    "evaluate_run",
    "held_out_of",
    "measure",
    "table",
    "train_classifier",
]
