"""A small model of each family of torchvision: half of its units go, the outputs stay."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import (  # fmt: skip
    convnext,
    densenet,
    efficientnet,
    maxvit,
    mnasnet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    shufflenetv2,
    squeezenet,
    swin_transformer,
    vgg,
    vision_transformer,
)

from seven_exp.shrink import fit, shrink
from seven_exp.shrink.coupling import coupled


def mobilenet_v3():
    config = partial(mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [
        config(16, 3, 16, 16, True, "RE", stride=2),
        config(16, 3, 32, 16, True, "HS", stride=1),
    ]
    return mobilenetv3.MobileNetV3(settings, 64)


def efficient_net():
    config = efficientnet.MBConvConfig
    return efficientnet.EfficientNet(
        [config(1, 3, 1, 32, 16, 1), config(4, 3, 2, 16, 24, 2)], dropout=0.1, last_channel=64
    )


def reg_net():
    params = regnet.BlockParams.from_init_params(4, 16, 8.0, 2.0, 8, se_ratio=0.25)
    return regnet.RegNet(params, num_classes=10)


def vgg_bn():
    model = vgg.VGG(vgg.make_layers([8, "M", 16, "M", 16], batch_norm=True), init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(16 * 49, 24), nn.ReLU(), nn.Linear(24, 10))
    return model


def conv_next():
    config = convnext.CNBlockConfig
    return convnext.ConvNeXt([config(16, 32, 1), config(32, None, 1)], layer_scale=0.5)


def max_vit():
    return maxvit.MaxVit(
        (32, 32), 8, 4, [16, 32], [1, 1], 8, stochastic_depth_prob=0.0, num_classes=10
    )


FAMILIES = {
    "resnet": lambda: resnet.ResNet(resnet.BasicBlock, [1, 2, 1, 1], 10),
    "resnext": lambda: resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], 10, groups=4, width_per_group=4
    ),
    "densenet": lambda: densenet.DenseNet(8, (2, 2), 16, num_classes=10),
    "mobilenet_v2": lambda: mobilenetv2.MobileNetV2(
        10, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    ),
    "mobilenet_v3": mobilenet_v3,
    "efficientnet": efficient_net,
    "shufflenet": lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], 10),
    "mnasnet": lambda: mnasnet.MNASNet(0.1, 10),
    "squeezenet": lambda: squeezenet.SqueezeNet("1_1", 10),
    "regnet": reg_net,
    "vgg": vgg_bn,
    "convnext": conv_next,
    "vit": lambda: vision_transformer.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=10),
    "swin": lambda: swin_transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4]),
    "maxvit": max_vit,
}


PARTLY = ("shufflenet", "mnasnet")
"""Families in which some units stay that could go."""


@torch.no_grad()
def half_pruned(model, units):
    """Zero all rows of every second unit, as a pruner does: biases and norms keep their values."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.3)
        elif not parameter.any():
            parameter.normal_(std=0.1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    for unit in units[::2]:
        for name, at in [*unit.of("rows"), *unit.of("channels")]:
            weight = model.get_submodule(name).weight
            if weight.dim() > 1:
                weight[list(at)] = 0.0
    return model


@torch.no_grad()
def is_smaller_and_equal(model, inputs, *, partly):
    units = coupled(model.eval(), inputs)
    assert units
    half_pruned(model, units)
    small, loaded = copy.deepcopy(model), copy.deepcopy(model)
    shrunk = shrink(small, inputs)
    others = torch.randn_like(inputs)
    whole = model(others)
    largest = whole.abs().max()
    assert (small(others) - whole).abs().max() <= 2e-5 * largest
    fit(loaded, small.state_dict())
    assert torch.equal(loaded(others), small(others))
    # In front of padding one constant unit stays for all that belong to the same layers.
    kinds = {unit.ports for unit in units}
    least = len(units[::2]) // 2 if partly else len(units[::2]) - len(kinds)
    assert sum(part.before - part.after for part in shrunk) >= least
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_torchvision(family):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 32, 32)
    is_smaller_and_equal(FAMILIES[family](), inputs, partly=family in PARTLY)
