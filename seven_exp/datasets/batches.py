"""Data as batches: each epoch is a pure function of (seed, epoch), so no state is saved."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from seven_exp.datasets.transforms import Pipeline, drawn_from
from seven_exp.tasks import Batch, Classification, Task


class Batches(Protocol):
    """One split."""

    def __len__(self) -> int:
        """Number of batches per epoch."""
        ...

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index`` from number ``start`` on, the same in every call."""
        ...


@runtime_checkable
class Divisible(Batches, Protocol):
    """Training batches from which examples can be held out."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        ...

    @property
    def strata(self) -> Tensor | None:
        """The class of each example, int64 (examples,); None if neighbours belong together.

        Windows of a text do. Without classes, all examples are of one stratum.
        """
        ...

    def divided(self, held_out: Tensor) -> tuple[Batches, Batches]:
        """The other examples for training; and these for evaluation: in order, not augmented.

        Args:
            held_out: Numbers of examples, int64, ascending.
        """
        ...


@dataclass(frozen=True)
class Data:
    """The splits, their task, and what a model must know about them.

    Attributes:
        train: Batches of images, float32 (n, channels, size, size), and class indices, int64 (n,);
            or of other inputs and targets, as the task requires.
        test: The split that is measured once, at the end.
        num_classes: Number of logits.
        image_size: Side of the images.
        channels: 1 (grey) or 3.
        task: The loss and the metrics.
        text: What a text model must know instead of the images' size.
        more: Further test splits, by the suffix of their metrics' names.
        validation: The split that is measured during training, and that choices are made on. A
            data set returns its official one, if it has one.
    """

    train: Batches
    test: Batches
    num_classes: int
    image_size: int = 0
    channels: int = 0
    task: Task = field(default_factory=Classification)
    text: "Text | None" = None
    more: Mapping[str, Batches] = field(default_factory=dict)
    validation: Batches | None = None

    @property
    def for_model(self) -> dict[str, Any]:
        """Arguments for a model's factory."""
        if self.text is not None:
            given = {"num_classes": self.num_classes, "head": self.task.head}
            return given | {name: getattr(self.text, name) for name in ("vocab_size", "max_length")}
        names = ("num_classes", "image_size", "channels")
        return {name: getattr(self, name) for name in names}

    @property
    def test_examples(self) -> int | None:
        """Number of examples that a metric of the test split averages over; None if unknown."""
        return getattr(self.test, "examples", None)

    def shared(self, rank: int, ranks: int) -> "Data":
        """One rank's part of every batch."""
        if ranks == 1:
            return self
        more = {ending: Shared(split, rank, ranks) for ending, split in self.more.items()}
        train, test = (Shared(split, rank, ranks) for split in (self.train, self.test))
        own = self.validation
        validation = None if own is None else Shared(own, rank, ranks)
        return replace(self, train=train, test=test, more=more, validation=validation)


@dataclass(frozen=True)
class Shared:
    """Every ``ranks``-th example of each batch, from number ``rank`` on.

    Augmentation and padding are those of the whole batch, so all parts together equal that batch.
    """

    whole: Batches
    rank: int
    ranks: int

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.whole)

    @property
    def examples(self) -> int | None:
        """Number of examples of all ranks together."""
        return getattr(self.whole, "examples", None)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """This rank's parts of the batches of epoch ``index`` from number ``start`` on."""
        own = slice(self.rank, None, self.ranks)
        for inputs, targets in self.whole.epoch(index, start):
            if isinstance(inputs, Mapping):
                yield {name: values[own] for name, values in inputs.items()}, targets[own]
            else:
                yield inputs[own], targets[own]


