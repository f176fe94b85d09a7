"""Models by name."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from seven_exp.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Factories ``(num_classes, image_size, channels, *, **arguments) -> nn.Module``; those of text
take ``(num_classes, vocab_size, max_length, head, *, **arguments)``."""

CHECKS: dict[str, Callable[..., None]] = {}
"""Name -> ``check(**arguments)``, which raises ValueError before data or weights are read."""

F = TypeVar("F", bound=Callable[..., None])


def checked_by(name: str) -> Callable[[F], F]:
    """Decorator of the check of a model's arguments."""

    def add(check: F) -> F:
        CHECKS[name] = check
        return check

    return add
