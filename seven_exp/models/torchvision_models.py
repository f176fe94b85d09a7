"""Any of torchvision's classifiers, by the name of its architecture."""

from typing import Any

from torch import nn

from seven_exp.messages import nearest, one_line
from seven_exp.models.first_layer import adapt_channels, first_convolution
from seven_exp.models.loading import load_state
from seven_exp.models.pretrained import imagenet_state
from seven_exp.models.registry import MODELS, checked_by
from seven_exp.models.stochastic_depth import set_dropout, set_stochastic_depth
from seven_exp.models.vision_transformer import fit_positions, wake_head


@checked_by("torchvision")
def _check(*, arch: str, **_: object) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        raise ValueError(f"model.arch is '{arch}': {nearest(arch, names)}")


@MODELS.register("torchvision")
def torchvision(
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    arch: str,
    pretrained: bool = False,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
) -> nn.Module:
    """A classifier of torchvision with a head for these classes.

    Raises:
        ValueError: There is no such architecture, it can't read images of this size, or it has no
            such regularisation.
    """
    _check(arch=arch)
    from torchvision import models

    arguments: dict[str, Any] = {"num_classes": num_classes}
    if arch.startswith("vit_"):
        arguments["image_size"] = image_size
    elif arch.startswith("maxvit"):
        arguments["input_size"] = (image_size, image_size)
    elif arch in ("googlenet", "inception_v3"):
        # Auxiliary classifiers would return more than the logits. Published weights read
        # differently scaled images.
        arguments |= {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
    try:
        model: nn.Module = models.get_model(arch, **arguments)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"model.arch is '{arch}': it can't be built for images of {image_size}x{image_size} "
            f"pixels ({one_line(error):.100})"
        ) from error
    wake_head(model)
    if pretrained:
        state = imagenet_state(arch)
        if arch.startswith("vit_"):
            state = fit_positions(model, image_size, state)
        kept = {name: w for name, w in state.items() if not name.lower().startswith("aux")}
        load_state(model, kept, f"torchvision's {arch}")
    adapt_channels(model, first_convolution(model), channels)
    if dropout is not None:
        set_dropout(model, arch, dropout)
    if stochastic_depth is not None:
        set_stochastic_depth(model, arch, stochastic_depth)
    return model