@dataclass(frozen=True)
class Text:
    """What a text model must know.

    Attributes:
        vocab_size: Number of tokens of the tokenizer.
        max_length: Number of tokens of the longest sequence.
        pad: The token that pads texts to be classified, which decoders read up to there.
    """

    vocab_size: int
    max_length: int
    pad: int | None = None


Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``augment(images, generator)`` on uint8 or float images (n, channels, size, size)."""


@dataclass(frozen=True)
class InMemory:
    """Images held in memory, normalised batch by batch.

    Attributes:
        images: uint8, (n, channels, size, size).
        targets: int64, (n,).
        mean: One number per channel, of images scaled to [0, 1].
        std: One number per channel.
        batch_size: Images per batch.
        seed: None keeps the order and the last, smaller batch (evaluation); a number shuffles,
            and drops that batch if there is a full one.
        augment: Applied before normalisation.
        white: The pixel value that becomes 1.
        image_size: Side that images are scaled to; None keeps their size.
        transforms: Applied after ``augment``, in training.
    """

    images: Tensor
    targets: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    seed: int | None = None
    augment: Augment | None = None
    white: float = 255.0
    image_size: int | None = None
    transforms: Pipeline | None = None

    def __post_init__(self) -> None:
        """Check that each image has a target.

        Raises:
            ValueError: Their numbers differ.
        """
        if len(self.images) != len(self.targets):
            raise ValueError(
                f"dataset: a split has {len(self.images)} images and {len(self.targets)} targets"
            )

    @property
    def examples(self) -> int:
        """Number of examples in the split."""
        return len(self.targets)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return batches_an_epoch(len(self.targets), self.batch_size, self.seed)

    @property
    def strata(self) -> Tensor:
        """The classes."""
        return self.targets

    def divided(self, held_out: Tensor) -> tuple["InMemory", "InMemory"]:
        """The other images for training; and these for evaluation: in order, not augmented."""
        kept = torch.ones(len(self.targets), dtype=torch.bool)
        kept[held_out] = False
        train = replace(self, images=self.images[kept], targets=self.targets[kept])
        images, targets = self.images[held_out], self.targets[held_out]
        return train, replace(self, images=images, targets=targets, seed=None, augment=None)

    def transformed(self, pipeline: Pipeline) -> "InMemory":
        """The same batches with these transforms."""
        return replace(self, transforms=pipeline)

    def epoch(self, index: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch ``index`` from number ``start`` on."""
        order, generator = torch.arange(len(self.targets)), torch.Generator()
        if self.seed is not None:
            generator.manual_seed(epoch_seed(self.seed, index))
            order = torch.randperm(len(order), generator=generator)
        normalise = self._normaliser()
        for number in range(0 if self.augment is not None else start, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            images = self.images[chosen]
            if self.augment is not None:
                images = self.augment(images, generator)
            if number < start:
                # Skipped batches are augmented, too, because the next batch continues their random
                # numbers.
                continue
            if self.transforms is None:
                yield normalise(images.float()), self.targets[chosen]
                continue
            with drawn_from(epoch_seed(epoch_seed(self.seed or 0, index), number)):
                pixels = self._drawn(self.transforms, images)
                varied = self.transforms.on_images("normalised", normalise(pixels))
                batch = self.transforms.on_batch(varied, self.targets[chosen])
            yield batch

    def _normaliser(self) -> Callable[[Tensor], Tensor]:
        """Scales images to their size, and to mean 0 and deviation 1."""
        shape = (1, -1, 1, 1)
        scale = self.white * torch.tensor(self.std).view(shape)
        shift = torch.tensor(self.mean).view(shape) / torch.tensor(self.std).view(shape)

        def normalise(images: Tensor) -> Tensor:
            if self.image_size is not None:
                side = (self.image_size, self.image_size)
                images = functional.interpolate(images, side, mode="bilinear", antialias=True)
            return images / scale - shift

        return normalise

    def _drawn(self, pipeline: Pipeline, images: Tensor) -> Tensor:
        """The pixels after the transforms for them, which expect white to be 255."""
        if not pipeline.pixels:
            return images.float()
        grown = (images.float() * (255 / self.white)).round().to(torch.uint8)
        return pipeline.on_images("pixels", grown).float() * (self.white / 255)


def batches_an_epoch(examples: int, batch_size: int, seed: int | None) -> int:
    """Number of batches; with a seed, a smaller last one counts only if it is the only one."""
    full, rest = divmod(examples, batch_size)
    return full if seed is not None and full else full + (rest > 0)


def epoch_seed(seed: int, epoch: int) -> int:
    """A different seed for every pair, so that no two runs share an epoch's order.

    torch's generator uses only the low 32 bits. Multiples of the constant lie far apart
    there: for seeds below 1,000 they coincide only a million epochs apart.
    """
    return (seed * 0x9E3779B97F4A7C15 + epoch) % 2**63


def shift(images: Tensor, generator: torch.Generator, *, mirror: bool = False) -> Tensor:
    """Pad by an eighth with black and crop at random, which shifts each image.

    Args:
        images: Any dtype, (n, channels, size, size).
        generator: Source of the offsets and of the mirroring.
        mirror: Also mirror half of the images left to right.
    """
    n, _, size, _ = images.shape
    pad = size // 8
    padded = functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, n), generator=generator)
    # All possible crops as a view, so that whole rows are copied, not pixels.
    crops = padded.unfold(2, size, 1).unfold(3, size, 1)
    moved = crops[torch.arange(n), :, top, left]
    if not mirror:
        return moved
    turned = torch.randint(2, (n, 1, 1, 1), generator=generator).bool()
    return torch.where(turned, moved.flip(3), moved)


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """The usual augmentation of small colour images; see `shift`."""
    return shift(images, generator, mirror=True)
