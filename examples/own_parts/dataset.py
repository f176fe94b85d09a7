"""A data set: images of stripes, whose class is their direction."""

import torch

from seven_exp.datasets import Data
from seven_exp.datasets.batches import InMemory
from seven_exp.datasets.registry import dataset


def stripes(n: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey images of uint8, (n, 1, size, size), and their classes: 0 level, 1 upright."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.randint(256, (n, 1, 1, size), generator=generator)
    images = line.expand(n, 1, size, size).clone()
    upright = torch.arange(n) % 2 == 1
    images[~upright] = images[~upright].transpose(2, 3)
    return images.to(torch.uint8), upright.long()


@dataset("own_stripes", train_size=512, known_by="name")
def own_stripes(*, batch_size: int, seed: int, image_size: int) -> Data:
    """Validation is taken from train by ``dataset.validation``."""
    splits = [
        InMemory(*stripes(n, image_size, of), (0.5,), (0.29,), batch_size, order)
        for n, of, order in ((512, 0, seed), (128, 1, None))
    ]
    return Data(*splits, num_classes=2, image_size=image_size, channels=1)
