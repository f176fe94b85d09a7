"""Compares pruning methods, and provides them for your own training loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seven_exp.pruning import (
        Budget,
        DropAndGrow,
        Elementwise,
        FromZero,
        GradientScore,
        GradientSolver,
        ModelScore,
        Moment,
        Moved,
        Pruner,
        Ranking,
        RegionalSolver,
        Remembered,
        Rule,
        Score,
        Solver,
        State,
        StraightThrough,
        Threshold,
        create_pruner,
        register,
    )

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "DropAndGrow",
    "Elementwise",
    "FromZero",
    "GradientScore",
    "GradientSolver",
    "ModelScore",
    "Moment",
    "Moved",
    "Pruner",
    "Ranking",
    "RegionalSolver",
    "Remembered",
    "Rule",
    "Score",
    "Solver",
    "State",
    "StraightThrough",
    "Threshold",
    "__version__",
    "create_pruner",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import the core at first use, so that ``train.py --help`` does not wait for torch."""
    if name in __all__:
        return getattr(importlib.import_module("seven_exp.pruning"), name)
    raise AttributeError(f"module 'seven_exp' has no attribute '{name}'")
