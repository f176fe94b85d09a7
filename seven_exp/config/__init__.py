"""The schema of ``conf/`` and its error messages; it imports nothing else of the package."""

from seven_exp.config.arguments import check_arguments
from seven_exp.config.errors import ConfigError, faults_of_the_user
from seven_exp.config.parsing import parse
from seven_exp.config.schema import (
    Calibration,
    Dataset,
    Evaluation,
    Fraction,
    Model,
    Optimizer,
    Pruner,
    RunConfig,
    Steps,
    Tracker,
    Trainer,
    moment,
)

__all__ = [
    "Calibration",
    "ConfigError",
    "Dataset",
    "Evaluation",
    "Fraction",
    "Model",
    "Optimizer",
    "Pruner",
    "RunConfig",
    "Steps",
    "Tracker",
    "Trainer",
    "check_arguments",
    "faults_of_the_user",
    "moment",
    "parse",
]
