"""Data sets: the real loaders on small files of the real formats, and batches as pure functions."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from seven_exp.datasets import DATASETS, TRAIN_SIZES, build_data, check_data
from seven_exp.datasets.batches import InMemory, epoch_seed, shift, shift_and_mirror

RNG = np.random.default_rng(0)


def images(n, *shape):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def write_fashion_mnist(root):
    """IDX files as published: a big-endian header, then bytes."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, n in (("train", 25), ("t10k", 7)):
        pixels, labels = images(n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
        for name, header, values in (
            ("images-idx3", struct.pack(">iiii", 2051, n, 28, 28), pixels),
            ("labels-idx1", struct.pack(">ii", 2049, n), labels),
        ):
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.tobytes())
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())


def write_cifar(root, kind):
    """Pickled batches as published; 10 has five training files, 100 has one."""
    cls = getattr(tv, kind)
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    key = "labels" if kind == "CIFAR10" else "fine_labels"
    classes = 10 if kind == "CIFAR10" else 100
    for name, _ in (*cls.train_list, *cls.test_list):
        rows = {"data": images(6, 3072), key: [int(i) % classes for i in range(6)]}
        (folder / name).write_bytes(pickle.dumps(rows))
    names = {cls.meta["key"]: [f"class{i}" for i in range(classes)]}
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps(names))


