"""Adapts a model for colour images to grey ones."""

import torch
from torch import nn


def first_convolution(model: nn.Module) -> str:
    """The name of the convolution that reads the images.

    Raises:
        ValueError: No convolution reads three channels.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return str(name)
    raise ValueError("the model has no convolution that reads colour images")


def adapt_channels(model: nn.Module, name: str, channels: int) -> None:
    """Replace the first convolution by one over ``channels``, its kernels summed over colours.

    On a grey image the sum equals the old result on three equal channels.

    Args:
        model: Changed in place.
        name: Name of the convolution.
        channels: Channels of the images; 3 changes nothing.
    """
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if channels == old.in_channels:
        return
    if channels != 1:
        raise ValueError(f"images of {channels} channels: choose a data set of grey or colour ones")
    # The class types these attributes as tuples of any length, but takes pairs alone.
    new = nn.Conv2d(
        1,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(old.weight.sum(dim=1, keepdim=True))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
