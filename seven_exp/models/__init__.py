"""Models by name; importing this registers every file without importing torchvision."""

import importlib
import pkgutil

from seven_exp.models.build import build_model, check_model, factory, is_hub_model
from seven_exp.models.registry import MODELS

__all__ = ["MODELS", "build_model", "check_model", "factory", "is_hub_model"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
