"""Folders of images, one sub-folder a class: any small set held in memory, or ImageNet streamed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seven_exp.datasets.batches import Batch, Data, InMemory, epoch_seed, shift_and_mirror
from seven_exp.datasets.registry import dataset

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As torchvision's pretrained weights expect."""


def _split_folder(data_dir: str, *names: str) -> Path:
    for name in names:
        if (Path(data_dir) / name).is_dir():
            return Path(data_dir) / name
    raise ValueError(
        f"dataset.data_dir is '{data_dir}': no folder {' or '.join(names)} there, with one "
        "sub-folder of images for each class"
    )


def _check_folders(*, data_dir: str, **_: object) -> None:
    _split_folder(data_dir, "train")
    _split_folder(data_dir, "test", "val")


@dataset("image_folder", check=_check_folders)
def image_folder(
    *, batch_size: int, seed: int, data_dir: str, image_size: int, augment: bool
) -> Data:
    """``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/``), decoded once, as RGB."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    decode = v2.Compose([v2.ToImage(), v2.Resize((image_size, image_size), antialias=True)])
    splits, classes = [], []
    for folder, train in (
        (_split_folder(data_dir, "train"), True),
        (_split_folder(data_dir, "test", "val"), False),
    ):
        source = ImageFolder(folder, decode)
        images = torch.empty((len(source), 3, image_size, image_size), dtype=torch.uint8)
        for i, (image, _) in enumerate(source):
            images[i] = image
        classes.append(source.classes)
        split = InMemory(
            images,
            torch.tensor(source.targets),
            IMAGENET_MEAN,
            IMAGENET_STD,
            batch_size,
            seed=seed if train else None,
            augment=shift_and_mirror if train and augment else None,
        )
        splits.append(split)
    if classes[0] != classes[1]:
        raise ValueError(f"dataset.data_dir is '{data_dir}': its two splits have other classes")
    return Data(splits[0], splits[1], len(classes[0]), image_size, 3)


@dataclass(frozen=True)
class Streamed:
    """A torchvision data set read by worker processes.

    Attributes:
        source: Images as normalised tensors, with their class.
        batch_size: Images a batch.
        workers: Processes that decode.
        seed: None keeps the order and everything; a number shuffles and drops the last batch.
    """

    source: Any
    batch_size: int
    workers: int
    seed: int | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.source), self.batch_size)
        return full if self.seed is not None and full else full + (rest > 0)

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch ``index``."""
        generator = torch.Generator()
        order = torch.arange(len(self.source))
        if self.seed is not None:
            generator.manual_seed(epoch_seed(self.seed, index))
            order = torch.randperm(len(order), generator=generator)
        order = order[: len(self) * self.batch_size]
        # Workers draw their seeds, and with them all augmentation, from the generator.
        yield from torch.utils.data.DataLoader(
            self.source,
            batch_size=self.batch_size,
            sampler=order.tolist(),
            num_workers=self.workers,
            generator=generator,
            pin_memory=torch.cuda.is_available(),
        )


@dataset("imagenet", check=_check_folders)
def imagenet(
    *, batch_size: int, seed: int, data_dir: str, image_size: int, augment: bool, workers: int
) -> Data:
    """ImageNet-1k or a set in its layout: ``train/`` and ``val/`` with a sub-folder a class."""
    if workers < 1:
        # In the main process augmentation would draw from, and disturb, the model's own numbers.
        raise ValueError(f"dataset.workers is {workers}: choose 1 or more")
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    finish = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    # The customary 224 of 256: the central seven eighths.
    centre = [v2.Resize(image_size * 8 // 7, antialias=True), v2.CenterCrop(image_size)]
    varied = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
    train = ImageFolder(
        _split_folder(data_dir, "train"), v2.Compose([*(varied if augment else centre), *finish])
    )
    test = ImageFolder(_split_folder(data_dir, "val", "test"), v2.Compose([*centre, *finish]))
    return Data(
        Streamed(train, batch_size, workers, seed),
        Streamed(test, batch_size, workers),
        len(train.classes),
        image_size,
        3,
    )
