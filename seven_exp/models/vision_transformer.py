"""torchvision's VisionTransformer: a tiny one for laptops, and ViT-B."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from seven_exp.models.first_layer import adapt_channels
from seven_exp.models.loading import load_state
from seven_exp.models.pretrained import imagenet_state
from seven_exp.models.registry import MODELS
from seven_exp.models.stochastic_depth import set_stochastic_depth


def _check_patches(image_size: int, patch_size: int) -> None:
    if image_size % patch_size:
        fitting = [p for p in range(1, image_size + 1) if image_size % p == 0]
        near = min(fitting, key=lambda p: abs(p - patch_size))
        raise ValueError(
            f"model.patch_size is {patch_size}: images of {image_size}x{image_size} can't be cut "
            f"into such patches; the nearest valid choice is {near}"
        )


def wake_head(model: nn.Module) -> None:
    """Initialise the head of a ViT.

    torchvision initialises it to zero. The first gradients of all other weights then vanish, and
    pruning at initialisation has no evidence.
    """
    from torchvision.models import VisionTransformer

    if isinstance(model, VisionTransformer):
        nn.init.trunc_normal_(model.get_parameter("heads.head.weight"), std=0.02)


def fit_positions(
    model: nn.Module, image_size: int, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict of a ViT with position embeddings for images of this size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = model.get_submodule("conv_proj").kernel_size
    assert isinstance(patch, tuple)
    return dict(interpolate_embeddings(image_size, patch[0], OrderedDict(state)))


@MODELS.register("vit_tiny")
def vit_tiny(  # noqa: PLR0913  each keyword is a key of conf/model
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    patch_size: int = 4,
    depth: int = 4,
    width: int = 64,
    heads: int = 4,
    mlp_width: int = 128,
    dropout: float = 0.0,
    stochastic_depth: float | None = None,
) -> nn.Module:
    """A small ViT: on 8x8 digits of four patches, on 32x32 images of sixty-four."""
    from torchvision.models import VisionTransformer

    sizes = {
        **{"patch_size": patch_size, "depth": depth, "width": width},
        **{"heads": heads, "mlp_width": mlp_width},
    }
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"model.{key} is {value}: choose 1 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"model.dropout is {dropout}: choose from 0 up to, not including, 1")
    _check_patches(image_size, patch_size)
    if width % heads:
        raise ValueError(f"model.width is {width}: not a multiple of model.heads, {heads}")
    model = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=mlp_width,
        dropout=dropout,
        num_classes=num_classes,
    )
    adapt_channels(model, "conv_proj", channels)
    if stochastic_depth is not None:
        set_stochastic_depth(model, "vit_tiny", stochastic_depth)
    wake_head(model)
    assert isinstance(model, nn.Module)
    return model


def _vit_b(
    name: str,
    num_classes: int,
    image_size: int,
    channels: int,
    pretrained: bool,
    stochastic_depth: float | None,
) -> nn.Module:
    from torchvision import models

    _check_patches(image_size, int(name.rpartition("_")[2]))
    model: nn.Module = getattr(models, name)(image_size=image_size, num_classes=num_classes)
    wake_head(model)
    if pretrained:
        state = fit_positions(model, image_size, imagenet_state(name))
        load_state(model, state, f"torchvision's {name}")
    adapt_channels(model, "conv_proj", channels)
    if stochastic_depth is not None:
        set_stochastic_depth(model, name, stochastic_depth)
    return model


@MODELS.register("vit_b_16")
def vit_b_16(
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    pretrained: bool = True,
    stochastic_depth: float | None = None,
) -> nn.Module:
    """ViT-B/16 (Dosovitskiy et al., arXiv 2010.11929)."""
    return _vit_b("vit_b_16", num_classes, image_size, channels, pretrained, stochastic_depth)


@MODELS.register("vit_b_32")
def vit_b_32(
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    pretrained: bool = True,
    stochastic_depth: float | None = None,
) -> nn.Module:
    """ViT-B/32."""
    return _vit_b("vit_b_32", num_classes, image_size, channels, pretrained, stochastic_depth)
