"""Hidden units between two linear layers: which ones can be removed, and what replaces them.

A unit whose weights are all zero outputs act(bias) for every input. If the next layer sums its
inputs equally at every position, this constant becomes part of its bias. A convolution with padding
sees zeros beyond the border, so a constant input is not a bias; there, all constant units are
merged into one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seven_exp.shrink.sizes import (
    add,
    by_input,
    by_output,
    keep_inputs,
    keep_outputs,
    parameter,
    put,
)


@dataclass(frozen=True)
class Pair:
    """``second(activation(norm(first(x))))``, with an elementwise activation.

    Attributes:
        first: Linear, Conv2d or transformers' Conv1D; its outputs are the units.
        second: Of the same kinds; its inputs are the units.
        activation: Elementwise.
        norm: Batch norm after ``first``.
        second_norm: Batch norm after ``second``.
    """

    first: nn.Module
    second: nn.Module
    activation: Callable[[Tensor], Tensor]
    norm: nn.BatchNorm2d | None = None
    second_norm: nn.BatchNorm2d | None = None


@torch.no_grad()
def shrink_units(pair: Pair) -> tuple[int, int]:
    """Remove every unit that does not change the output in evaluation mode.

    Args:
        pair: Changed in place. At least one unit stays, so that every layer has a size.

    Returns:
        Units before and after.
    """
    said = _said(pair)
    columns = by_input(pair.second)
    constant = (by_output(pair.first) == 0).all(1) & said.isfinite()
    unused = (columns == 0).flatten(1).all(1)
    telling = constant & ~unused & (said != 0)
    going = constant | unused
    if _takes_constants(pair):
        if going.all():
            going[0] = False
        gone = telling & going
        _add_to_output(pair, torch.einsum("i,iok->o", said[gone].double(), columns[gone].double()))
    elif telling.any():
        # One constant unit represents all of them.
        speaker = int(said.where(telling, said.new_zeros(())).abs().argmax())
        share = (said[telling] / said[speaker]).double()
        total = torch.einsum("i,iok->ok", share, columns[telling].double())
        weight = parameter(pair.second, "weight").clone()
        weight[:, speaker] = total.view_as(weight[:, speaker]).to(weight.dtype)
        put(pair.second, "weight", weight)
        going[speaker] = False
    elif going.all():
        going[0] = False
    before = len(going)
    kept = (~going).nonzero().squeeze(1)
    if len(kept) < before:
        keep_outputs(pair.first, kept)
        if pair.norm is not None:
            keep_outputs(pair.norm, kept)
        keep_inputs(pair.second, kept)
    return before, len(kept)


def _said(pair: Pair) -> Tensor:
    """The output of each unit if its weights are zero, (units,)."""
    bias = getattr(pair.first, "bias", None)
    level = torch.zeros_like(by_output(pair.first)[:, 0]) if bias is None else bias.detach()
    if (norm := pair.norm) is not None:
        level = functional.batch_norm(
            *(level[None], norm.running_mean, norm.running_var, norm.weight, norm.bias),
            eps=norm.eps,
        )[0]
    return pair.activation(level.clone())


def _takes_constants(pair: Pair) -> bool:
    """Whether a constant input of the second layer acts as a bias."""
    if getattr(pair.second, "bias", None) is None and pair.second_norm is None:
        return False
    # `padding` may be a string, and "same" pads unless the kernel is one pixel.
    return not isinstance(pair.second, nn.Conv2d) or set(pair.second.kernel_size) == {1}


def _add_to_output(pair: Pair, shift: Tensor) -> None:
    if getattr(pair.second, "bias", None) is not None:
        add(pair.second, "bias", shift)
    else:
        assert pair.second_norm is not None
        add(pair.second_norm, "running_mean", -shift)
