"""torchvision's ResNets."""

from typing import Literal

from torch import nn

from seven_exp.models.first_layer import adapt_channels
from seven_exp.models.loading import load_state
from seven_exp.models.pretrained import imagenet_state
from seven_exp.models.registry import MODELS

Stem = Literal["imagenet", "cifar"]


def _resnet(name: str, num_classes: int, channels: int, pretrained: bool, stem: Stem) -> nn.Module:
    from torchvision import models

    model: nn.Module = getattr(models, name)(num_classes=num_classes)
    if pretrained and stem == "cifar":
        raise ValueError("model.stem is 'cifar': pretrained weights have the imagenet stem")
    if pretrained:
        load_state(model, imagenet_state(name), f"torchvision's {name}")
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    adapt_channels(model, "conv1", channels)
    return model


@MODELS.register("resnet18")
def resnet18(
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    pretrained: bool = False,
    stem: Stem = "imagenet",
) -> nn.Module:
    """ResNet-18 (He et al., arXiv 1512.03385); stem "cifar": 3x3, stride 1, no pooling."""
    return _resnet("resnet18", num_classes, channels, pretrained, stem)


@MODELS.register("resnet50")
def resnet50(
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    pretrained: bool = False,
    stem: Stem = "imagenet",
) -> nn.Module:
    """ResNet-50."""
    return _resnet("resnet50", num_classes, channels, pretrained, stem)
