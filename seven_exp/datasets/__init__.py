"""Data by name: images or text in two splits, as batches; importing this registers every file."""

import importlib
import pkgutil

from seven_exp.datasets.batches import Batches, Data, Text
from seven_exp.datasets.registry import (
    DATASETS,
    build_data,
    check_data,
    lower_is_better,
    text_head,
)
from seven_exp.datasets.transforms import TRANSFORMS
from seven_exp.datasets.validation import held_out, limited
from seven_exp.tasks import Batch

__all__ = [
    "DATASETS",
    "TRANSFORMS",
    "Batch",
    "Batches",
    "Data",
    "Text",
    "build_data",
    "check_data",
    "held_out",
    "limited",
    "lower_is_better",
    "text_head",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
