"""A model: convolutions that keep the size of the images."""

from torch import nn

from seven_exp.models import MODELS


@MODELS.register("own_net")
def own_net(num_classes: int, image_size: int, channels: int, *, width: int = 16) -> nn.Module:
    """Two convolutions, global pooling and a head; ``width`` is a key of the YAML."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )
