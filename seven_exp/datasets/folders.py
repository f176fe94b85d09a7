"""Folders of images, one subfolder per class: small sets held in memory, or ImageNet streamed."""

import hashlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seven_exp.datasets.batches import (
    Data,
    InMemory,
    batches_an_epoch,
    epoch_seed,
    shift_and_mirror,
)
from seven_exp.datasets.cache import cached_tensors
from seven_exp.datasets.registry import dataset
from seven_exp.datasets.transforms import Pipeline, applied, drawn_from
from seven_exp.tasks import Batch

log = logging.getLogger(__name__)

_VERSION = 2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of torchvision's pretrained weights."""


def _splits(data_dir: str) -> list[Path]:
    """The folders of train, test and, if there is one, validation; val alone is the test split.

    Raises:
        ValueError: A folder is missing or empty, or their classes differ: class indices, which are
            the folders' ranks, would then have different meanings.
    """
    root = Path(data_dir).expanduser()

    def classes(name: str) -> set[str]:
        folder = root / name
        return {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set()

    found = {name: own for name in ("train", "test", "val") if (own := classes(name))}
    for names in (("train",), ("test", "val")):
        if found.keys().isdisjoint(names):
            raise ValueError(
                f"dataset.data_dir is '{data_dir}': no folder {' or '.join(names)} there with one "
                "sub-folder of images for each class"
            )
    for name, own in found.items():
        if odd := sorted(found["train"] ^ own):
            raise ValueError(
                f"dataset.data_dir is '{data_dir}': train and {name} must have the same "
                f"classes: {odd[0]} is in one of them only"
            )
    return [root / name for name in found]


def _open(folder: Path, transform: Callable[..., Tensor]) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder, transform, loader=_read)
    except FileNotFoundError as error:
        raise ValueError(f"dataset.data_dir: {folder}: {error}") from error


def _read(path: str) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return in_colour(image)


