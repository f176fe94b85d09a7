"""Transforms of training images, limits, label smoothing: seeded, resumable, and as defined."""

import json
import re

import numpy as np
import pytest
import torch
from test_conf import composed
from test_datasets import small  # noqa: F401

from seven_exp.config import ConfigError
from seven_exp.datasets import TRANSFORMS, build_data
from seven_exp.runs.check import check
from seven_exp.runs.run import run_experiment
from seven_exp.tasks import Classification
from seven_exp.tracking import LocalRecord

ALL = {name: {} for name in TRANSFORMS}


def batches(data, epoch=0, start=0):
    return list(data.train.epoch(epoch, start))


def same(one, two):
    return all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("name", ["digits", "image_folder", "imagenet"])
@pytest.mark.parametrize("chosen", [*([name] for name in ALL), sorted(ALL)], ids="+".join)
def test_an_epoch_is_a_pure_function_of_seed_and_number(name, chosen, small):  # noqa: F811
    """From any batch on, whatever was drawn before, and without a trace in other generators."""
    own = {**small[name], "augment": True}

    def load(seed=3):
        own_seed = {"batch_size": 4, "seed": seed, **own}
        return build_data(name, transforms=dict.fromkeys(chosen), **own_seed)

    if name == "digits":
        own["limit"] = 12
    before = torch.get_rng_state()
    data = load()
    epoch = batches(data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert same(batches(data, start=2), epoch[2:])
    assert same(batches(load()), epoch)
    assert not same(batches(data, epoch=1), epoch)
    assert not same(batches(load(seed=4)), epoch)
    assert same(data.test.epoch(0), build_data(name, batch_size=4, seed=3, **own).test.epoch(0))


@pytest.mark.parametrize(("name", "alpha"), [("mixup", 0.4), ("cutmix", 1.0)])
def test_images_and_classes_are_mixed_in_one_proportion(name, alpha):
    """CutMix: a rectangle of the image comes from another one; MixUp: every pixel is a mean."""
    plain = build_data("digits", batch_size=8, seed=0, augment=False)
    mixed = build_data(
        "digits", batch_size=8, seed=0, augment=False, transforms={name: {"alpha": alpha}}
    )
    shares = []
    for (x, y), (z, p) in zip(batches(plain)[:20], batches(mixed)[:20], strict=True):
        assert p.shape == (8, 10)
        torch.testing.assert_close(p.sum(1), torch.ones(8))
        other = x.roll(1, 0)  # the partner of each image
        first, second = (np.eye(10)[t] for t in (y.numpy(), y.roll(1).numpy()))
        if name == "mixup":
            difference = (x - other).flatten().double().numpy()
            share = (z - other).flatten().double().numpy() @ difference / (difference @ difference)
            torch.testing.assert_close(
                z, (share * x + (1 - share) * other).float(), atol=1e-5, rtol=0
            )
        else:
            from_other = (z != x).any(0)[0]  # pixels that differ in some image lie in the rectangle
            assert torch.equal(z[..., from_other], other[..., from_other])
            share = float(p[0, y[0]]) if y[0] != y.roll(1)[0] else None
            if share is None or not from_other.any():
                continue
            assert from_other.float().mean() <= 1 - share + 1e-6
        np.testing.assert_allclose(p, share * first + (1 - share) * second, atol=1e-5)
        shares.append(share)
    assert len(set(shares)) > 5


def test_of_several_mixtures_each_batch_draws_one():
    def of(**transforms):
        data = build_data("digits", batch_size=8, seed=0, augment=False, transforms=transforms)
        return batches(data)[:30]

    both = [p for _, p in of(mixup={}, cutmix={})]
    assert len({tuple(p.flatten().tolist()) for p in both}) == 30
    assert same(of(mixup={}, cutmix={}), of(mixup={}, cutmix={}))


def test_erasing_makes_rectangles_of_the_mean():
    own = {"batch_size": 64, "seed": 0, "augment": False}
    plain = batches(build_data("digits", **own))[0][0]
    erased = batches(build_data("digits", transforms={"random_erasing": {"p": 0.5}}, **own))[0][0]
    changed = (erased != plain).flatten(1).any(1)
    assert 16 < changed.sum() < 48
    assert (erased[erased != plain] == 0).all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.transforms={mix_up:{}}", "unknown transform 'mix_up': did you mean 'mixup'?"),
        ("dataset.transforms={mixup:{alfa:1}}", "dataset.transforms.mixup.alfa: mixup has no such"),
        ("dataset.transforms={mixup:{alpha:0.0}}", "dataset.transforms.mixup.alpha is 0.0"),
        ("dataset.transforms={rand_augment:{magnitude:31}}", "rand_augment.magnitude is 31"),
        ("dataset.limit=0", "dataset.limit is 0"),
        ("dataset.limit=1.5", "dataset.limit is 1.5"),
        ("trainer.label_smoothing=1.0", "trainer.label_smoothing is 1.0"),
    ],
)
def test_one_line_for_a_mistake(override, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        check(composed("model=mlp", override))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "override", ["dataset.transforms={mixup:{}}", "trainer.label_smoothing=0.1"]
)
def test_what_text_has_not(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        check(composed("model=mlp", "dataset=squad", override))


def test_a_limit_keeps_the_classes_proportions_and_the_other_splits():
    def load(**settings):
        return build_data("digits", batch_size=1, seed=0, augment=False, **settings)

    whole, part = load(validation=0.1), load(validation=0.1, limit=100)
    assert part.train.examples == 100
    assert part.validation.examples == whole.validation.examples
    expected = torch.bincount(whole.train.targets).double() * 100 / whole.train.examples
    assert (torch.bincount(part.train.targets) - expected).abs().max() <= 1
    rows = {tuple(image.flatten().tolist()) for image in whole.train.images}
    assert all(tuple(image.flatten().tolist()) in rows for image in part.train.images)
    assert load(limit=0.5).train.examples == round(0.5 * 1437)
    again = build_data("digits", batch_size=1, seed=7, augment=False, validation=0.1, limit=100)
    assert torch.equal(again.train.images, part.train.images)
    with pytest.raises(
        ValueError, match=r"dataset\.limit is 2000: there are 1437 training examples"
    ):
        load(limit=2000)


def test_smoothing_is_that_of_its_formula():
    """(1 - e) times the cross-entropy of the class, plus e times the mean over all classes."""
    generator = np.random.default_rng(0)
    logits, classes, e = generator.normal(size=(6, 5)), np.array([0, 1, 2, 3, 4, 0]), 0.2
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -((1 - e) * logs[np.arange(6), classes] + e * logs.mean(1)).mean()
    task = Classification(label_smoothing=e)
    found = task.loss(torch.tensor(logits), torch.tensor(classes))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    soft = torch.eye(5, dtype=torch.float64)[classes]
    assert task.loss(torch.tensor(logits), soft).item() == pytest.approx(expected, rel=1e-12)
    assert task.hits(torch.tensor(logits), soft) == task.hits(
        torch.tensor(logits), torch.tensor(classes)
    )


RECIPE = [
    "model=mlp", "model.widths=[8]", "trainer.max_steps=6", "trainer.batch_size=16",
    "trainer.eval_interval=3", "trainer.log_interval=1", "tracker.mode=disabled", "sparsity=0.5",
    "dataset.transforms={rand_augment:{},random_erasing:{p:0.5},mixup:{},cutmix:{}}",
    "dataset.limit=200", "pruner=dense",
]  # fmt: skip


def test_smoothing_changes_the_training_and_not_the_measurements(tmp_path):
    records = {}
    for smoothing in (0.0, 0.3):
        config = composed(*RECIPE, f"trainer.label_smoothing={smoothing}", "optimizer.lr=1e-12")
        check(config)
        records[smoothing] = run_experiment(config, tmp_path / str(smoothing), LocalRecord())
    one, other = records.values()
    assert one["train_examples"] == 200
    assert one["run_hash"] != other["run_hash"]
    # At a rate of nearly zero the weights are the same, and so is the loss on test.
    assert one["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], rel=1e-6)
    lines = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in map(str, records)
    ]
    assert lines[0]["loss"] != lines[1]["loss"]
