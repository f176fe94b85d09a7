"""Any of timm's classifiers, by the name of its architecture."""

import importlib.util
from typing import Any

from torch import nn

from seven_exp.messages import nearest, one_line
from seven_exp.models.loading import mark_new_head
from seven_exp.models.registry import MODELS, checked_by


@checked_by("timm")
def _check(*, arch: str, **_: object) -> None:
    if importlib.util.find_spec("timm") is None:
        raise ValueError("model.name is 'timm': it needs timm: uv sync --extra vision")
    import timm

    name, tag = arch.partition(".")[::2]
    if not timm.is_model(name):
        raise ValueError(f"model.arch is '{arch}': {nearest(name, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise ValueError(f"model.arch is '{arch}': {name} has weights {nearest(tag, tags)}")


@MODELS.register("timm")
def timm(
    num_classes: int,
    image_size: int,
    channels: int,
    *,
    arch: str,
    pretrained: bool = False,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
) -> nn.Module:
    """A classifier of timm with a head for these classes; ``arch`` may name weights after a dot.

    Raises:
        ValueError: timm is not installed or has no such architecture, its weights can't be
            downloaded, or it does not fit the images or has no such regularisation.
    """
    _check(arch=arch)
    import timm

    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    known = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    if known is not None and known.fixed_input_size:
        arguments["img_size"] = image_size
    if dropout is not None:
        arguments["drop_rate"] = dropout
    if stochastic_depth is not None:
        arguments["drop_path_rate"] = stochastic_depth
    try:
        model: nn.Module = timm.create_model(arch, pretrained=pretrained, **arguments)
    except Exception as error:
        reason = f"{one_line(error):.200}"
        advice = "; model.pretrained=false needs no download" if pretrained else ""
        raise ValueError(f"model.arch is '{arch}': it can't be built ({reason}){advice}") from error
    if pretrained and known is not None and known.num_classes != num_classes:
        mark_new_head(model)
    return model
