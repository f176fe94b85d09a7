"""Seeing what a layer is fed with, wherever its weight is used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from seven_exp.pruning.matrices import Layer

Watcher = Callable[[int, Tensor], None]
"""``watcher(i, inputs)``: what weight i met, a row for each use and a column for each input."""


def unwatchable(layer: Layer) -> str | None:
    """The reason, as a sentence, where `watching` can't see a layer's inputs; None: it can."""
    module = layer.module
    plain = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.MultiheadAttention)
    if plain and getattr(module, "groups", 1) == 1:
        return None
    groups = " with groups" if plain else ""
    return f"{layer.name} is a {type(module).__name__}{groups}, whose inputs can't be watched"


@contextmanager
def watching(weights: Sequence[Tensor], watcher: Watcher) -> Iterator[None]:
    """While it lasts, every linear map and convolution by one of the weights is shown to a watcher.

    Modules' hooks would not do: attention multiplies by its output projection's weight without
    calling the module. So the functions that all of them call are wrapped for a while.

    Args:
        weights: Parameters, told apart by identity.
        watcher: Called before each use. For a convolution a row is an unfolded patch.
    """
    places = {id(weight): i for i, weight in enumerate(weights)}
    linear = functional.linear

    def watched_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) in places:
            watcher(places[id(weight)], input.detach().reshape(-1, input.shape[-1]))
        return linear(input, weight, bias)

    def watched(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
        ) -> Tensor:
            if id(weight) in places:
                patches = _patches(input.detach(), weight.shape[2:], stride, padding, dilation)
                watcher(places[id(weight)], patches)
            return convolution(input, weight, bias, stride, padding, dilation, groups)

        return run

    with patch.multiple(
        functional,
        linear=watched_linear,
        conv1d=watched(functional.conv1d),
        conv2d=watched(functional.conv2d),
    ):
        yield


def _patches(
    images: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """What a convolution multiplies its flattened weight by: (places, channels * kernel)."""
    axes = len(kernel)
    steps, spread = _each(stride, axes), _each(dilation, axes)
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(spread, kernel, strict=True)]
        sides = [(n // 2, n - n // 2) for n in total]
    else:
        sides = [(n, n) for n in _each(padding, axes)]
    images = functional.pad(images, [n for pair in reversed(sides) for n in pair])
    images = images.reshape(-1, *images.shape[-1 - axes :])
    if axes == 1:
        images, kernel, steps, spread = images.unsqueeze(2), [1, *kernel], [1, *steps], [1, *spread]
    columns = functional.unfold(images, tuple(kernel), tuple(spread), 0, tuple(steps))
    return columns.transpose(1, 2).flatten(0, 1)


def _each(value: Any, axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)


def order_of_use(weights: Sequence[Tensor], run: Callable[[], object]) -> list[int]:
    """Indices of the weights as ``run`` first meets them; those it never meets are missing."""
    met: dict[int, None] = {}
    with watching(weights, lambda i, _: met.setdefault(i)):
        run()
    return list(met)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts, every module is in evaluation mode; each has its own mode back afterwards.

    Gradients are tracked: without them attention would fuse its maps, which are to be watched.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
