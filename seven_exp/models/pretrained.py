"""torchvision's pretrained weights."""

from torch import Tensor


def imagenet_state(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's default ImageNet weights, downloaded once.

    Raises:
        ValueError: They can't be downloaded; the message says what to do instead.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise ValueError(
            f"model.pretrained is true: {name}'s weights can't be downloaded ({error}); give a "
            "file by model.checkpoint=PATH model.pretrained=false"
        ) from error
