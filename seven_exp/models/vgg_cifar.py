"""The VGG of CIFAR pruning papers."""

from collections import OrderedDict

from torch import nn

from seven_exp.models.first_layer import adapt_channels
from seven_exp.models.registry import MODELS


@MODELS.register("vgg19")
def vgg19(num_classes: int, image_size: int, channels: int) -> nn.Module:
    """VGG-19 for small images, with batch norms (Simonyan and Zisserman, arXiv 1409.1556).

    torchvision's sixteen convolutions without the last pooling, global pooling, and one Linear in
    place of the three, as in the papers on pruning before training.
    """
    from torchvision.models.vgg import cfgs, make_layers

    model = nn.Sequential(
        OrderedDict(
            features=make_layers(cfgs["E"][:-1], batch_norm=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, num_classes),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    adapt_channels(model, "features.0", channels)
    return model
