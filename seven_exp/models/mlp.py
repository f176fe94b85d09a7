"""A multi-layer perceptron."""

from collections import OrderedDict

from torch import nn

from seven_exp.models.registry import MODELS


@MODELS.register("mlp")
def mlp(num_classes: int, image_size: int, channels: int, *, widths: list[int]) -> nn.Module:
    """Linear layers of the given hidden widths with GELU between them; the last is the head."""
    if not widths or min(widths) < 1:
        raise ValueError(f"model.widths is {widths}: give at least one width of 1 or more")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = channels * image_size**2
    for i, width in enumerate(widths):
        layers[f"hidden{i}"] = nn.Linear(inputs, width)
        layers[f"gelu{i}"] = nn.GELU()
        inputs = width
    layers["head"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(layers)
