"""Folders of images, one sub-folder a class: any small set held in memory, or ImageNet streamed."""

import hashlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from seven_exp.tasks import Batch

log = logging.getLogger(__name__)

_VERSION = 1

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As torchvision's pretrained weights expect."""


def _splits(data_dir: str, *test_names: str) -> tuple[Path, Path]:
    """The folders of both splits, the first of ``test_names`` that is there being the second.

    Raises:
        ValueError: One is missing or empty, or their classes differ: class indices, which are
            the folders' ranks, would then mean different things.
    """

    def find(*names: str) -> tuple[Path, set[str]]:
        for name in names:
            folder = Path(data_dir).expanduser() / name
            classes = {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else ()
            if classes:
                return folder, set(classes)
        raise ValueError(
            f"dataset.data_dir is '{data_dir}': no folder {' or '.join(names)} there with one "
            "sub-folder of images for each class"
        )

    (train, classes), (test, test_classes) = find("train"), find(*test_names)
    if odd := sorted(classes ^ test_classes):
        raise ValueError(
            f"dataset.data_dir is '{data_dir}': {train.name} and {test.name} must have the same "
            f"classes: {odd[0]} is in one of them only"
        )
    return train, test


def _open(folder: Path, transform: Callable[..., Tensor]) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder, transform)
    except FileNotFoundError as error:
        raise ValueError(f"dataset.data_dir: {folder}: {error}") from error


def _check_image_folder(*, data_dir: str, **_: object) -> None:
    _splits(data_dir, "test", "val")


@dataset("image_folder", check=_check_image_folder, known_by="files")
def image_folder(
    *,
    batch_size: int,
    seed: int,
    data_dir: str,
    image_size: int,
    augment: bool,
    cache_dir: str,
) -> Data:
    """``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/``) as RGB, decoded once and for all."""
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

    train, test = (_open(folder, decode) for folder in _splits(data_dir, "test", "val"))
    return Data(read(train, seed), read(test, None), len(train.classes), image_size, 3)


def _decoded(source: Any, size: int, cache: Path) -> Tensor:
    """All images of a folder, uint8 (n, 3, size, size); from the cache if its files are the same.

    Raises:
        ValueError: A file is no image; the message names it.
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
        batch_size: Images a batch.
        workers: Processes that decode; 0: this one does.
        seed: None keeps the order and everything; a number shuffles and drops the last batch.
    """

    source: Any
    batch_size: int
    workers: int
    seed: int | None = None

    @property
    def examples(self) -> int:
        """In the split."""
        return len(self.source)

    def __len__(self) -> int:
        """Batches an epoch."""
        return batches_an_epoch(len(self.source), self.batch_size, self.seed)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index`` from the one numbered ``start``, whoever decodes them.

        When a worker dies (out of memory, killed by hand), new ones go on where it was.

        Raises:
            RuntimeError, EOFError, OSError: It dies again before a batch is done.
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
                _Repeatable(self.source, seed),
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
                    yield batch
                    done += 1
                return
            except (RuntimeError, EOFError, OSError) as error:
                if not (self.workers and _is_death(error)) or died_at == done:
                    raise
                died_at = done
                log.warning("a worker that reads images died: new ones go on at batch %d", done)


def _is_death(error: BaseException) -> bool:
    """Whether it says that a worker is gone, not what the worker met with."""
    words = str(error)
    if "Caught" in words:
        return False
    # What it had handed over goes with it, if it was not taken yet.
    gone = isinstance(error, EOFError | ConnectionError | FileNotFoundError)
    return gone or "DataLoader worker" in words


def _leave_deaths_to_the_loader() -> None:
    """Undo torch's handler, which raises a worker's death in whatever this process is at.

    The loader itself looks for dead workers when it waits for them, where no step is cut in two.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@dataclass(frozen=True)
class _Repeatable(torch.utils.data.Dataset[Any]):
    """An epoch's images, each varied by numbers of its own, whichever process decodes it."""

    source: Any
    seed: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        # torchvision draws from the process's generator, which is the model's too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(epoch_seed(self.seed, index))
            return self.source[index]


def _check_imagenet(*, data_dir: str, workers: int, **_: object) -> None:
    if workers < 0:
        raise ValueError(f"dataset.workers is {workers}: choose 0 or more")
    _splits(data_dir, "val", "test")


@dataset("imagenet", check=_check_imagenet, known_by="files")
def imagenet(
    *, batch_size: int, seed: int, data_dir: str, image_size: int, augment: bool, workers: int
) -> Data:
    """ImageNet-1k or a set in its layout: ``train/`` and ``val/`` with a sub-folder a class."""
    from torchvision.transforms import v2

    finish = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    # The customary 224 of 256: the central seven eighths.
    centre = [v2.Resize(image_size * 8 // 7, antialias=True), v2.CenterCrop(image_size)]
    varied = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
    train_folder, test_folder = _splits(data_dir, "val", "test")
    train = _open(train_folder, v2.Compose([*(varied if augment else centre), *finish]))
    test = _open(test_folder, v2.Compose([*centre, *finish]))
    return Data(
        Streamed(train, batch_size, workers, seed),
        Streamed(test, batch_size, workers),
        len(train.classes),
        image_size,
        3,
    )
