"""The schema of ``conf/`` and its error messages; it imports nothing else of the package."""

from seven_exp.config.arguments import check_arguments
from seven_exp.config.errors import ConfigError, faults_of_the_user
from seven_exp.config.parsing import parse
from seven_exp.config.schema import (
    Calibration,
    Dataset,
    Model,
    Optimizer,
    Pruner,
    RunConfig,
    Tracker,
    Trainer,
)

__all__ = [
    "Calibration",
    "ConfigError",
    "Dataset",
    "Model",
    "Optimizer",
    "Pruner",
    "RunConfig",
    "Tracker",
    "Trainer",
    "check_arguments",
    "faults_of_the_user",
    "parse",
]
