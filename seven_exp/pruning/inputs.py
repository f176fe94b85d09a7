"""Seeing what a layer is fed with, wherever its weight is used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

Watcher = Callable[[int, Tensor], None]
"""``watcher(i, inputs)``: what weight i met, a row for each use and a column for each input."""


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
    addmm = torch.addmm
    linear, conv1d, conv2d = functional.linear, functional.conv1d, functional.conv2d

    def watched_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) in places:
            watcher(places[id(weight)], x.detach().reshape(-1, x.shape[-1]))
        return linear(x, weight, bias)

    def watched_conv2d(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if id(weight) in places:
            if groups != 1 or isinstance(padding, str):
                raise ValueError("inputs of grouped or 'same'-padded convolutions can't be watched")
            kernel = weight.shape[2:]
            patches = functional.unfold(x.detach(), kernel, dilation, padding, stride)
            watcher(places[id(weight)], patches.transpose(1, 2).flatten(0, 1))
        return conv2d(x, weight, bias, stride, padding, dilation, groups)

    def watched_conv1d(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = (1,),
        padding: Any = (0,),
        dilation: Any = (1,),
        groups: int = 1,
    ) -> Tensor:
        if id(weight) in places:
            if groups != 1 or isinstance(padding, str):
                raise ValueError("inputs of grouped or 'same'-padded convolutions can't be watched")
            patches = functional.unfold(
                x.detach().unsqueeze(2),
                (1, weight.shape[2]),
                (1, *dilation),
                (0, *padding),
                (1, *stride),
            )
            watcher(places[id(weight)], patches.transpose(1, 2).flatten(0, 1))
        return conv1d(x, weight, bias, stride, padding, dilation, groups)

    def refused_addmm(bias: Tensor, x: Tensor, weight: Tensor, **scales: Any) -> Tensor:
        if id(weight) in places:
            raise ValueError("inputs of transposed weights (GPT-2's Conv1D) can't be watched")
        return addmm(bias, x, weight, **scales)

    with (
        patch.multiple(
            functional, linear=watched_linear, conv1d=watched_conv1d, conv2d=watched_conv2d
        ),
        patch.object(torch, "addmm", refused_addmm),
    ):
        yield


def order_of_use(weights: Sequence[Tensor], run: Callable[[], object]) -> list[int]:
    """Indices of the weights as ``run`` first meets them; those it never meets come last."""
    met: dict[int, None] = {}
    with watching(weights, lambda i, _: met.setdefault(i)):
        run()
    return [*met, *(i for i in range(len(weights)) if i not in met)]


def forward_only(model: nn.Module, run: Callable[[], object]) -> None:
    """Run forward passes in evaluation mode; without gradients attention would fuse its maps."""
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            run()
    finally:
        model.train(training)
