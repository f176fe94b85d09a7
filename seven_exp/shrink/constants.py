"""Constants: inputs of layers that stay equal whatever the other layers return.

A layer adds a constant input to its bias instead of reading it. A convolution that pads with zeros
sees them beyond the border, so there a constant is not a bias.
"""

from functools import partial

import torch
from torch import Tensor, nn

from seven_exp.shrink.probing import Probe, mapped, resizable
from seven_exp.shrink.sizes import add_bias, by_input, by_output, is_conv1d, parameter, put

_SCALES = (1.0, 1e4)
"""Standard deviations of the outputs that the layers return."""

_ROUNDING = 1e-5
"""Relative; sums of attention weights, for example, are one only up to rounding."""

_SAMPLES = 32
"""With fewer values, random numbers may be equal by chance, as they are after a ReLU."""


def constants(probe: Probe) -> dict[str, Tensor]:
    """Which inputs of a model's layers do not depend on the rows that are not zero.

    Rows of zeros return their biases. An input is constant if NaN in all other rows does not reach
    it and it is the same at all positions; or if it stays the same while the others return random
    numbers, as a mean of equal values does, whatever the weights of the mean.

    Returns:
        Name of a layer -> (inputs,): the constant; NaN for inputs that vary.
    """
    zeroed = {n: _zero_rows(m) for n, m in probe.modules.items() if resizable(m)}
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor, scale: float) -> Tensor:
        if scale != scale:
            return torch.full_like(like, torch.nan)
        return (torch.randn(like.shape, generator=generator) * scale).to(like)

    def extent(scales: tuple[float, ...]) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Least and largest value of each input, and the number of values."""
        found: dict[str, tuple[Tensor, Tensor, int]] = {}

        def read(name: str, x: Tensor) -> None:
            if name in zeroed:
                rows = x.reshape(-1, x.shape[-1])
                low, high, count = found.get(name, (rows[0], rows[0], 0))
                found[name] = (
                    torch.minimum(low, rows.amin(0)),
                    torch.maximum(high, rows.amax(0)),
                    count + len(rows),
                )

        for scale in scales:

            def replace(name: str, y: Tensor, scale: float = scale) -> Tensor:
                random = noise(y, scale)
                if name not in zeroed:
                    return random
                dead, bias = zeroed[name]
                return torch.where(dead, bias.to(y), random)

            probe.run(read, replace, mapped(probe.inputs, partial(noise, scale=scale)))
        return found

    marked, random = extent((torch.nan,)), extent(_SCALES)
    values = {}
    for name in random:
        sure, likely = (_equal(*found[name][:2]) for found in (marked, random))
        many = random[name][2] >= _SAMPLES
        values[name] = torch.where(sure.isnan() & many, likely, sure)
    return values


def _equal(low: Tensor, high: Tensor) -> Tensor:
    """What two bounds have in common; NaN if they differ."""
    equal = high - low <= _ROUNDING * torch.maximum(high.abs(), low.abs())
    return torch.where(equal, (low + high) / 2, torch.nan)


def _zero_rows(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Which outputs have only zero weights, and the biases."""
    weight = by_output(module)
    bias = getattr(module, "bias", None)
    return (weight == 0).all(1), torch.zeros_like(weight[:, 0]) if bias is None else bias.detach()


def fold(module: nn.Module, values: Tensor, at: Tensor) -> bool:
    """Move constant inputs of a layer to its bias.

    Args:
        module: Resizable; it gets new tensors.
        values: (inputs,), see `constants`.
        at: int64, the inputs that may be changed.

    Returns:
        Whether anything changed. The columns that moved are zero.
    """
    columns = by_input(module)
    moving = torch.zeros_like(values, dtype=torch.bool)
    moving[at] = True
    moving &= values.isfinite() & ~columns.eq(0).flatten(1).all(1)
    if pads(module):
        moving &= values == 0
    if not bool(moving.any()):
        return False
    shift = torch.einsum("i,iok->o", values[moving].double(), columns[moving].double())
    if bool(shift.any()):
        add_bias(module, shift)
    set_columns(module, moving, torch.zeros_like(columns[moving]))
    return True


def merge(module: nn.Module, values: Tensor, representative: Tensor, others: Tensor) -> None:
    """Let one unit's constant inputs of a layer stand for those of other units as well.

    Args:
        module: Resizable; it gets new tensors.
        values: (inputs,), see `constants`.
        representative: int64 (k,), the inputs that stay; one is zero only where no other is read.
        others: int64 (units, k), the inputs that become zero columns.
    """
    columns = by_input(module).clone()
    share = (values[others].double() / values[representative].double()).nan_to_num(0.0, 0.0, 0.0)
    more = torch.einsum("uk,ukop->kop", share, columns[others].double())
    columns[representative] = (columns[representative].double() + more).to(columns.dtype)
    columns[others.flatten()] = 0
    set_columns(module, torch.ones(len(columns), dtype=torch.bool), columns)


def pads(module: nn.Module) -> bool:
    """Whether a layer's inputs are not constant beyond the border."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    # `padding` may be a string, and "same" pads unless the kernel is one pixel.
    padding = module.padding
    none = padding == "valid" or (isinstance(padding, tuple) and not any(padding))
    return not none and set(module.kernel_size) != {1}


def set_columns(module: nn.Module, which: Tensor, columns: Tensor) -> None:
    """Replace some of a layer's columns: (inputs, outputs, positions of the kernel)."""
    weight = parameter(module, "weight").clone()
    view = weight if is_conv1d(module) else weight.transpose(0, 1)
    view[which] = columns.reshape(view[which].shape)
    put(module, "weight", weight)


def set_rows_to_zero(module: nn.Module, at: Tensor) -> bool:
    """Replace some of a layer's rows and their biases by zero; return whether they were not."""
    if not bool(by_output(module)[at].any()):
        return False
    weight = parameter(module, "weight").clone()
    (weight.T if is_conv1d(module) else weight)[at] = 0
    put(module, "weight", weight)
    if getattr(module, "bias", None) is not None:
        put(module, "bias", parameter(module, "bias").index_fill(0, at.to(weight.device), 0))
    return True