def write_folders(root, test="test"):
    for split, n in (("train", 6), (test, 3)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(images(1, 20, 24, 3)[0]).save(folder / f"{i}.jpg")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Every data set on small local files; digits is the real one."""
    write_fashion_mnist(tmp_path)
    for kind in ("CIFAR10", "CIFAR100"):
        write_cifar(tmp_path, kind)
        # The published files' checksums can't fit ours; the rest of the loader is untouched.
        monkeypatch.setattr(getattr(tv, kind), "_check_integrity", lambda self: True)
        monkeypatch.setattr(f"torchvision.datasets.cifar.{kind}._load_meta", _load_meta_unchecked)
    write_folders(tmp_path / "folders")
    write_folders(tmp_path / "imagenet", test="val")
    plain = {"augment": False}
    local = {"data_dir": str(tmp_path), "download": False, "image_size": None, **plain}
    return {
        "digits": plain,
        "fashion_mnist": local,
        "cifar10": local,
        "cifar100": local,
        "image_folder": {"data_dir": str(tmp_path / "folders"), "image_size": 16, **plain},
        "imagenet": {
            "data_dir": str(tmp_path / "imagenet"), "image_size": 16, "workers": 1, **plain,
        },
    }  # fmt: skip


def _load_meta_unchecked(self):
    path = f"{self.root}/{self.base_folder}/{self.meta['filename']}"
    with open(path, "rb") as file:  # noqa: PTH123
        self.classes = pickle.load(file)[self.meta["key"]]
    self.class_to_idx = {name: i for i, name in enumerate(self.classes)}


# name: training images, test images, classes, size, channels
FACTS = {
    "digits": (1437, 360, 10, 8, 1),
    "fashion_mnist": (25, 7, 10, 28, 1),
    "cifar10": (30, 6, 10, 32, 3),
    "cifar100": (6, 6, 100, 32, 3),
    "image_folder": (12, 6, 2, 16, 3),
    "imagenet": (12, 6, 2, 16, 3),
}


def test_every_data_set_is_tested():
    assert set(FACTS) == set(DATASETS)


@pytest.mark.parametrize("name", FACTS)
def test_shapes_counts_and_ranges(name, small):
    train, test, classes, size, channels = FACTS[name]
    data = build_data(name, batch_size=5, seed=0, **small[name])
    assert (data.num_classes, data.image_size, data.channels) == (classes, size, channels)
    batches = list(data.train.epoch(0))
    assert len(batches) == len(data.train) == train // 5
    assert all(
        x.shape == (5, channels, size, size) and x.dtype == torch.float32 for x, _ in batches
    )
    assert all(y.shape == (5,) and y.dtype == torch.int64 and y.max() < classes for _, y in batches)
    tested = list(data.test.epoch(0))
    assert len(tested) == len(data.test)
    assert sum(len(y) for _, y in tested) == test
    assert all(torch.equal(a[0], b[0]) for a, b in zip(tested, data.test.epoch(1), strict=True))


@pytest.mark.parametrize("name", FACTS)
def test_an_epoch_is_a_function_of_seed_and_number(name, small):
    augmented = {key: True if key == "augment" else v for key, v in small[name].items()}

    def epoch(seed, index):
        data = build_data(name, batch_size=4, seed=seed, **augmented)
        return torch.cat([x.flatten() for x, _ in data.train.epoch(index)])

    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert not torch.equal(epoch(0, 1), epoch(1, 1))
    assert not torch.equal(epoch(0, 1), epoch(1, 0))


def test_training_sizes_known_beforehand_are_right():
    assert TRAIN_SIZES["digits"] == len(
        build_data("digits", batch_size=1, seed=0, augment=False).train
    )
    assert TRAIN_SIZES == {
        "digits": 1437, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000,
    }  # fmt: skip


def test_digits_splits_share_no_image_and_are_stratified():
    data = build_data("digits", batch_size=1, seed=5, augment=True)
    targets = torch.bincount(data.test.targets)
    assert targets.min() >= 34
    assert targets.max() <= 38
    from sklearn.datasets import load_digits

    together = torch.cat([data.train.images, data.test.images]).flatten(1).double()
    everything = torch.as_tensor(load_digits().data)
    assert torch.equal(together.sum(0), everything.sum(0))


def in_memory(n=11, **settings):
    return InMemory(
        torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1), torch.arange(n), (0.5,), (0.25,),
        **settings,
    )  # fmt: skip


def test_every_image_once_an_epoch_but_for_the_remainder():
    seen = torch.cat([y for _, y in in_memory(batch_size=4, seed=0).epoch(3)])
    assert len(seen) == 8
    assert len(seen.unique()) == 8
    everything = torch.cat([y for _, y in in_memory(batch_size=4).epoch(0)])
    assert everything.tolist() == list(range(11))
    # fewer images than a batch: they are one batch, not none
    assert len(in_memory(batch_size=64, seed=0)) == 1


def test_normalisation_is_pixel_minus_mean_over_deviation():
    x, y = next(in_memory(batch_size=11).epoch(0))
    torch.testing.assert_close(x.flatten(), (y / 255 - 0.5) / 0.25)
    white = in_memory(batch_size=11, white=10.0)
    torch.testing.assert_close(next(white.epoch(0))[0][10].item(), (1.0 - 0.5) / 0.25)


def test_seeds_and_epochs_do_not_collide():
    pairs = [(seed, epoch) for seed in range(60) for epoch in range(60)]
    assert len({epoch_seed(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    ("augment", "mirrors"), [(shift_and_mirror, {False, True}), (shift, {False})]
)
def test_augmentation_moves_each_image_by_itself(augment, mirrors):
    x = torch.from_numpy(images(40, 2, 16, 16))
    out = augment(x, torch.Generator().manual_seed(0))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = set()
    for image, source in zip(out.numpy(), padded, strict=True):
        options = {
            (i, j, mirrored): source[:, i : i + 16, j : j + 16][..., :: -1 if mirrored else 1]
            for i in range(5)
            for j in range(5)
            for mirrored in (False, True)
        }
        matches = [key for key, option in options.items() if np.array_equal(option, image)]
        assert len(matches) == 1
        found.add(matches[0])
    assert {i for i, _, _ in found} == {j for _, j, _ in found} == set(range(5))
    assert {mirrored for _, _, mirrored in found} == mirrors


def test_images_are_scaled_where_asked(small):
    arguments = {**small["fashion_mnist"], "image_size": 14}
    data = build_data("fashion_mnist", batch_size=5, seed=0, **arguments)
    assert data.image_size == 14
    assert next(data.train.epoch(0))[0].shape == (5, 1, 14, 14)


@pytest.mark.parametrize(
    "name", ["fashion_mnist", "cifar10", "cifar100", "image_folder", "imagenet"]
)
def test_missing_files_are_named_before_anything_is_read(name, small, tmp_path):
    check_data(name, **small[name])
    nowhere = {**small[name], "data_dir": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match=r"dataset.data_dir is '.*nowhere'"):
        check_data(name, **nowhere)
    with pytest.raises(ValueError, match=r"dataset.data_dir is '.*nowhere'"):
        build_data(name, batch_size=2, seed=0, **nowhere)


def test_a_download_that_fails_says_where_files_go(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.mnist.check_integrity", lambda *_: False)
    with pytest.raises(ValueError, match=r"put its files into .*FashionMNIST/raw"):
        build_data(
            "fashion_mnist", batch_size=2, seed=0, data_dir=str(tmp_path), download=True,
            augment=False, image_size=None,
        )  # fmt: skip
