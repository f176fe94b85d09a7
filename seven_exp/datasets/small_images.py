"""Fashion-MNIST, CIFAR-10 and CIFAR-100: torchvision's classes, held in memory."""

from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from seven_exp.datasets.batches import Data, InMemory, shift_and_mirror
from seven_exp.datasets.registry import dataset
from seven_exp.files.locks import held
from seven_exp.messages import one_line


def _torchvision(  # noqa: PLR0913  each is a fact of the set
    name: str,
    kind: str,
    *,
    archives: str,
    unpacked: str,
    train_size: int,
    classes: int,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Register one of torchvision's data sets whose images all have one size.

    Args:
        name: What users write.
        kind: torchvision's class.
        archives: The publisher's archives, below ``data_dir``; for messages.
        unpacked: A file below ``data_dir`` once these are unpacked.
        train_size: Number of training images.
        classes: Number of classes.
        side: Of the images, in pixels.
        mean: Of the training images scaled to [0, 1], one number per channel.
        std: One number per channel.
    """

    def missing(data_dir: str, reason: str) -> ValueError:
        return ValueError(
            f"dataset.data_dir is '{data_dir}': {reason}; dataset.download=true downloads it, or "
            f"put the publisher's {Path(data_dir) / archives} there by hand"
        )

    def check(*, data_dir: str, download: bool, **_: object) -> None:
        file = Path(data_dir).expanduser() / unpacked
        if not download and not file.is_file():
            raise missing(data_dir, f"{kind} is not there, no file {file}")

    def read(data_dir: str, train: bool, download: bool) -> Any:
        from torchvision import datasets

        make, root = getattr(datasets, kind), Path(data_dir).expanduser()
        try:
            try:
                return make(root, train)
            except RuntimeError:
                if not download:
                    raise
            root.mkdir(parents=True, exist_ok=True)
            # The runs of a sweep start together: one downloads, the others find its files.
            with held(FileLock(root / f".{name}.lock")):
                return make(root, train, download=True)
        except (OSError, RuntimeError, ValueError) as error:
            reason = one_line(error)
            raise missing(data_dir, f"{kind} can't be loaded ({reason})") from error
        except Exception as error:
            # torchvision raises different errors when it unpickles a damaged file.
            folder = (root / unpacked).parent
            raise missing(data_dir, f"{kind} is damaged, remove its files in {folder}") from error

    def shape(image_size: int | None, **_: object) -> dict[str, int]:
        size = image_size or side
        return {"num_classes": classes, "image_size": size, "channels": len(mean)}

    @dataset(name, train_size=train_size, check=check, known_by="name", shape=shape)
    def load(
        *,
        batch_size: int,
        seed: int,
        data_dir: str,
        download: bool,
        augment: bool,
        image_size: int | None,
    ) -> Data:
        splits = []
        for train in (True, False):
            source = read(data_dir, train, download)
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
    archives="FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    unpacked="FashionMNIST/raw/train-images-idx3-ubyte",
    train_size=60_000,
    classes=10,
    side=28,
    mean=(0.2860,),
    std=(0.3530,),
)

# Krizhevsky 2009: colour 32x32 images.
_torchvision(
    "cifar10",
    "CIFAR10",
    archives="cifar-10-python.tar.gz",
    unpacked="cifar-10-batches-py/batches.meta",
    train_size=50_000,
    classes=10,
    side=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_torchvision(
    "cifar100",
    "CIFAR100",
    archives="cifar-100-python.tar.gz",
    unpacked="cifar-100-python/meta",
    train_size=50_000,
    classes=100,
    side=32,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