def in_colour(image: Any) -> Any:
    """A PIL image as RGB with 8 bits a channel.

    Raises:
        OSError: Its values have no defined white.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off everything above 255.
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise OSError(f"its pixels have 32 bits (mode {image.mode}): convert it to 8 or 16")
    return image.convert("RGB")


def _check_image_folder(*, data_dir: str, **_: object) -> None:
    _splits(data_dir)


def _shape(data_dir: str, image_size: int, **_: object) -> dict[str, int]:
    classes = sum(path.is_dir() for path in _splits(data_dir)[0].iterdir())
    return {"num_classes": classes, "image_size": image_size, "channels": 3}


@dataset("image_folder", check=_check_image_folder, known_by="files", shape=_shape)
def image_folder(
    *,
    batch_size: int,
    seed: int,
    data_dir: str,
    image_size: int,
    augment: bool,
    cache_dir: str,
) -> Data:
    """``train/CLASS/*``, ``test/CLASS/*`` and ``val/CLASS/*`` (or train and val), decoded once."""
    from torchvision.transforms import v2

    decode = v2.Compose([v2.ToImage(), v2.Resize((image_size, image_size), antialias=True)])

    def read(source: Any, seed: int | None) -> InMemory:
        return InMemory(
            _decoded(source, image_size, Path(cache_dir) / "images"),
            torch.tensor(source.targets),
            IMAGENET_MEAN,
            IMAGENET_STD,
            batch_size,
            seed,
            augment=shift_and_mirror if augment and seed is not None else None,
        )

    train, test, *more = (_open(folder, decode) for folder in _splits(data_dir))
    return Data(
        read(train, seed),
        read(test, None),
        len(train.classes),
        image_size,
        3,
        validation=read(more[0], None) if more else None,
    )


def _decoded(source: Any, size: int, cache: Path) -> Tensor:
    """All images of a folder, uint8 (n, 3, size, size); cached as long as its files do not change.

    Raises:
        ValueError: A file is not an image; the message names it.
    """
    seen = [Path(name).stat() for name, _ in source.samples]
    files = [
        (name, stat.st_size, stat.st_mtime_ns)
        for (name, _), stat in zip(source.samples, seen, strict=True)
    ]
    key = hashlib.sha256(json.dumps([_VERSION, size, files]).encode()).hexdigest()[:24]

    def decode() -> dict[str, Tensor]:
        images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
        for i, (name, *_) in enumerate(files):
            try:
                images[i], _ = source[i]
            except OSError as error:
                raise ValueError(f"dataset.data_dir: can't read {name}: {error}") from error
        return {"images": images}

    return cached_tensors(cache, key, decode)["images"]


@dataclass(frozen=True)
class Streamed:
    """A torchvision data set read by worker processes.

    Attributes:
        source: Images as normalised tensors, with their class.
        batch_size: Images per batch.
        workers: Number of decoding processes; 0: this process decodes.
        seed: None keeps the order and everything; a number shuffles and drops the last batch.
        plain: The same images without augmentation; None: ``source``.
        finish: Applied to each image of ``source`` after ``transforms.pixels``; None: nothing.
        transforms: Of training images.
    """

    source: Any
    batch_size: int
    workers: int
    seed: int | None = None
    plain: Any = None
    finish: Callable[[Any], Tensor] | None = None
    transforms: Pipeline | None = None

    @property
    def examples(self) -> int:
        """Number of examples in the split."""
        return len(self.source)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return batches_an_epoch(len(self.source), self.batch_size, self.seed)

    @property
    def strata(self) -> Tensor:
        """The classes."""
        return torch.tensor(_targets(self.source))

    def divided(self, held_out: Tensor) -> tuple["Streamed", "Streamed"]:
        """The other images for training; and these for evaluation: in order, not augmented."""
        kept = torch.ones(len(self.source), dtype=torch.bool)
        kept[held_out] = False
        part, plain = torch.utils.data.Subset, self.source if self.plain is None else self.plain
        train = replace(self, source=part(self.source, kept.nonzero()[:, 0].tolist()), plain=None)
        return train, replace(self, source=part(plain, held_out.tolist()), plain=None, seed=None)

    def transformed(self, pipeline: Pipeline) -> "Streamed":
        """The same batches with these transforms."""
        return replace(self, transforms=pipeline)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index`` from number ``start`` on, whichever process decodes them.

        If a worker dies (out of memory, killed), new ones continue at the same batch.

        Raises:
            RuntimeError, EOFError, OSError: It dies again before a batch is finished.
        """
        seed = epoch_seed(self.seed or 0, index)
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(len(self.source))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=generator)
        order = order[: len(self) * self.batch_size]
        done, died_at = start, -1
        while True:
            loader = torch.utils.data.DataLoader(
                _Repeatable(self.source, seed, self.finish, self.transforms or Pipeline()),
                batch_size=self.batch_size,
                sampler=order[done * self.batch_size :].tolist(),
                num_workers=self.workers,
                generator=generator,
                pin_memory=torch.cuda.is_available(),
            )
            supply = iter(loader)
            if self.workers:
                _leave_deaths_to_the_loader()
            try:
                for batch in supply:
                    if self.transforms is not None:
                        with drawn_from(epoch_seed(seed, done)):
                            batch = self.transforms.on_batch(*batch)
                    yield batch
                    done += 1
                return
            except (RuntimeError, EOFError, OSError) as error:
                if not (self.workers and _is_death(error)) or died_at == done:
                    raise
                died_at = done
                log.warning("a worker that reads images died: new ones continue at batch %d", done)


def _targets(source: Any) -> list[int]:
    """The classes of a torchvision data set, or of a part of it."""
    if isinstance(source, torch.utils.data.Subset):
        whole = _targets(source.dataset)
        return [whole[i] for i in source.indices]
    targets: list[int] = source.targets
    return targets


def _is_death(error: BaseException) -> bool:
    """Whether an error says that a worker died, not that it hit an error."""
    words = str(error)
    if "Caught" in words:
        return False
    # A batch that a dead worker has sent is lost if it was not received.
    gone = isinstance(error, EOFError | ConnectionError | FileNotFoundError)
    return gone or "DataLoader worker" in words


def _leave_deaths_to_the_loader() -> None:
    """Undo torch's handler, which raises a worker's death anywhere in this process.

    The loader itself checks for dead workers while waiting, when no step is interrupted.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@dataclass(frozen=True)
class _Repeatable(torch.utils.data.Dataset[Any]):
    """An epoch's images, each augmented with its own random numbers in any process."""

    source: Any
    seed: int
    finish: Callable[[Any], Tensor] | None
    transforms: Pipeline

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        # torchvision draws from the process's generator, which the model also uses.
        with drawn_from(epoch_seed(self.seed, index)):
            image, target = self.source[index]
            image = applied(self.transforms.pixels, image)
            if self.finish is not None:
                image = self.finish(image)
            return applied(self.transforms.normalised, image), target


def _check_imagenet(*, data_dir: str, workers: int, **_: object) -> None:
    if workers < 0:
        raise ValueError(f"dataset.workers is {workers}: choose 0 or more")
    _splits(data_dir)


@dataset("imagenet", check=_check_imagenet, known_by="files", shape=_shape)
def imagenet(
    *, batch_size: int, seed: int, data_dir: str, image_size: int, augment: bool, workers: int
) -> Data:
    """ImageNet-1k or a set in its layout: ``train/`` and ``val/`` with a subfolder per class.

    If there is also a ``test/`` with classes, that is the test split, and ``val/`` is validation.
    """
    from torchvision.transforms import v2

    finish = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    # The usual 224 of 256: the central seven eighths.
    centre = [v2.Resize(image_size * 8 // 7, antialias=True), v2.CenterCrop(image_size)]
    varied = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
    folders = _splits(data_dir)
    whole = v2.Compose([*centre, v2.ToImage()])
    train = _open(folders[0], v2.Compose([*(varied if augment else centre), v2.ToImage()]))
    test, *more = (
        Streamed(_open(folder, whole), batch_size, workers, finish=finish) for folder in folders[1:]
    )
    return Data(
        Streamed(train, batch_size, workers, seed, _open(folders[0], whole), finish),
        test,
        len(train.classes),
        image_size,
        3,
        validation=more[0] if more else None,
    )
