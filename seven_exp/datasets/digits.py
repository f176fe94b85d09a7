"""scikit-learn's digits: real data that a dependency includes."""

import torch

from seven_exp.datasets.batches import Data, InMemory, shift
from seven_exp.datasets.registry import dataset


@dataset("digits", train_size=1437, known_by="name")
def digits(*, batch_size: int, seed: int, augment: bool) -> Data:
    """1,797 grey 8x8 images of handwritten digits (UCI, Alpaydin and Kaynak 1998).

    A stratified fifth, the same in every run, is the test split.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, targets = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        images, targets, test_size=0.2, stratify=targets, random_state=0
    )

    def split(images: object, targets: object, seed: int | None) -> InMemory:
        pixels = torch.as_tensor(images).to(torch.uint8).view(-1, 1, 8, 8)
        labels = torch.as_tensor(targets).long()
        moved = shift if augment and seed is not None else None
        return InMemory(pixels, labels, (0.31,), (0.38,), batch_size, seed, moved, white=16.0)

    return Data(split(x, y, seed), split(x_test, y_test, None), 10, 8, 1)
