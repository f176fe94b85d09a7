"""Whether a model reads the images of a data set."""

import torch
from torch import nn

from seven_exp.messages import one_line


def check_images(model: nn.Module, arch: str, channels: int, size: int) -> None:
    """Run the model once on a blank image; its mode and the random numbers do not change.

    Raises:
        ValueError: It fails, usually because the image is too small.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model(torch.zeros(1, channels, size, size, device=device))
    except Exception as error:
        reason = f"{one_line(error):.120}"
        raise ValueError(
            f"model.arch is '{arch}': it can't read images of {channels}x{size}x{size} ({reason}): "
            "choose larger images, such as dataset.image_size=224, or another architecture"
        ) from error
    finally:
        model.train(training)
