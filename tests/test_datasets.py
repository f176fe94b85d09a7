"""Data sets: the real loaders on small files of the real formats, and batches as pure functions."""

import gzip
import hashlib
import inspect
import itertools
import pickle
import struct
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torchvision import datasets as tv

from seven_exp.config import Dataset
from seven_exp.datasets import DATASETS, build_data, check_data
from seven_exp.datasets.batches import InMemory, epoch_seed, shift, shift_and_mirror
from seven_exp.datasets.folders import in_colour
from seven_exp.datasets.registry import text_head

RNG = np.random.default_rng(0)


def images(n, *shape):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_fashion_mnist(root, unpacked=True):
    """IDX files as published: a big-endian header, then bytes."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, n in (("train", 25), ("t10k", 7)):
        pixels, labels = images(n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
        for name, header, values in (
            ("images-idx3", struct.pack(">iiii", 2051, n, 28, 28), pixels),
            ("labels-idx1", struct.pack(">ii", 2049, n), labels),
        ):
            if unpacked:
                (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.tobytes())
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())


def write_cifar(root, kind, monkeypatch):
    """Pickled batches as published, of our own checksums; 10 has five training files, 100 one."""
    cls = getattr(tv, kind)
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    key = "labels" if kind == "CIFAR10" else "fine_labels"
    classes = 10 if kind == "CIFAR10" else 100
    for name, _ in (*cls.train_list, *cls.test_list):
        rows = {"data": images(6, 3072), key: [int(i) % classes for i in range(6)]}
        (folder / name).write_bytes(pickle.dumps(rows))
    names = {cls.meta["key"]: [f"class{i}" for i in range(classes)]}
    meta = folder / cls.meta["filename"]
    meta.write_bytes(pickle.dumps(names))
    for files in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(cls, files)]
        monkeypatch.setattr(cls, files, sums)
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(meta)})


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
        write_cifar(tmp_path, kind, monkeypatch)
    write_folders(tmp_path / "folders")
    write_folders(tmp_path / "imagenet", test="val")
    plain = {"augment": False}
    local = {"data_dir": str(tmp_path), "download": False, "image_size": None, **plain}
    return {
        "digits": plain,
        "fashion_mnist": local,
        "cifar10": local,
        "cifar100": local,
        "image_folder": {
            "data_dir": str(tmp_path / "folders"), "image_size": 16, **plain,
            "cache_dir": str(tmp_path / "cache"),
        },
        "imagenet": {
            "data_dir": str(tmp_path / "imagenet"), "image_size": 16, "workers": 0, **plain,
        },
    }  # fmt: skip


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
    # test_text.py has those of text, test_hub_sets.py those of the hub
    assert set(FACTS) == {name for name in DATASETS if text_head(name) is None} - {"hf_images"}


@pytest.mark.parametrize("name", FACTS)
def test_what_a_model_must_know_is_known_before_the_data_are_read(name, small):
    data = build_data(name, batch_size=5, seed=0, **small[name])
    assert DATASETS[name].shape(**small[name]) == data.for_model


@pytest.mark.parametrize("name", FACTS)
def test_a_data_set_and_its_file_agree(name):
    conf = Path(__file__).parent.parent / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        given = set(compose("config", [f"dataset={name}"]).dataset)
    parameters = set(inspect.signature(DATASETS[name].load).parameters)
    given -= {"name", *Dataset.model_fields}
    assert given == parameters - {"batch_size", "seed"}


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
    # one of two processes sees half of them, and knows of all
    assert data.test_examples == data.shared(1, 2).test_examples == test
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
    sizes = {name: DATASETS[name].train_size for name in DATASETS}
    assert sizes["digits"] == len(build_data("digits", batch_size=1, seed=0, augment=False).train)
    assert {name: n for name, n in sizes.items() if n is not None and text_head(name) is None} == {
        "digits": 1437, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000,
    }  # fmt: skip


def test_digits_splits_share_no_image_and_are_stratified():
    data = build_data("digits", batch_size=1, seed=5, augment=True)
    targets = torch.bincount(data.test.targets)
    assert targets.min() >= 34
    assert targets.max() <= 38
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    drawn = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    for split, pixels, classes in zip((data.train, data.test), drawn[:2], drawn[2:], strict=True):
        assert torch.equal(split.images.flatten(1).double(), torch.as_tensor(pixels))
        assert torch.equal(split.targets, torch.as_tensor(classes))
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


def test_digits_have_mean_zero_and_deviation_one():
    x = next(build_data("digits", batch_size=1437, seed=0, augment=False).train.epoch(0))[0]
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.03


def test_seeds_and_epochs_do_not_collide():
    # torch's generator reads 32 bits of its seed: it is these that must differ.
    a, b = (torch.Generator().manual_seed(s) for s in (5, 5 + 2**32))
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
    pairs = [(seed, epoch) for seed in range(60) for epoch in range(60)]
    assert len({epoch_seed(*pair) % 2**32 for pair in pairs}) == len(pairs)
    starts = sorted(epoch_seed(seed, 0) % 2**32 for seed in range(1000))
    assert min(b - a for a, b in itertools.pairwise(starts)) > 10**6


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


@pytest.fixture
def offline(monkeypatch):
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("content", [b"junk", b"", b"\0\0\12\1" + bytes(4), b"\0\0\11\1\0\0\0\1a"])
def test_damaged_files_are_told_of(content, download, small, tmp_path):
    for file in (tmp_path / "FashionMNIST/raw").glob("*-ubyte"):
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset\.data_dir is '.*': FashionMNIST"):
        build_data(
            "fashion_mnist",
            batch_size=2,
            seed=0,
            **{**small["fashion_mnist"], "download": download},
        )


def downloading(name, root):
    return build_data(
        name, batch_size=2, seed=0, data_dir=str(root), download=True, augment=False,
        image_size=None,
    )  # fmt: skip


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion_mnist", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
    ],
)
def test_a_download_that_fails_says_which_file_goes_where(name, file, tmp_path):
    with pytest.raises(ValueError, match="no network") as raised:
        downloading(name, tmp_path)
    assert f"put the publisher's {tmp_path / file} there by hand" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("offline")
def test_archives_placed_by_hand_are_unpacked(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path, unpacked=False)
    raw = tmp_path / "FashionMNIST" / "raw"
    sums = [(name, md5(raw / name)) for name, _ in tv.FashionMNIST.resources]
    monkeypatch.setattr(tv.FashionMNIST, "resources", sums)
    with pytest.raises(ValueError, match=r"dataset\.download=true"):
        check_data("fashion_mnist", data_dir=str(tmp_path), download=False)
    assert len(downloading("fashion_mnist", tmp_path).test.targets) == 7

    published = tmp_path / "published"
    write_cifar(published, "CIFAR10", monkeypatch)
    archive = tmp_path / tv.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(published / tv.CIFAR10.base_folder, tv.CIFAR10.base_folder)
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5(archive))
    assert len(downloading("cifar10", tmp_path).train.targets) == 30


@pytest.mark.parametrize("name", ["cifar10", "image_folder", "imagenet"])
def test_folders_below_home(name, small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = "~" + small[name]["data_dir"].removeprefix(str(tmp_path))
    data = build_data(name, batch_size=2, seed=0, **{**small[name], "data_dir": path})
    assert len(data.test) == 3


@pytest.mark.parametrize("name", ["image_folder", "imagenet"])
def test_splits_of_different_classes_are_refused(name, small):
    root = Path(small[name]["data_dir"])
    (root / "train" / "axolotl").mkdir()
    with pytest.raises(ValueError, match="axolotl is in one of them only"):
        check_data(name, **small[name])
    (root / "train" / "axolotl").rmdir()
    (root / "train" / "cow").mkdir()
    Image.fromarray(images(1, 8, 8, 3)[0]).save(root / "train" / "cow" / "0.jpg")
    (root / ("test" if name == "image_folder" else "val") / "cow").mkdir()
    with pytest.raises(ValueError, match=r"dataset\.data_dir: .*no valid file for the classes cow"):
        build_data(name, batch_size=2, seed=0, **small[name])


def test_an_image_that_is_none_is_named(small):
    broken = Path(small["image_folder"]["data_dir"]) / "train" / "dog" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"can't read .*train/dog/3\.jpg"):
        build_data("image_folder", batch_size=2, seed=0, **small["image_folder"])


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 257, 12850, 65535]], np.uint16), [0, 1, 50, 255]),  # white is 65535
        (np.array([[0, 1, 50, 255]], np.uint8), [0, 1, 50, 255]),
    ],
    ids=["16 bits", "8 bits"],
)
def test_grey_images_of_any_depth_keep_their_shades(pixels, expected, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as image:
        shades = np.asarray(in_colour(image))
    assert shades.shape == (1, 4, 3)
    assert shades[0].tolist() == [[shade] * 3 for shade in expected]


@pytest.mark.parametrize("name", ["image_folder", "imagenet"])
def test_folders_of_deep_images(name, small):
    root = Path(small[name]["data_dir"])
    for path in sorted(root.rglob("*.jpg")):
        path.unlink()
        Image.fromarray(np.full((8, 8), 20 * 257, np.uint16)).save(path.with_suffix(".png"))
    data = build_data(name, batch_size=2, seed=0, **small[name] | {"augment": False})
    inputs, _ = next(data.test.epoch(0))
    expected = [(20 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (20 / 255 - 0.406) / 0.225]
    assert inputs.mean((0, 2, 3)).tolist() == pytest.approx(expected, abs=1e-5)


def test_an_image_without_a_defined_white_is_named(small):
    root = Path(small["image_folder"]["data_dir"]) / "train" / "dog"
    Image.fromarray(np.ones((8, 8), np.float32)).save(root / "deep.tif")
    with pytest.raises(ValueError, match=r"can't read .*deep\.tif: its pixels have 32 bits"):
        build_data("image_folder", batch_size=2, seed=0, **small["image_folder"])


def test_images_are_decoded_once_and_again_when_their_files_change(small, tmp_path, monkeypatch):
    def read():
        return build_data("image_folder", batch_size=2, seed=0, **small["image_folder"])

    first = read()
    with monkeypatch.context() as patch:
        patch.setattr(tv.ImageFolder, "__getitem__", None)
        again = read()
    for split in ("train", "test"):
        old, new = getattr(first, split), getattr(again, split)
        assert torch.equal(old.images, new.images)
        assert torch.equal(old.targets, new.targets)
    Image.new("RGB", (24, 20), "white").save(tmp_path / "folders" / "test" / "dog" / "2.jpg")
    assert read().test.images[-1].min() == 255
    for file in (tmp_path / "cache" / "images").iterdir():
        file.write_bytes(b"broken")
    assert torch.equal(read().train.images, first.train.images)


def test_streamed_epochs_depend_on_no_number_of_workers_and_disturb_no_one(small):
    arguments = {**small["imagenet"], "augment": True}

    def epoch(workers):
        data = build_data("imagenet", batch_size=3, seed=1, **{**arguments, "workers": workers})
        return torch.cat([x for x, _ in data.train.epoch(2)])

    before = torch.get_rng_state()
    alone = epoch(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(alone, epoch(2))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("fashion_mnist", "image_size", 0),
        ("imagenet", "image_size", -1),
        ("imagenet", "workers", -1),
    ],
)
def test_values_out_of_range(name, key, value, small):
    with pytest.raises(ValueError, match=f"dataset.{key} is {value}: choose"):
        check_data(name, **{**small[name], key: value})
