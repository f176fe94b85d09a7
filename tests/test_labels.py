"""Data sets whose labels are no classes are refused before a model is built."""

from dataclasses import replace

import pytest
import torch

from seven_exp.datasets import build_data
from seven_exp.datasets.batches import Data, InMemory
from seven_exp.datasets.labels import check_labels
from seven_exp.datasets.registry import dataset
from seven_exp.tasks.regression import Regression


def split(targets):
    images = torch.zeros(len(targets), 1, 2, 2, dtype=torch.uint8)
    return InMemory(images, targets, (0.5,), (0.5,), 4)


GOOD = split(torch.arange(6) % 3)
DATA = Data(GOOD, GOOD, 3, 2, 1)


def test_class_indices_are_accepted():
    check_labels("mine", DATA)
    check_labels("mine", replace(DATA, num_classes=5))  # some classes may have no example


@pytest.mark.parametrize("kind", ["train", "test", "validation"])
@pytest.mark.parametrize(
    "targets",
    [
        torch.arange(6) % 3 + 1,
        torch.arange(6) % 3 - 1,
        (torch.arange(6) % 3).float(),
        (torch.arange(6) % 3).int(),
    ],
    ids=["from 1", "from -1", "floating", "int32"],
)
def test_labels_that_are_no_index_of_a_class(kind, targets):
    with pytest.raises(ValueError, match=f"'mine': its {kind} labels .* int64 from 0 to 2"):
        check_labels("mine", replace(DATA, **{kind: split(targets)}))


def test_one_class_and_no_test_data():
    with pytest.raises(ValueError, match="it has 1 class"):
        check_labels("mine", replace(DATA, num_classes=1))
    with pytest.raises(ValueError, match="it has no test data"):
        check_labels("mine", replace(DATA, test=split(torch.arange(0))))


@pytest.mark.parametrize("targets", [5, 7])
def test_each_image_has_a_target(targets):
    with pytest.raises(ValueError, match=f"6 images and {targets} targets"):
        replace(GOOD, targets=torch.zeros(targets).long())


def test_numbers_as_targets_are_no_labels():
    numbers = split(torch.tensor([0.5, 7.0]))
    check_labels("mine", Data(numbers, numbers, 1, 2, 1, task=Regression()))


def test_a_data_set_by_name_is_checked():
    @dataset("counted_from_1", known_by="name")
    def load(*, batch_size, seed):
        return replace(DATA, test=split(torch.arange(6) % 3 + 1))

    with pytest.raises(ValueError, match="'counted_from_1': its test labels"):
        build_data("counted_from_1", batch_size=4, seed=0)
