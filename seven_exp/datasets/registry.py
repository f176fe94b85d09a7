"""Name -> data set, and what is known of it before it is read."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from seven_exp.datasets.batches import Data
from seven_exp.registry import Registry
from seven_exp.tasks import Head, LanguageModelling

DATASETS: Registry[Callable[..., Data]] = Registry("dataset")

TRAIN_SIZES: dict[str, int] = {}
"""Training examples of data sets whose number is fixed."""

KnownBy = Literal["name", "files", "place"]
"""What tells a data set from another: its name alone, as a published one's does; the names and
sizes of the files in ``data_dir``, wherever that lies; or these files and ``data_dir`` itself."""

KNOWN_BY: dict[str, KnownBy] = {}

_HEADS: dict[str, Head] = {}

_CHECKS: dict[str, Callable[..., None]] = {}

F = TypeVar("F", bound=Callable[..., Data])


def dataset(
    name: str,
    *,
    train_size: int | None = None,
    check: Callable[..., None] | None = None,
    head: Head | None = None,
    known_by: KnownBy = "place",
) -> Callable[[F], F]:
    """Decorator: file ``load(*, batch_size, seed, **arguments) -> Data`` under ``name``.

    Args:
        name: What users write.
        train_size: Training examples, where fixed; windows can then be checked early.
        check: ``check(**arguments)`` raises ValueError where the files can't be read as things
            stand; it must be quick.
        head: What a model of this text ends in; None for images.
        known_by: What makes two runs on it runs on the same data, besides its other arguments.
    """

    def add(load: F) -> F:
        DATASETS.add(name, load)
        if train_size is not None:
            TRAIN_SIZES[name] = train_size
        if check is not None:
            _CHECKS[name] = check
        if head is not None:
            _HEADS[name] = head
        KNOWN_BY[name] = known_by
        return load

    return add


def text_head(name: str) -> Head | None:
    """What a model of this text ends in; None for images."""
    return _HEADS.get(name)


def lower_is_better(name: str) -> bool:
    """Whether a run on this data set is the better the lower its headline metric is."""
    return text_head(name) == LanguageModelling.head and LanguageModelling.lower_is_better


def check_data(name: str, **arguments: Any) -> None:
    """Look, without reading data, whether it is where the arguments say.

    Raises:
        ValueError: It is not, or a value is out of range; the message names the key and what is
            expected there.
    """
    image_size = arguments.get("image_size")
    if image_size is not None and image_size < 1:
        raise ValueError(f"dataset.image_size is {image_size}: choose 1 or more")
    if name in _CHECKS:
        _CHECKS[name](**arguments)


def build_data(name: str, *, batch_size: int, seed: int, **arguments: Any) -> Data:
    """Load a data set.

    Args:
        name: A registered name.
        batch_size: Examples a batch.
        seed: Of the training order and of augmentation.
        **arguments: The data set's own keywords.

    Raises:
        ValueError: Unknown name, or the data can't be had; the message says what to do.
    """
    load = DATASETS[name]
    check_data(name, **arguments)
    return load(batch_size=batch_size, seed=seed, **arguments)
