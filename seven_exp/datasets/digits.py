"""scikit-learn's digits: real data that a dependency includes."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seven_exp.datasets.batches import Data, InMemory, shift
from seven_exp.datasets.registry import dataset


def _shape(**_: object) -> dict[str, int]:
    return {"num_classes": 10, "image_size": 8, "channels": 1}


@dataset("digits", train_size=1437, known_by="name", shape=_shape)
def digits(*, batch_size: int, seed: int, augment: bool) -> Data:
    """1,797 grey 8x8 images of handwritten digits (UCI, Alpaydin and Kaynak 1998).

    A stratified fifth, the same in every run, is the test split.
    """
    images, targets = _read()
    train, test = _stratified(targets, 360)

    def split(chosen: Any, seed: int | None) -> InMemory:
        pixels = torch.from_numpy(images[chosen]).to(torch.uint8).view(-1, 1, 8, 8)
        labels = torch.from_numpy(targets[chosen])
        moved = shift if augment and seed is not None else None
        return InMemory(pixels, labels, (0.31,), (0.38,), batch_size, seed, moved, white=16.0)

    return Data(split(train, seed), split(test, None), 10, 8, 1)


def _read() -> tuple[Any, Any]:
    """The pixels, (1797, 64), and the classes, int64; importing scikit-learn takes a second."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations
    table = np.loadtxt(
        Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), delimiter=","
    )
    return table[:, :-1], table[:, -1].astype(np.int64)


def _stratified(targets: Any, n_test: int) -> tuple[Any, Any]:
    """Indices of both splits, as scikit-learn's ``train_test_split`` draws them with seed 0."""
    generator = np.random.RandomState(0)
    counts = np.bincount(targets)
    n_train = _shares(counts, len(targets) - n_test, generator)
    of_test = _shares(counts - n_train, n_test, generator)
    train, test = [], []
    for digit, (first, second) in enumerate(zip(n_train, of_test, strict=True)):
        shuffled = np.flatnonzero(targets == digit)[generator.permutation(counts[digit])]
        train.append(shuffled[:first])
        test.append(shuffled[first : first + second])
    return generator.permutation(np.concatenate(train)), generator.permutation(np.concatenate(test))


def _shares(counts: Any, total: int, generator: np.random.RandomState) -> Any:
    """Divide ``total`` in proportion to ``counts``: by largest remainders, ties at random."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact).astype(int)
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        missing = total - shares.sum()
        if missing == 0:
            break
        tied = np.flatnonzero(remainders == remainder)
        shares[generator.choice(tied, min(len(tied), missing), replace=False)] += 1
    return shares
