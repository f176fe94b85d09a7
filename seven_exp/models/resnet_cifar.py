"""The ResNet of CIFAR pruning papers."""

from collections import OrderedDict

from torch import nn

from seven_exp.models.first_layer import adapt_channels
from seven_exp.models.registry import MODELS


@MODELS.register("resnet20")
def resnet20(num_classes: int, image_size: int, channels: int) -> nn.Module:
    """ResNet-20 (He et al., arXiv 1512.03385, section 4.2), of torchvision's blocks.

    A 3x3 stem, three stages of three blocks at 16, 32 and 64 channels, global pooling. Shortcuts
    between stages are 1x1 convolutions (the paper's option B), as in the lottery ticket papers.
    """
    return _resnet(3, 16, num_classes, channels)


@MODELS.register("resnet32")
def resnet32(num_classes: int, image_size: int, channels: int, *, width: int = 16) -> nn.Module:
    """ResNet-32: five blocks in each stage, the first with ``width`` channels; see `resnet20`."""
    if width < 1:
        raise ValueError(f"model.width is {width}: choose 1 or more")
    return _resnet(5, width, num_classes, channels)


def _resnet(blocks: int, width: int, num_classes: int, channels: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, width, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            layer1=nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))),
        )
    )
    for number in (2, 3):
        width *= 2
        shortcut = nn.Sequential(
            nn.Conv2d(width // 2, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)
        )
        first = BasicBlock(width // 2, width, stride=2, downsample=shortcut)
        rest = (BasicBlock(width, width) for _ in range(blocks - 1))
        model.add_module(f"layer{number}", nn.Sequential(first, *rest))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(width, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    adapt_channels(model, "conv1", channels)
    return model
