"""torchvision's pretrained weights."""

from pathlib import Path

from torch import Tensor, hub


def imagenet_state(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's default ImageNet weights, downloaded once.

    Raises:
        ValueError: They can't be downloaded; the message says what to do instead.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        folder = Path(hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"model.pretrained is true: {name}'s weights can't be downloaded ({error}); put "
            f"{weights.url} into {folder}, or give model.checkpoint=PATH"
        ) from error
