"""Fashion-MNIST, CIFAR-10 and CIFAR-100: torchvision's classes, held in memory."""

from pathlib import Path

import torch

from seven_exp.datasets.batches import Data, InMemory, shift_and_mirror
from seven_exp.datasets.registry import dataset


def _torchvision(
    name: str,
    kind: str,
    folder: str,
    *,
    train_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Register one of torchvision's data sets whose images are all of one size.

    Args:
        name: What users write.
        kind: torchvision's class.
        folder: Where its files lie below ``data_dir``.
        train_size: Training images.
        mean: Of the training images scaled to [0, 1], one number a channel.
        std: Likewise.
    """

    def check(*, data_dir: str, download: bool, **_: object) -> None:
        expected = Path(data_dir) / folder
        if not download and not expected.is_dir():
            raise ValueError(
                f"dataset.data_dir is '{data_dir}': no folder {expected}; "
                "put the files there or set dataset.download=true"
            )

    @dataset(name, train_size=train_size, check=check)
    def load(
        *,
        batch_size: int,
        seed: int,
        data_dir: str,
        download: bool,
        augment: bool,
        image_size: int | None,
    ) -> Data:
        import torchvision

        splits = []
        for train in (True, False):
            try:
                source = getattr(torchvision.datasets, kind)(data_dir, train, download=download)
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"dataset.data_dir is '{data_dir}': {kind} is not there and can't be had "
                    f"({error}); put its files into {Path(data_dir) / folder}"
                ) from error
            images = torch.as_tensor(source.data)
            images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
            split = InMemory(
                images.contiguous(),
                torch.as_tensor(source.targets).long(),
                mean,
                std,
                batch_size,
                seed=seed if train else None,
                augment=shift_and_mirror if train and augment else None,
                image_size=image_size,
            )
            splits.append(split)
        size = image_size or splits[0].images.shape[-1]
        return Data(splits[0], splits[1], len(source.classes), size, len(mean))


# Means and deviations are those of the training splits.

# Xiao et al., arXiv 1708.07747: grey 28x28 images of clothes.
_torchvision(
    "fashion_mnist",
    "FashionMNIST",
    "FashionMNIST/raw",
    train_size=60_000,
    mean=(0.2860,),
    std=(0.3530,),
)

# Krizhevsky 2009: colour 32x32 images.
_torchvision(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    train_size=50_000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_torchvision(
    "cifar100",
    "CIFAR100",
    "cifar-100-python",
    train_size=50_000,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
