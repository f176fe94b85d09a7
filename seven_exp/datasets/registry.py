"""Data sets by name, and what is known of them before they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from seven_exp.datasets.batches import Data
from seven_exp.datasets.labels import check_labels
from seven_exp.datasets.transforms import Pipeline, Transformable
from seven_exp.datasets.validation import with_limit, with_validation
from seven_exp.registry import Registry
from seven_exp.tasks import Classification, Head, LanguageModelling

KnownBy = Literal["name", "files", "place"]
"""How a data set is identified: by its name alone, if it is published; by the names and sizes of
the files in ``data_dir``, wherever that is; or by these files and ``data_dir`` itself."""


@dataclass(frozen=True)
class DatasetSpec:
    """What a name stands for.

    Attributes:
        load: ``load(*, batch_size, seed, **arguments) -> Data``.
        train_size: Number of training examples, if fixed.
        check: ``check(**arguments)`` raises ValueError if the files can't be read.
        head: The head of a model for this text; None for images.
        known_by: How the data set is identified, besides its other arguments.
        shape: ``shape(**arguments)``: what `Data.for_model` says of images, or the number of a
            text's classes, without reading the data; None: only the data tell.
    """

    load: Callable[..., Data]
    train_size: int | None
    check: Callable[..., None] | None
    head: Head | None
    known_by: KnownBy
    shape: Callable[..., Mapping[str, int]] | None


DATASETS: Registry[DatasetSpec] = Registry("dataset")

F = TypeVar("F", bound=Callable[..., Data])


def dataset(
    name: str,
    *,
    train_size: int | None = None,
    check: Callable[..., None] | None = None,
    head: Head | None = None,
    known_by: KnownBy = "place",
    shape: Callable[..., Mapping[str, int]] | None = None,
) -> Callable[[F], F]:
    """Decorator that registers ``load(*, batch_size, seed, **arguments) -> Data`` under ``name``.

    Args:
        name: What users write.
        train_size: Number of training examples, if fixed, before any are held out for validation;
            windows can then be checked early.
        check: ``check(**arguments)`` raises ValueError if the files can't be read; it must be
            quick.
        head: The head of a model for this text; None for images.
        known_by: How the data set is identified, besides its other arguments.
        shape: See `DatasetSpec`; with it, memory is planned without reading the data.
    """

    def add(load: F) -> F:
        DATASETS.add(name, DatasetSpec(load, train_size, check, head, known_by, shape))
        return load

    return add


def text_head(name: str) -> Head | None:
    """The head of a model for this text; None for images."""
    return DATASETS[name].head


def lower_is_better(name: str) -> bool:
    """Whether lower values of the data set's headline metric are better."""
    return text_head(name) == LanguageModelling.head and LanguageModelling.lower_is_better


def check_data(name: str, **arguments: Any) -> None:
    """Check, without reading data, whether it exists where the arguments say.

    Raises:
        ValueError: It does not, or a value is out of range; the message names the key and what is
            expected.
    """
    image_size = arguments.get("image_size")
    if image_size is not None and image_size < 1:
        raise ValueError(f"dataset.image_size is {image_size}: choose 1 or more")
    if (check := DATASETS[name].check) is not None:
        check(**arguments)


def build_data(
    name: str,
    *,
    batch_size: int,
    seed: int,
    validation: float | None = 0.0,
    limit: int | float | None = None,
    transforms: Mapping[str, Mapping[str, Any] | None] | None = None,
    metrics: Sequence[str] = (),
    **arguments: Any,
) -> Data:
    """Load a data set.

    Args:
        name: A registered name.
        batch_size: Examples per batch.
        seed: Seed of the training order and of augmentation.
        validation: Fraction of the training examples to hold out; see `with_validation`.
        limit: Number or fraction of the remaining training examples; see `with_limit`.
        transforms: Names and keywords of `TRANSFORMS` for training.
        metrics: Names of `METRICS`, besides those of the data set.
        **arguments: The data set's own keywords.

    Raises:
        ValueError: The name is unknown, the data can't be loaded, limited or transformed, or their
            labels are no classes; the message says what to do.
    """
    load = DATASETS[name].load
    check_data(name, **arguments)
    whole = load(batch_size=batch_size, seed=seed, **arguments)
    check_labels(name, whole)
    data = with_limit(with_validation(whole, validation), limit)
    if metrics:
        if not isinstance(data.task, Classification):
            raise ValueError(
                f"dataset.metrics is {list(metrics)}: '{name}' has no classes; leave it out"
            )
        extra = tuple(dict.fromkeys([*data.task.extra, *metrics]))
        data = replace(data, task=replace(data.task, extra=extra))
    if not transforms:
        return data
    if not isinstance(data.train, Transformable) or not isinstance(data.task, Classification):
        raise ValueError(f"dataset.transforms: the batches of '{name}' can't be transformed")
    return replace(data, train=data.train.transformed(Pipeline.of(transforms, data.num_classes)))
