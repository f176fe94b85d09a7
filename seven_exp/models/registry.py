"""Models by name."""

from collections.abc import Callable

from torch import nn

from seven_exp.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Factories ``(num_classes, image_size, channels, *, **arguments) -> nn.Module``; those of text
take ``(num_classes, vocab_size, max_length, head, *, **arguments)``."""
