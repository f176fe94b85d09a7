"""Tasks: the loss of a model, and the metrics of a whole split."""

from seven_exp.tasks.base import Batch, Head, Inputs, Task, forward
from seven_exp.tasks.classification import Classification
from seven_exp.tasks.language_modelling import LanguageModelling
from seven_exp.tasks.metrics import METRICS
from seven_exp.tasks.regression import Regression
from seven_exp.tasks.spans import Spans

__all__ = [
    "METRICS",
    "Batch",
    "Classification",
    "Head",
    "Inputs",
    "LanguageModelling",
    "Regression",
    "Spans",
    "Task",
    "forward",
]
