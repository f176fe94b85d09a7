"""Whether the labels of a data set are classes that a model's outputs can stand for."""

import torch
from torch import Tensor

from seven_exp.datasets.batches import Data
from seven_exp.tasks import Classification

_CLASSES = (torch.int64, torch.uint8)
"""What torch's cross-entropy takes for classes."""


def check_labels(name: str, data: Data) -> None:
    """Check the data before a model is built: a wrong label fails late, on a GPU without a reason.

    Args:
        name: Of the data set.
        data: As its loader returns it.

    Raises:
        ValueError: A split for evaluation is empty, there are fewer than two classes, or a label
            is no index of a class.
    """
    more = {f"test{ending}": split for ending, split in data.more.items()}
    evaluated = {"test": data.test, "validation": data.validation, **more}
    for kind, split in evaluated.items():
        if split is not None and getattr(split, "examples", None) == 0:
            raise ValueError(f"dataset.name is '{name}': it has no {kind} data")
    if not isinstance(data.task, Classification):
        return
    if data.num_classes < 2:
        raise ValueError(
            f"dataset.name is '{name}': it has {data.num_classes} class, so there is nothing to "
            "learn; give it two or more"
        )
    for kind, split in {"train": data.train, **evaluated}.items():
        labels: Tensor | None = getattr(split, "strata", None)
        if labels is None or not len(labels):
            continue
        low, high, dtype = labels.min().item(), labels.max().item(), labels.dtype
        if dtype not in _CLASSES or low < 0 or high >= data.num_classes:
            raise ValueError(
                f"dataset.name is '{name}': its {kind} labels are {str(dtype)[6:]} from {low} to "
                f"{high}; {data.num_classes} classes need int64 from 0 to {data.num_classes - 1}"
            )
