"""Whether a model reads the images of a data set, and returns logits of its classes."""

import torch
from torch import Tensor, nn

from seven_exp.messages import one_line


def check_images(
    model: nn.Module, what: str, *, num_classes: int, channels: int, image_size: int
) -> None:
    """Run the model once on a blank image; its mode and the random numbers do not change.

    Args:
        model: Takes (1, channels, image_size, image_size).
        what: Its key and value in the config.
        num_classes: Logits that it must return.
        channels: Channels of the images.
        image_size: Pixels a side.

    Raises:
        ValueError: It fails, usually because the image is too small, or returns something else.
    """
    training, like = model.training, next(model.parameters())
    image = torch.zeros(1, channels, image_size, image_size, device=like.device, dtype=like.dtype)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            outputs = model(image)
    except Exception as error:
        raise ValueError(
            f"{what}: it can't read images of {channels}x{image_size}x{image_size} "
            f"({one_line(error):.120}): choose larger images, such as dataset.image_size=224, or "
            "another model"
        ) from error
    finally:
        model.train(training)
    logits = getattr(outputs, "logits", outputs)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(
            f"{what}: for one image it must return logits of shape {(1, num_classes)}, one for "
            f"each class of the data, and returns {shape}"
        )
