"""Comparisons: statistics against figures worked out by hand, grouping, and the files."""

import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from preloaded import python

from seven_exp.cli.compare import main
from seven_exp.compare.comparison import compare as compare_and_draw
from seven_exp.compare.file_cache import FileCache
from seven_exp.compare.files import FORMATS, Output
from seven_exp.compare.history import read_history
from seven_exp.compare.inference import Inference
from seven_exp.compare.metrics import bounds, is_share, resolution
from seven_exp.compare.plot import draw, styles
from seven_exp.compare.records import read_runs
from seven_exp.compare.statistics import (
    estimate,
    holm,
    paired_difference,
    unpaired_difference,
)
from seven_exp.compare.summary import spans, summarize, undecided
from seven_exp.runs import save_masks
from seven_exp.runs.artifacts import SCHEMA

ROOT = Path(__file__).parent.parent


WITHOUT_PICTURES = ("--format", "csv,html")


def compare(folders, metric=None, baseline=None, output=None):
    """Without pictures, which take longer than all the rest."""
    compare_and_draw(folders, metric, baseline, Output(output, formats=("csv", "html")))


def write(root, pruner, sparsity, seed, accuracy, status="finished", **changes):
    """A record as a run leaves it."""
    config = changes.pop("config", {})
    if config is not None:
        config = {
            "seed": seed, "sparsity": sparsity, "schedule": {"name": "cubic"},
            "optimizer": {"lr": 0.001}, "pruner": {"name": pruner}, **config,
        }  # fmt: skip
    values = {
        "schema": 1, "run_hash": f"{pruner}-{sparsity}-{seed}-{json.dumps(config)}",
        "status": status, "pruner": pruner, "model": "mlp", "dataset": "digits", "seed": seed,
        "sparsity_target": sparsity, "sparsity": sparsity,
        "metrics": {"accuracy": accuracy, "loss": 1 - accuracy},
        "params_nonzero": 100, "seconds": 2.0, "steps": 10, "config": config,
        "splits": {"metrics": "test"}, **changes,
    }  # fmt: skip
    if values["splits"] is None:
        del values["splits"]  # as in older records
    folder = root / f"{len(list(root.iterdir()))}"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Seeds move both arms together; seven is ahead by 1, 2 and 3 points at 0.9."""
    for seed, base in enumerate((0.60, 0.80, 0.70)):
        write(tmp_path, "magnitude", 0.9, seed, base)
        write(tmp_path, "seven_dyn", 0.9, seed, base + 0.01 * (seed + 1))
        write(tmp_path, "magnitude", 0.5, seed, 0.95)
        write(tmp_path, "seven_dyn", 0.5, seed, 0.95)
    write(tmp_path, "dense", 0.0, 0, 0.97)
    return tmp_path


@pytest.mark.slow
def test_runs_without_a_validation_split_are_counted_and_kept_apart(tmp_path, capsys):
    for seed in range(2):
        write(tmp_path, "magnitude", 0.9, seed, 0.6, splits=None)
        write(tmp_path, "snip", 0.9, seed, 0.7, config={"dataset": {"validation": None}})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == (
        "note: 2 of the runs had no validation split: they trained on all training data, and "
        "measured the test split during training, too\n"
    )
    methods = {method for method, _ in rows_of(tmp_path, baseline=None)}
    assert methods == {"magnitude dataset.validation=0.0", "snip dataset.validation=null"}


@pytest.mark.parametrize(
    ("name", "lower", "words"),
    [
        ("distance", True, "higher values of distance are taken for better"),
        ("error_rate", False, "lower values of error_rate are taken for better"),
        ("distance", False, ""),
        ("error_rate", True, ""),
        ("distance", None, ""),  # an older record
    ],
)
def test_a_task_that_contradicts_its_metrics_name_is_noted(tmp_path, capsys, name, lower, words):
    said = {} if lower is None else {"lower_is_better": lower}
    write(tmp_path, "magnitude", 0.9, 0, 0.5, metrics={name: 0.5}, metric=name, **said)
    assert main([str(tmp_path), *WITHOUT_PICTURES]) == 0
    found = capsys.readouterr().err
    assert words in found
    assert bool(words) == ("note: " in found)
    page = (tmp_path / "comparison.html").read_text()
    assert ("are taken for better because of its name" in page) == bool(words)


def rows_of(folder, **settings):
    records, _ = read_runs([folder])
    arguments = {"metric": "accuracy", "baseline": "magnitude", **settings}
    rows, _ = summarize(records, **arguments)
    return {(row.method, row.sparsity): row for row in rows}


def test_interval_of_three_values():
    found = estimate([1.0, 2.0, 3.0])
    # s = 1, and the 97.5% quantile of Student's t with 2 degrees of freedom is 4.302653
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(
    ("n", "quantile"),
    [(2, 12.706205), (4, 3.182446), (5, 2.776445), (10, 2.262157), (30, 2.045230)],
)
def test_intervals_use_the_textbook_quantiles(n, quantile):
    values = [float(i) for i in range(n)]
    # the variance of 0..n-1 about its mean, with n - 1 in the denominator, is n (n + 1) / 12
    assert estimate(values).half == pytest.approx(quantile * math.sqrt((n + 1) / 12), rel=1e-6)


def test_one_value_has_no_interval(tmp_path, capsys):
    assert estimate([0.5]).half is None
    write(tmp_path, "magnitude", 0.9, 0, 0.5)
    compare([tmp_path])
    assert "50.00 ± n/a" in capsys.readouterr().out
    data = embedded(tmp_path / "comparison.html")["shared"]
    assert data["estimates"]["accuracy"] == {
        "mean": [0.5],
        "half": [None],
        "n": [1],
        "best": [True],
    }
    assert (tmp_path / "comparison.csv").read_text().splitlines()[1].split(",")[6:9] == [
        *("0.5", "", "1"),
    ]


def test_pairs_cancel_what_seeds_have_in_common(sweep):
    row = rows_of(sweep)["seven_dyn", 0.9]
    difference = row.difference
    # differences 0.01, 0.02, 0.03: t = 0.02 / (0.01 / sqrt 3) = 2 sqrt 3 with 2 degrees of freedom,
    # whose two-sided p is 1 - t / sqrt(2 + t^2)
    t = 2 * math.sqrt(3)
    assert difference.estimate.mean == pytest.approx(0.02)
    assert difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    # unpaired, the spread of the seeds would bury it
    assert row.result.half > 0.2
    assert difference.estimate.half == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)


def test_only_common_seeds_are_paired(tmp_path):
    for seed, value in ((0, 0.5), (1, 0.6), (2, 0.9)):
        write(tmp_path, "magnitude", 0.9, seed, value)
    write(tmp_path, "seven_dyn", 0.9, 1, 0.7)
    row = rows_of(tmp_path)["seven_dyn", 0.9]
    assert row.difference.estimate.n == 1
    assert row.difference.estimate.mean == pytest.approx(0.1)
    assert row.difference.p is None
    assert paired_difference({5: 1.0}, {6: 1.0}) is None


def test_the_table_says_how_many_pairs_there_were(tmp_path, capsys):
    for seed, value in ((0, 0.5), (1, 0.6), (2, 0.9)):
        write(tmp_path, "magnitude", 0.9, seed, value)
        write(tmp_path, "seven_dyn", 0.9, seed + 1, value + 0.1)
    row = rows_of(tmp_path)["seven_dyn", 0.9]
    # seeds 1 and 2: 0.6 - 0.6 and 0.7 - 0.9
    assert (row.result.n, row.difference.estimate.n) == (3, 2)
    assert row.difference.estimate.mean == pytest.approx(-0.1)
    compare([tmp_path])
    assert re.search(r"-10\.00 ± 127\.06 \(n=2\)", capsys.readouterr().out)


def test_without_a_spread_there_is_no_test():
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
    # one image of 360 in each of three seeds, whose differences are equal up to rounding
    baseline = {0: 350 / 360, 1: 347 / 360, 2: 349 / 360}
    ours = {0: 349 / 360, 1: 346 / 360, 2: 348 / 360}
    difference = paired_difference(ours, baseline)
    assert difference.estimate.mean == pytest.approx(-1 / 360)
    assert difference.p is None
    # rounding grows with the numbers, a real spread of the same size does not vanish
    shifted = paired_difference({0: 1e9 + 0.1, 1: 3e9 + 0.1}, {0: 1e9, 1: 3e9})
    assert shifted.p is None
    assert paired_difference({0: 3e-9, 1: 5e-9}, {0: 1e-9, 1: 1e-9}).p is not None


def test_welch_is_scipys():
    from scipy.stats import ttest_ind

    ours, baseline = [0.61, 0.82, 0.73, 0.7], [0.5, 0.52, 0.47]
    expected = ttest_ind(ours, baseline, equal_var=False)
    interval = expected.confidence_interval(0.95)
    found = unpaired_difference(dict(enumerate(ours)), dict(enumerate(baseline, 10)))
    assert found.test == "unpaired"
    assert found.p == pytest.approx(expected.pvalue)
    assert found.estimate.ends() == pytest.approx(tuple(interval))
    assert unpaired_difference({0: 0.5}, {1: 0.25}).estimate.half is None
    assert unpaired_difference({0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}).p == 1.0
    assert unpaired_difference({0: 0.5, 1: 0.5}, {2: 0.6, 3: 0.6}).p is None


@pytest.mark.parametrize("differ", [paired_difference, unpaired_difference])
def test_an_interval_and_its_test_agree(differ):
    # differences of 0, 1, 1, 1 and 1 images of 360: without a floor p < 0.05, and one image more or
    # less is what the interval must allow
    baseline = dict.fromkeys(range(5), 0.9)
    ours = {seed: 0.9 + min(seed, 1) / 360 for seed in range(5)}
    sharp, floored = differ(ours, baseline), differ(ours, baseline, 1 / 360)
    assert sharp.p < 0.05
    assert floored.estimate.half == pytest.approx(1 / 360)
    assert floored.estimate.ends()[0] < 0
    assert floored.p > 0.05
    # a floor below the spread changes nothing
    assert differ(ours, baseline, 1e-9) == sharp


def test_holm_by_hand():
    # sorted: .01 x 4, .02 x 3 = .06, .03 x 2 = .06, .5 x 1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_rs():
    # the six largest are 1; the others from R's multtest, mt.rawp2adjp(proc="Holm"), as the
    # tests of statsmodels state them
    p_values = [
        *(0.838541367553, 0.642193923795, 0.680845947633, 0.967833824309, 0.71626938238),
        *(0.177096952723, 5.23656777208e-05, 0.0202732688798, 0.00028140506198, 0.0149877310796),
    ]
    adjusted = holm(p_values)
    assert [adjusted[i] for i in (6, 8, 9, 7)] == pytest.approx(
        [5.23656777208e-04, 2.53264555782e-03, 1.19901848637e-01, 1.41912882159e-01], rel=1e-10
    )
    assert sorted(adjusted)[4:] == [1.0] * 6


def test_holm_is_the_closed_test_of_bonferroni():
    # Holm's adjusted p is the largest Bonferroni p over all sets of hypotheses that hold this one
    p_values = [0.012, 0.3, 0.004, 0.04, 0.012]
    everything = range(len(p_values))
    sets = [s for n in everything for s in itertools.combinations(everything, n + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        for i in everything
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_correction_covers_a_sparsity_or_the_whole_table(sweep):
    rows = rows_of(sweep)
    # two comparisons were made: at 0.5 (p = 1) and at 0.9
    raw = rows["seven_dyn", 0.9].difference.p
    assert rows["seven_dyn", 0.9].p == raw
    whole = rows_of(sweep, inference=Inference(family="table"))
    assert whole["seven_dyn", 0.9].p == pytest.approx(2 * raw)
    assert rows["magnitude", 0.9].difference is None


def test_best_of_each_sparsity(sweep):
    best = {key for key, row in rows_of(sweep).items() if row.best}
    assert best == {
        *(("seven_dyn", 0.9), ("seven_dyn", 0.5), ("magnitude", 0.5)),
        ("dense", 0.0),
    }
    best_by_loss = {key for key, row in rows_of(sweep, metric="loss").items() if row.best}
    assert best_by_loss == best


def test_settings_are_never_mixed(tmp_path):
    for seed in (0, 1):
        for lr in (0.001, 0.01):
            write(tmp_path, "seven_dyn", 0.9, seed, 0.5 + 10 * lr, config={"optimizer": {"lr": lr}})
        write(tmp_path, "magnitude", 0.9, seed, 0.4)
        write(
            tmp_path, "random", 0.9, seed, 0.1, config={"pruner": {"name": "random", "seed": seed}}
        )
    rows = rows_of(tmp_path)
    assert set(rows) == {
        *(("seven_dyn optimizer.lr=0.001", 0.9), ("seven_dyn optimizer.lr=0.01", 0.9)),
        *(("magnitude optimizer.lr=0.001", 0.9), ("random optimizer.lr=0.001", 0.9)),
    }
    assert rows["seven_dyn optimizer.lr=0.01", 0.9].result.mean == pytest.approx(0.6)
    assert rows["random optimizer.lr=0.001", 0.9].result.n == 2


def test_a_switch_that_is_off_is_not_named(tmp_path):
    """So that planned contrasts hold when a method is also run with the switch."""
    for shuffled, accuracy in ((False, 0.9), (True, 0.8)):
        for power in (0, 1):
            settings = {"name": "own", "power": power, "shuffled": shuffled}
            write(tmp_path, "own", 0.9, 0, accuracy, config={"pruner": settings})
    assert {method for method, _ in rows_of(tmp_path, baseline=None)} == {
        *("own pruner.power=0", "own pruner.power=0 pruner.shuffled=true"),
        *("own pruner.power=1", "own pruner.power=1 pruner.shuffled=true"),
    }


def test_other_models_and_data_sets_are_tables_of_their_own(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 0, 0.8, model="vit_tiny", run_hash="other")
    write(tmp_path, "seven_dyn", 0.9, 0, 0.9, model="vit_tiny", run_hash="another")
    records, _ = read_runs([tmp_path])
    rows, _ = summarize(records, "accuracy", "magnitude")
    assert [(r.model, r.method, r.best) for r in rows] == [
        *(("mlp", "magnitude", True), ("vit_tiny", "seven_dyn", True)),
        ("vit_tiny", "magnitude", False),
    ]
    assert rows[1].difference.estimate.mean == pytest.approx(0.1)


def test_files_of_ones_own_are_told_apart_by_what_they_hold(tmp_path):
    def on(place, files, seed, accuracy, pruner="magnitude"):
        write(
            tmp_path, pruner, 0.9, seed, accuracy, run_hash=f"{place} {files} {pruner} {seed}",
            data_files=files, config={"dataset": {"data_dir": place}},
        )  # fmt: skip

    on("ia", "0a", 0, 0.1)
    on("ib", "0b", 0, 0.4)
    on("moved/ia", "0a", 1, 0.3)
    on("ib", "0b", 0, 0.5, "seven_dyn")
    rows = rows_of(tmp_path)
    assert {key: row.result.mean for key, row in rows.items()} == {
        ("magnitude dataset.data_dir=ia", 0.9): pytest.approx(0.2),
        ("magnitude dataset.data_dir=ib", 0.9): 0.4,
        ("seven_dyn dataset.data_dir=ib", 0.9): 0.5,
    }
    assert rows["seven_dyn dataset.data_dir=ib", 0.9].reference == "magnitude dataset.data_dir=ib"
    on("ib", "0c", 0, 0.6)
    assert {method for method, _ in rows_of(tmp_path)} == {
        *("magnitude dataset.data_dir=ia", "magnitude dataset.data_dir=ib (0b)"),
        *("magnitude dataset.data_dir=ib (0c)", "seven_dyn dataset.data_dir=ib (0b)"),
    }


@pytest.mark.parametrize("key", ["calibration.data_dir", "evaluation.include_path"])
def test_texts_and_tasks_of_ones_own_are_told_apart_by_what_they_hold(tmp_path, key):
    section, name = key.split(".")

    def on(place, files, seed, accuracy, pruner="wanda", **more):
        other = {key: files} if files else {}
        config = {section: {name: place}}
        write(tmp_path, pruner, 0.5, seed, accuracy, other_files=other, config=config, **more)

    on("a", "0a", 0, 0.1)
    on("moved/a", "0a", 1, 0.3)
    assert {method for method, _ in rows_of(tmp_path, baseline=None)} == {"wanda"}
    on("b", "0b", 1, 0.4)
    # it reads none of them
    on("b", None, 0, 0.5, "magnitude", unread=[section])
    rows = rows_of(tmp_path)
    assert {method: row.result.mean for (method, _), row in rows.items()} == {
        f"wanda {key}=a": pytest.approx(0.2),
        f"wanda {key}=b": 0.4,
        "magnitude": 0.5,
    }
    assert rows[f"wanda {key}=a", 0.5].reference == "magnitude"


def test_records_that_say_nothing_of_files_are_compared_as_ever(tmp_path):
    for seed, place in enumerate(("here", "there")):
        write(tmp_path, "magnitude", 0.9, seed, 0.4, config={"dataset": {"data_dir": place}})
    assert set(rows_of(tmp_path)) == {("magnitude", 0.9)}
    # one more is alike as far as anybody knows
    write(
        tmp_path, "magnitude", 0.9, 2, 0.4, data_files="0a", config={"dataset": {"data_dir": "a"}}
    )
    assert rows_of(tmp_path)["magnitude", 0.9].result.n == 3


def test_longer_training_is_another_method(tmp_path):
    for seed, steps in itertools.product((0, 1), (10, 20)):
        write(
            tmp_path, "magnitude", 0.9, seed, steps / 100, steps=steps, run_hash=f"{seed} {steps}"
        )
    rows = rows_of(tmp_path)
    assert {key: row.result.mean for key, row in rows.items()} == {
        ("magnitude steps=10", 0.9): 0.1,
        ("magnitude steps=20", 0.9): 0.2,
    }


def test_two_ways_to_say_how_long_are_one_method(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4, config={"trainer": {"epochs": 1, "max_steps": None}})
    write(tmp_path, "magnitude", 0.9, 1, 0.6, config={"trainer": {"epochs": None, "max_steps": 10}})
    assert rows_of(tmp_path)["magnitude", 0.9].result.n == 2


def test_pruners_trained_otherwise_are_labelled(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4, config={"optimizer": {"lr": 0.1}})
    write(tmp_path, "seven_dyn", 0.9, 0, 0.5, config={"optimizer": {"lr": 0.2}})
    rows = rows_of(tmp_path)
    assert set(rows) == {("magnitude optimizer.lr=0.1", 0.9), ("seven_dyn optimizer.lr=0.2", 0.9)}
    row = rows["seven_dyn optimizer.lr=0.2", 0.9]
    assert row.reference == "magnitude optimizer.lr=0.1"
    assert row.difference.estimate.mean == pytest.approx(0.1)


def test_a_setting_unknown_to_older_runs_tells_no_methods_apart(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.6, config={"trainer": {"new": 1}, "newer": {"a": 2}})
    write(tmp_path, "seven_dyn", 0.9, 0, 0.5)
    assert set(rows_of(tmp_path)) == {("magnitude", 0.9), ("seven_dyn", 0.9)}
    assert rows_of(tmp_path)["magnitude", 0.9].result.n == 2
    records, _ = read_runs([tmp_path])
    _, notes = summarize(records, "accuracy", "magnitude")
    assert notes == ["settings that some runs of a row don't know: newer.a, trainer.new"]
    write(tmp_path, "magnitude", 0.9, 2, 0.6, config={"trainer": {"new": 3}, "newer": {"a": 2}})
    assert {method for method, _ in rows_of(tmp_path)} == {
        *("magnitude trainer.new=unset", "magnitude trainer.new=1", "magnitude trainer.new=3"),
        "seven_dyn trainer.new=unset",
    }


@pytest.mark.parametrize(
    "config",
    [
        {"pruner": {"name": "magnitude", "decay": 0.5}},
        {"model": {"width": 0.5}},
        {"pruner": {"name": "magnitude", "sparsities": {"head": 0.5}}},
    ],
)
def test_an_argument_that_was_not_given_is_a_default_which_may_be_another(tmp_path, config):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.6, config=config)
    methods = {method for method, _ in rows_of(tmp_path)}
    assert {method.rpartition("=")[2] for method in methods} == {"unset", "0.5"}


def test_a_record_of_a_newer_version_is_left_out(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.6, schema=SCHEMA + 1)
    records, notes = read_runs([tmp_path])
    assert [record.seed for record in records] == [0]
    assert notes == ["1 of a newer version"]


def test_settings_come_from_hydra_where_the_record_has_none(tmp_path):
    for seed, alpha in itertools.product((0, 1), (0.8, 0.9)):
        folder = write(
            tmp_path, "seven_dyn", 0.9, seed, alpha, config=None, run_hash=f"{seed} {alpha}"
        )
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(
            f"seed: {seed}\noutput_root: ${{oc.env:HOME}}/{alpha}\npruner:\n  alpha_1: {alpha}\n"
        )
    rows = rows_of(tmp_path, baseline=None)
    assert {key: row.result.mean for key, row in rows.items()} == {
        ("seven_dyn pruner.alpha_1=0.8", 0.9): 0.8,
        ("seven_dyn pruner.alpha_1=0.9", 0.9): 0.9,
    }


@pytest.mark.parametrize("axis", ["schedule", "scope", "pattern", "when", "criterion"])
def test_without_any_config_the_record_itself_tells_settings(tmp_path, axis):
    for value in ("this", "that"):
        write(tmp_path, "magnitude", 0.9, 0, 0.5, config=None, run_hash=value, **{axis: value})
    assert set(rows_of(tmp_path)) == {
        (f"magnitude {axis}=this", 0.9),
        (f"magnitude {axis}=that", 0.9),
    }


def test_each_row_is_compared_with_the_baseline_of_its_settings(tmp_path):
    for seed, lr in itertools.product((0, 1), (0.001, 0.01)):
        settings = {"optimizer": {"lr": lr}}
        write(tmp_path, "magnitude", 0.9, seed, 0.5 + 10 * lr, config=settings)
        write(tmp_path, "seven_dyn", 0.9, seed, 0.6 + 20 * lr, config=settings)
    rows = rows_of(tmp_path)
    # 0.62 - 0.51 and 0.8 - 0.6
    low, high = (rows[f"seven_dyn optimizer.lr={lr}", 0.9] for lr in (0.001, 0.01))
    assert low.reference == "magnitude optimizer.lr=0.001"
    assert low.difference.estimate.mean == pytest.approx(0.11)
    assert high.difference.estimate.mean == pytest.approx(0.2)
    assert rows["magnitude optimizer.lr=0.01", 0.9].difference is None
    # one of the baseline's own settings can be the baseline
    rows = rows_of(tmp_path, baseline="magnitude optimizer.lr=0.001")
    assert rows["magnitude optimizer.lr=0.01", 0.9].difference.estimate.mean == pytest.approx(0.09)
    assert rows["seven_dyn optimizer.lr=0.01", 0.9].difference.estimate.mean == pytest.approx(0.29)


def test_an_unclear_baseline_is_said_so(tmp_path, capsys):
    for rounds in (1, 2):
        pruner = {"name": "magnitude", "rounds": rounds}
        write(tmp_path, "magnitude", 0.9, 0, 0.5, config={"pruner": pruner})
    write(tmp_path, "seven_dyn", 0.9, 0, 0.7)
    assert rows_of(tmp_path)["seven_dyn", 0.9].difference is None
    compare([tmp_path])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "differences: 1 ('magnitude' has several settings" in said
    assert "--baseline 'magnitude pruner.rounds=" in said


def test_dense_is_a_baseline_for_every_sparsity(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "dense", 0.0, seed, 0.9)
        write(tmp_path, "magnitude", 0.5, seed, 0.8 + seed / 10)
        write(tmp_path, "magnitude", 0.9, seed, 0.6 + seed / 10)
    rows = rows_of(tmp_path, baseline="dense")
    assert rows["magnitude", 0.5].difference.estimate.mean == pytest.approx(-0.05)
    assert rows["magnitude", 0.9].difference.estimate.mean == pytest.approx(-0.25)
    assert rows["dense", 0.0].difference is None


def diverging(folder, status="failed"):
    """Four of five seeds of one method end without a result, the fifth is lucky."""
    for seed in range(5):
        write(folder, "magnitude", 0.9, seed, 0.80 + seed / 100)
        write(folder, "seven_dyn", 0.9, seed, 0.85 + seed / 200)
        lucky = {"status": "finished" if seed == 2 else status, "steps": 10 if seed == 2 else 3}
        write(folder, "platon", 0.9, seed, 0.99, **lucky)


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_seeds_without_a_result_are_counted_and_bar_a_row_from_being_best(tmp_path, capsys, status):
    diverging(tmp_path, status)
    rows = rows_of(tmp_path)
    assert {method: row.lost for (method, _), row in rows.items()} == {
        "magnitude": {}, "seven_dyn": {}, "platon": {status: 4},
    }  # fmt: skip
    # what a failed run has measured is not a result
    assert rows["platon", 0.9].by_seed == {2: 0.99}
    assert [method for (method, _), row in rows.items() if row.best] == ["seven_dyn"]
    assert rows["seven_dyn", 0.9].starred
    compare([tmp_path])
    printed = capsys.readouterr().out
    assert re.search(rf"platon\s+99\.00 ± n/a\s+1 \(4 of 5 {status}\)†", printed)
    assert "† neither best nor starred" in printed
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        sheet = {row["method"]: row for row in csv.DictReader(file)}
    assert [sheet["platon"][key] for key in ("seeds", "without_result", "best", "barred")] == [
        *("1", "4", "0", f"4 of 5 {status}"),
    ]
    assert sheet["seven_dyn"]["best"] == sheet["seven_dyn"]["starred"] == "1"
    data = embedded(tmp_path / "comparison.html")["shared"]
    place = data["rows"]["method"].index([m["name"] for m in data["methods"]].index("platon"))
    assert data["estimates"]["accuracy"]["best"][place] is False
    assert data["marks"]["accuracy"]["seeds"][place] == f"1 (4 of 5 {status})†"
    assert data["marks"]["accuracy"]["barred"][place] is True


def test_a_method_that_missed_its_sparsity_is_neither_best_nor_silent(tmp_path, capsys):
    for seed in (0, 1, 2):
        write(tmp_path, "random", 0.95, seed, 0.5 + seed / 1000)
        for method, accuracy, reached in (
            ("soft_movement", 0.9, 0.85),
            ("magnitude", 0.8, 0.9499),
            ("seven_dyn", 0.7, 0.9501),
            ("wanda", 0.7, 0.958),
        ):
            folder = write(tmp_path, method, 0.95, seed, accuracy + seed / 1000)
            record = json.loads((folder / "results.json").read_text())
            (folder / "results.json").write_text(json.dumps(record | {"sparsity": reached}))
    compare([tmp_path], baseline="random")
    printed = " ".join(capsys.readouterr().out.split())
    assert "starred: soft_movement kept too many weights, 85% reached instead of 95%" in printed
    assert "allows, which harms: wanda 95.8% reached instead of 95% " in printed
    assert "seeds without a result" not in printed
    rows = rows_of(tmp_path, baseline="random")
    assert [method for (method, _), row in rows.items() if row.best] == ["magnitude"]
    assert not rows["soft_movement", 0.95].starred


def test_a_seed_without_the_metric_is_lost_too(tmp_path):
    for seed in range(3):
        write(tmp_path, "magnitude", 0.9, seed, 0.4 + seed / 10)
        write(tmp_path, "snip", 0.9, seed, 0.9 if seed == 0 else float("nan"))
    rows = rows_of(tmp_path)
    assert rows["snip", 0.9].lost == {"without accuracy": 2}
    assert [method for (method, _), row in rows.items() if row.best] == ["magnitude"]


def test_neither_best_nor_starred_on_fewer_seeds_than_a_rival(tmp_path):
    for seed in range(5):
        write(tmp_path, "magnitude", 0.9, seed, 0.80 + seed / 100)
        write(tmp_path, "seven_dyn", 0.9, seed, 0.85 + seed / 90)
        if seed < 3:
            write(tmp_path, "snip", 0.9, seed, 0.95 + seed / 90)
    rows = rows_of(tmp_path)
    # ahead in all three pairs, by far and alike
    assert rows["snip", 0.9].p < 0.05
    assert (rows["snip", 0.9].best, rows["snip", 0.9].starred) == (False, False)
    assert rows["snip", 0.9].barred == "a rival has 5 seeds"
    assert (rows["seven_dyn", 0.9].best, rows["seven_dyn", 0.9].starred) == (True, True)


def test_no_star_against_a_baseline_whose_seeds_failed(tmp_path):
    for seed in range(5):
        write(tmp_path, "magnitude", 0.9, seed, 0.80 + seed / 100)
        write(tmp_path, "snip", 0.9, seed, 0.90 + seed / 90)
    assert rows_of(tmp_path)["snip", 0.9].starred
    write(tmp_path, "magnitude", 0.9, 5, 0.1, status="failed")
    row = rows_of(tmp_path)["snip", 0.9]
    assert row.p < 0.05
    assert not row.starred


def test_a_seed_that_failed_first_and_finished_later_is_not_lost(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4, status="failed")
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.4, status="failed", run_hash="of an older version")
    write(tmp_path, "magnitude", 0.9, 1, 0.5)
    row = rows_of(tmp_path)["magnitude", 0.9]
    assert (row.by_seed, row.lost) == ({0: 0.4, 1: 0.5}, {})


def test_a_failed_run_belongs_to_the_row_of_its_settings(tmp_path):
    for seed, lr in itertools.product((0, 1), (0.001, 0.01)):
        status = "failed" if (seed, lr) == (1, 0.01) else "finished"
        write(
            tmp_path, "magnitude", 0.9, seed, 0.4, status=status,
            steps=3 if status == "failed" else 10, config={"optimizer": {"lr": lr}},
        )  # fmt: skip
    rows = rows_of(tmp_path)
    assert rows["magnitude optimizer.lr=0.001", 0.9].lost == {}
    assert rows["magnitude optimizer.lr=0.01", 0.9].lost == {"failed": 1}


def test_a_failed_run_belongs_to_the_row_of_its_planned_length(tmp_path):
    for seed, epochs in itertools.product((0, 1), (1, 2)):
        failed = (seed, epochs) == (1, 2)
        write(
            tmp_path, "magnitude", 0.9, seed, 0.4, status="failed" if failed else "finished",
            steps=3 if failed else 10 * epochs, config={"trainer": {"epochs": epochs}},
        )  # fmt: skip
    rows = rows_of(tmp_path)
    assert rows["magnitude steps=10", 0.9].lost == {}
    assert rows["magnitude steps=20", 0.9].lost == {"failed": 1}


def test_a_method_of_which_no_seed_finished_is_named(tmp_path, capsys):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    for seed in range(3):
        write(tmp_path, "snip", 0.9, seed, 0.4, status="failed")
    compare([tmp_path])
    assert capsys.readouterr().err == "left out: 3 failed, snip at 90% (3 failed, none finished)\n"


def test_no_ranking_inside_overlapping_intervals(tmp_path, capsys):
    for seed, noise in enumerate((-0.03, 0.0, 0.03)):
        write(tmp_path, "magnitude", 0.9, seed, 0.50 + noise)
        write(tmp_path, "snip", 0.9, seed, 0.90 + noise)
        write(tmp_path, "seven_dyn", 0.9, seed, 0.91 + noise)
        write(tmp_path, "snip", 0.5, seed, 0.5 + noise)
        write(tmp_path, "seven_dyn", 0.5, seed, 0.9 + noise)
    rows = list(rows_of(tmp_path).values())
    # s = 0.03: half the interval is 4.302653 * 0.03 / sqrt 3 = 0.0745
    assert {target: len(some) for target, some in undecided(rows).items()} == {0.9: 1}
    compare([tmp_path])
    assert "overlaps those of other methods (1 at 90%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seeds", "words"), [((3, 1, 2, 0), "0-3"), ((4,), "4"), ((0, 1, 5, 7, 8), "0-1, 5, 7-8")]
)
def test_seeds_in_few_words(seeds, words):
    assert spans(seeds) == words


def test_methods_on_different_seeds_are_said_so_and_compared_unpaired_if_asked(tmp_path, capsys):
    for seed, value in enumerate((0.60, 0.70, 0.65, 0.62, 0.68)):
        write(tmp_path, "magnitude", 0.9, seed, value)
        write(tmp_path, "snip", 0.9, seed + 5, value + 0.2)
    assert rows_of(tmp_path)["snip", 0.9].difference is None
    compare([tmp_path])
    printed = capsys.readouterr()
    assert re.search(r"snip\s+85\.00 ± 5\.12\s+5\s+seeds differ", printed.out)
    assert printed.err == (
        "left out: differences: 1 (seeds differ: snip 5-9, magnitude 0-4; --unpaired compares "
        "them)\n"
    )
    shared = embedded(tmp_path / "comparison.html")["shared"]
    assert sum(map(bool, shared["differences"]["accuracy"]["magnitude"]["apart"])) == 1

    assert main([str(tmp_path), "--unpaired", *WITHOUT_PICTURES]) == 0
    printed = capsys.readouterr()
    assert re.search(r"\+20\.00 ± \d\.\d\d\s+<0\.001\*", printed.out)
    assert "not paired by seed (Welch's t test)" in printed.out
    assert printed.err == ""
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        sheet = {row["method"]: row for row in csv.DictReader(file)}
    assert (sheet["snip"]["test"], sheet["snip"]["pairs"]) == ("unpaired", "")
    shared = embedded(tmp_path / "comparison.html")["shared"]
    assert shared["paired"] is False
    assert 0.2 in shared["differences"]["accuracy"]["magnitude"]["mean"]


def test_an_interval_is_never_narrower_than_one_test_example(tmp_path, capsys):
    for seed in range(5):
        write(tmp_path, "magnitude", 0.9, seed, 340 / 360, test_examples=360)
        write(tmp_path, "snip", 0.9, seed, (300 + 10 * seed) / 360, test_examples=360)
    rows = rows_of(tmp_path)
    assert rows["magnitude", 0.9].result.half == pytest.approx(1 / 360)
    wide = estimate([(300 + 10 * seed) / 360 for seed in range(5)])
    assert rows["snip", 0.9].result == wide
    compare([tmp_path])
    printed = capsys.readouterr().out
    assert "94.44 ± 0.28" in printed
    assert "the test set's size" not in printed
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        sheet = {row["method"]: row for row in csv.DictReader(file)}
    assert float(sheet["magnitude"]["half_interval_95"]) == pytest.approx(1 / 360)
    # a loss has no smallest step
    assert rows_of(tmp_path, metric="loss")["magnitude", 0.9].result.half < 1e-12


def test_an_unknown_size_of_the_test_set_is_said(tmp_path, capsys):
    for seed in (0, 1):
        write(tmp_path, "magnitude", 0.9, seed, 340 / 360)
    compare([tmp_path])
    assert "the test set's size is not in some records" in capsys.readouterr().out
    compare([tmp_path], metric="loss")
    assert "the test set's size" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "ends", "step"),
    [
        *(("accuracy", (0, 1), 1 / 50), ("exact_match", (0, 1), 1 / 50), ("f1", (0, 1), 0.0)),
        *(("matthews", (-1, 1), 0.0), ("pearson", (-1, 1), 0.0)),
        ("accuracy_mismatched", (0, 1), None),
        *((name, (-math.inf, math.inf), 0.0) for name in ("loss", "loss_mismatched")),
        *(("perplexity", (1, math.inf), 0.0), ("latency.dense", (0, math.inf), 0.0)),
    ],
)
def test_what_a_metrics_name_says(metric, ends, step):
    assert bounds(metric) == ends
    assert resolution(metric, 50) == step
    assert resolution(metric, None) == (None if is_share(metric) else 0.0)


def test_accuracy_is_never_drawn_above_all(tmp_path):
    for seed, accuracy in enumerate((0.80, 1.0, 0.99)):
        write(tmp_path, "magnitude", 0.9, seed, accuracy, test_examples=100)
    (row,) = rows_of(tmp_path).values()
    assert row.result.mean + row.result.half > 1
    (panel,) = draw([row], "accuracy").axes
    assert panel.get_ylim()[1] <= 100
    drawn = {artist.get_gid(): artist for artist in panel.get_children() if artist.get_gid()}
    bar = drawn["magnitude-bars"]
    low = 100 * (row.result.mean - row.result.half)
    assert bar.get_segments()[0][:, 1] == pytest.approx([low, 100])
    # the loss, between 0 and 0.2, has no such end
    (row,) = rows_of(tmp_path, metric="loss").values()
    assert draw([row], "loss").axes[0].get_ylim()[0] < 0
    compare([tmp_path])
    shared = embedded(tmp_path / "comparison.html")["shared"]
    assert shared["metrics"]["accuracy"]["bounds"] == [0, 1]
    assert shared["metrics"]["loss"]["bounds"] == [None, None]
    assert shared["estimates"]["accuracy"]["half"] == [
        pytest.approx(4.302653 * 0.1127 / 3**0.5, 1e-3)
    ]


def test_a_runs_own_date_decides_which_record_is_the_newest(tmp_path):
    dates = {"older": "2026-11-26T09:30:00+00:00", "newer": "2026-11-26T11:00:00+01:00"}
    folders = {
        name: write(tmp_path, "magnitude", 0.9, 0, accuracy, run_hash="one", ended=dates[name])
        for name, accuracy in (("newer", 0.6), ("older", 0.4))
    }
    # touched, copied, unpacked: the file of the older run is the younger one
    os.utime(folders["newer"] / "results.json", (1, 1))
    assert rows_of(tmp_path)["magnitude", 0.9].by_seed == {0: 0.6}
    records, notes = read_runs([tmp_path])
    assert [record.folder for record in records] == [folders["newer"]]
    assert notes == ["1 done twice (the newest is kept)"]


@pytest.mark.parametrize("ended", [None, "yesterday", 5, "2026-11-26T09:30:00"])
def test_records_without_a_date_are_dated_by_their_file(tmp_path, ended):
    folder = write(tmp_path, "magnitude", 0.9, 0, 0.4, ended=ended)
    os.utime(folder / "results.json", (1000, 1000))
    (record,), _ = read_runs([tmp_path])
    # 2026-11-26, 09:30 UTC, in seconds since 1970
    assert record.written == (1795685400 if ended == "2026-11-26T09:30:00" else 1000)


def test_zeros_of_all_parameters_are_shown(tmp_path, capsys):
    sizes = {"params_total": 2000, "params_prunable": 1000, "params_nonzero": 100}
    write(tmp_path, "magnitude", 0.9, 0, 0.4, zeros_total=0.47, **sizes)
    # an older record counts those of its masks: 900 of 2000
    write(tmp_path, "snip", 0.9, 0, 0.5, **sizes)
    write(tmp_path, "random", 0.9, 0, 0.3)
    zeros = {method: row.zeros for (method, _), row in rows_of(tmp_path).items()}
    assert zeros == {"magnitude": 0.47, "snip": 0.45, "random": None}
    compare([tmp_path])
    printed = capsys.readouterr().out
    assert "zeros of all parameters" in printed
    assert re.search(r"magnitude.* 47%", printed)
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        sheet = {row["method"]: row["zeros_total"] for row in csv.DictReader(file)}
    assert sheet == {"magnitude": "0.47", "snip": "0.45", "random": ""}
    shared = embedded(tmp_path / "comparison.html")["shared"]
    assert sorted(shared["rows"]["zeros"], key=str) == [0.45, 0.47, None]


def test_a_run_that_kept_everything_lies_at_zero(tmp_path):
    path = write(tmp_path, "dense", 0.9, 0, 0.4) / "results.json"
    path.write_text(path.read_text().replace('"sparsity": 0.9', '"sparsity": 0.0'))
    assert list(rows_of(tmp_path, baseline=None)) == [("dense", 0.0)]


BROKEN = {
    "metrics.jsonl": [
        *(b'{"step": 1e999}\n{"step": 2}\n', b"[" * 100_000 + b'\n{"step": 2}\n'),
        *(b'\xff\xfe\x00\n{"step": 2}\n', b'{"stop": 1}\n{"step": 2}\n', None),
    ],
    "masks.safetensors": [b"", b"\x10\0\0\0\0\0\0\0{}", None, "truncated"],
    "analysis.json": [b"{", b"[]", b"[" * 100_000, None],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, all_ in BROKEN.items() for content in all_]
)
def test_a_broken_side_file_costs_itself_alone(tmp_path, capsys, name, content):
    masks = {"a.weight": np.arange(64).reshape(8, 8) % 3 == 0}
    for pruner, seed in itertools.product(("magnitude", "snip"), (0, 1)):
        folder = write(tmp_path, pruner, 0.9, seed, 0.4 + seed / 10)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
        save_masks(folder / "masks.safetensors", {k: torch.tensor(v) for k, v in masks.items()})
    path = tmp_path / "1" / name
    whole = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(whole[:-3] if content == "truncated" else content)
    assert main([str(tmp_path), *WITHOUT_PICTURES]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"left out: {path} (")
    assert said.count("\n") == 1
    page = embedded(tmp_path / "comparison.html")
    curves = page["sections"]["training"]["curves"]["loss"]
    assert sum(curve is not None for curve in curves) == (3 if name == "metrics.jsonl" else 4)
    # the masks of the other three runs are still compared
    (matrix,) = page["sections"]["overlap"]
    assert matrix["seeds"] == 2
    assert matrix["jaccard"][0][1] == 1


@pytest.mark.parametrize(
    "text", ["1e999", "1" + "0" * 400, "null", '"x"', "[[1]]", "{}", "true", "-1", "[" * 3000]
)
def test_no_broken_record_harms_the_others(tmp_path, capsys, text):
    whole = write(tmp_path, "magnitude", 0.9, 0, 0.4, layers=[], data_files=None, test_examples=9)
    values = json.loads((whole / "results.json").read_text())
    for key in [*values, "zeros_total", "params_total", "flops_sparse", "ended", "best", "metric"]:
        folder = tmp_path / f"broken {key}"
        folder.mkdir()
        rest = json.dumps({k: v for k, v in values.items() if k != key} | {"run_hash": key})
        (folder / "results.json").write_text(f'{rest[:-1]}, "{key}": {text}}}')
    assert main([str(tmp_path), "--metric", "accuracy", *WITHOUT_PICTURES]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert whole in {record.folder for record in read_runs([tmp_path])[0]}


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.4, status="failed")
    write(tmp_path, "magnitude", 0.9, 3, 0.4, status="running")
    half = write(tmp_path, "magnitude", 0.9, 2, 0.4) / "results.json"
    half.write_text(half.read_text()[:40])
    write(tmp_path, "magnitude", 0.9, "x", 0.4)
    write(tmp_path, "magnitude", 0.9, 5, 0.4, metrics=None)
    write(tmp_path, "magnitude", float("nan"), 6, 0.4)
    for name, text in (("a", "[1, 2]"), ("b", '{"status": ["finished"]}'), ("c", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    older = write(tmp_path, "seven_dyn", 0.9, 0, 0.3)
    newer = write(tmp_path, "seven_dyn", 0.9, 0, 0.5)
    os.utime(older / "results.json", (1, 1))
    records, notes = read_runs([tmp_path, tmp_path / "."])
    assert notes == [
        *("1 done twice (the newest is kept)", "1 failed", "5 foreign"),
        *("1 still running", f"2 unreadable: {half}, {tmp_path / 'c' / 'results.json'}"),
    ]
    assert {r.folder for r in records if r.status == "finished"} == {tmp_path / "0", newer}


def test_notes_are_one_line_and_no_error(tmp_path, capsys):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.4, status="failed")
    write(tmp_path, "magnitude", 0.9, 2, float("nan"))
    assert main([str(tmp_path), *WITHOUT_PICTURES]) == 0
    assert capsys.readouterr().err == "left out: 1 failed, 1 without accuracy\n"
    assert rows_of(tmp_path)["magnitude", 0.9].by_seed == {0: 0.4}


def test_a_seed_counts_once(tmp_path):
    older = write(tmp_path, "magnitude", 0.9, 0, 0.4, run_hash="a checkpoint of this name")
    write(tmp_path, "magnitude", 0.9, 0, 0.6, run_hash="another of the same name")
    os.utime(older / "results.json", (1, 1))
    records, _ = read_runs([tmp_path])
    rows, notes = summarize(records, "accuracy", None)
    assert rows[0].by_seed == {0: 0.6}
    assert notes == ["1 alike in all but the hash (the newest is kept)"]


@pytest.mark.slow
def test_files(sweep, capsys):
    compare_and_draw([sweep])
    printed = capsys.readouterr().out
    assert "mlp on digits" in printed
    assert re.search(r"90%\s+seven_dyn\s+72\.00 ± 26\.17\s+3\s+\+2\.00 ± 2\.48", printed)

    with (sweep / "comparison.csv").open(encoding="utf-8") as file:
        sheet = {(row["method"], row["sparsity"]): row for row in csv.DictReader(file)}
    assert float(sheet["seven_dyn", "0.9"]["mean"]) == pytest.approx(0.72)
    assert float(sheet["seven_dyn", "0.9"]["difference"]) == pytest.approx(0.02)
    assert float(sheet["seven_dyn", "0.9"]["difference_half_interval_95"]) == pytest.approx(
        4.302653 * 0.01 / math.sqrt(3), rel=1e-6
    )
    assert (sheet["seven_dyn", "0.9"]["pairs"], sheet["seven_dyn", "0.9"]["baseline"]) == (
        *("3", "magnitude"),
    )
    assert sheet["dense", "0.0"]["half_interval_95"] == ""
    assert sheet["magnitude", "0.9"]["difference"] == ""
    assert len(sheet) == 5

    with Image.open(sweep / "comparison.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50

    assert not list(sweep.glob(".*partial*"))


def embedded(page):
    """The data that a page draws."""
    found = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S
    )
    return json.loads(*found)


def test_page(sweep):
    output = sweep / "a folder" / "out"
    compare([sweep], output=output)
    data = embedded(output / "comparison.html")["shared"]
    rows = [
        (data["methods"][m]["name"], s)
        for m, s in zip(data["rows"]["method"], data["rows"]["sparsity"], strict=True)
    ]
    place = rows.index(("seven_dyn", 0.9))
    estimates, differences = (
        {key: values[place] for key, values in found.items()}
        for found in (data["estimates"]["accuracy"], data["differences"]["accuracy"]["magnitude"])
    )
    # as worked out above: 61, 82 and 73 points, and 1, 2 and 3 ahead
    assert estimates["mean"] == pytest.approx(0.72)
    assert estimates["half"] == pytest.approx(4.302653 * math.sqrt(1.11) / 10 / math.sqrt(3), 1e-5)
    assert differences["mean"] == pytest.approx(0.02)
    assert differences["half"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    t = 2 * math.sqrt(3)
    assert differences["p"] == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-3)
    assert differences["holm"] == differences["p"]  # the only test at this sparsity
    assert rows[differences["reference"]] == ("magnitude", 0.9)
    assert len(data["runs"]["link"]) == 13
    for link in data["runs"]["link"]:
        assert (output / unquote(link)).is_file()


def test_links_survive_odd_names(tmp_path):
    odd = tmp_path / "50% #1 & more"
    odd.mkdir()
    write(odd, "magnitude", 0.9, 0, 0.4)
    compare([tmp_path])
    (link,) = embedded(tmp_path / "comparison.html")["shared"]["runs"]["link"]
    assert link == "50%25%20%231%20%26%20more/0/results.json"


def test_baselines_to_choose_from_are_bounded(tmp_path, monkeypatch):
    for i in range(12):
        for seed in range(1 + i % 3):
            write(tmp_path, f"pruner_{i:02d}", 0.9, seed, 0.5 + i / 100 + seed / 1000)
    # twelve rows of two metrics each
    monkeypatch.setattr("seven_exp.compare.sections.MOST_DIFFERENCES", 3 * 24)
    compare([tmp_path], baseline="pruner_00")
    data = embedded(tmp_path / "comparison.html")
    # the one asked for, then those of most runs
    assert data["sections"]["table"] == {
        "baselines": ["pruner_00", "pruner_02", "pruner_05"],
        "more": 9,
    }
    assert set(data["shared"]["differences"]["loss"]) == {"pruner_00", "pruner_02", "pruner_05"}


def test_settings_of_a_pruner_are_baselines_too(tmp_path):
    for seed, lr in itertools.product((0, 1), (0.001, 0.01)):
        config = {"optimizer": {"lr": lr}}
        write(tmp_path, "magnitude", 0.9, seed, 0.5 + 10 * lr + seed / 10, config=config)
    write(tmp_path, "snip", 0.9, 0, 0.5)
    compare([tmp_path])
    assert embedded(tmp_path / "comparison.html")["sections"]["table"]["baselines"] == [
        *("magnitude", "magnitude optimizer.lr=0.001", "magnitude optimizer.lr=0.01", "snip"),
    ]


def test_long_histories_are_thinned_to_points_that_were_logged(tmp_path, monkeypatch):
    folder = write(tmp_path, "magnitude", 0.9, 0, 0.4)
    lines = [{"step": 3 * i, "loss": i * i / 7} for i in range(1000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_history(folder / "metrics.jsonl")["loss"]
    assert len(curve) == 200
    assert set(curve) <= {(line["step"], line["loss"]) for line in lines}
    assert (curve[0][0], curve[-1][0]) == (0, 2997)
    gaps = {b[0] - a[0] for a, b in itertools.pairwise(curve)}
    # 999 gaps of three steps over 199 of the thinned curve: five of them at a time, or six
    assert gaps == {15, 18}
    # a page of many curves holds fewer points of each
    monkeypatch.setattr("seven_exp.compare.sections.MOST_CURVE_VALUES", 20)
    compare([tmp_path])
    training = embedded(tmp_path / "comparison.html")["sections"]["training"]
    ((grid, values),) = training["curves"]["loss"]
    assert training["most"] == len(values) == len(training["steps"][grid]) == 20
    assert values[-1] == pytest.approx(999 * 999 / 7, rel=1e-3)


def test_files_are_read_again_when_they_have_changed(tmp_path):
    folder = write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.4)
    cache, read = FileCache(), []
    path = folder / "results.json"

    def parse(path):
        read.append(path)
        return path.read_text()

    assert cache.read(path, parse) == cache.read(path, parse)
    assert read == [path]
    path.write_text(path.read_text().replace("0.4", "0.45"))
    assert '"accuracy": 0.45' in cache.read(path, parse)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        cache.read(path, parse)
    records, _ = read_runs([tmp_path], cache)
    assert [record.seed for record in records] == [1]
    again, _ = read_runs([tmp_path], cache)
    assert again[0] is records[0]


@pytest.mark.slow
def test_the_same_records_make_the_same_files(sweep):
    for name in ("a", "b"):
        compare_and_draw([sweep], output=Output(sweep / name, formats=FORMATS))
    names = sorted(path.name for path in (sweep / "a").iterdir())
    assert names == sorted(
        [*(f"comparison.{form}" for form in FORMATS),
         *(f"comparison_differences.{form}" for form in ("pdf", "png", "svg"))]
    )  # fmt: skip
    for name in names:
        assert (sweep / "a" / name).read_bytes() == (sweep / "b" / name).read_bytes()


def test_every_method_looks_different(tmp_path):
    for i in range(56):
        write(tmp_path, f"pruner_{i}", 0.9, 0, 0.5)
    look = styles(rows_of(tmp_path, baseline=None).values())
    assert len({(style.colour, style.marker) for style in look.values()}) == 56
    lines = [(style.colour, style.dash) for style in look.values()]
    assert len({*lines[:21]}) == 21
    assert {dash for _, dash in lines[:7]} == {""}, "seven colours need no dashes"


def test_the_picture_holds_a_line_an_interval_and_the_seeds(sweep):
    rows = list(rows_of(sweep).values())
    (panel,) = draw(rows, "accuracy").axes
    drawn = {artist.get_gid(): artist for artist in panel.get_children() if artist.get_gid()}
    _, most = drawn["seven_dyn-means"].get_xdata()  # at 50% and 90%
    bars = drawn["seven_dyn-bars"].get_segments()
    (ends,) = (bar[:, 1] for bar in bars if bar[0, 0] == most)
    # 72 ± 4.302653 s / sqrt 3 with values 61, 82 and 73, whose s is sqrt 111
    half = 4.302653 * math.sqrt(111) / math.sqrt(3)
    assert ends == pytest.approx([72 - half, 72 + half], rel=1e-6)
    seeds = zip(*drawn["seven_dyn-seeds"].get_data(), strict=True)
    assert sorted(y for x, y in seeds if x == most) == pytest.approx([61, 73, 82])
    assert list(drawn["dense-line"].get_ydata()) == [97, 97]
    # one value: no bar of zero length, which would look like certainty
    assert "dense-bars" not in drawn


def test_names_with_markup_do_no_harm(tmp_path, capsys):
    # HTML's markup, rich's, and matplotlib's
    for name in ("<script>alert(1)</script>", "[/red] [bold]", r"$\frac{ and $ -->"):
        write(tmp_path, name, 0.9, 0, 0.4)
    compare_and_draw([tmp_path])
    assert "<script>alert" not in (tmp_path / "comparison.html").read_text()
    assert "[/red] [bold]" in capsys.readouterr().out


def test_a_thousand_runs_are_grouped(tmp_path):
    for seed, sparsity in itertools.product(range(20), range(50)):
        folder = tmp_path / f"{seed}" / f"{sparsity}"
        folder.mkdir(parents=True)
        write(folder, "magnitude", sparsity / 50, seed, 0.5)
    rows = rows_of(tmp_path)
    assert {(row.sparsity, row.result.n) for row in rows.values()} == {
        (sparsity / 50, 20) for sparsity in range(50)
    }


def run_main(arguments):
    try:
        return main(arguments)
    except SystemExit as stop:  # argparse's way
        return stop.code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder 'nowhere'"),
        (["empty"], "no finished run below empty"),
        (["sweep", "--metric", "acuracy"], "did you mean 'accuracy'"),
        (["sweep", "--baseline", "magnitud"], "did you mean 'magnitude'"),
        (["sweep", "--output", "file/below"], "--output is 'file/below': can't write there"),
        (["failed"], "no finished run below failed (left out: 1 failed)"),
        (["sweep", "--wandb", "project"], "--wandb is 'project': expected entity/project"),
        (["sweep", "--wandb", "team/project"], "not logged in to W&B"),
        (["sweep", "--port", "80"], "--port works only with --serve"),
        (["sweep", "--serve", "--port", "70000"], "--port is 70000"),
        (["sweep", "--serve", "--style", "ggplot"], "--style is for files and the terminal"),
        (["sweep", "--serve", "--published"], "--published is for files and the terminal"),
        (["sweep", "--x", "kept", "--format", "csv,html"], "--x is for figures: add png, svg or"),
        (["sweep", "--contrast", "magnitude:magnitude"], "name two different methods"),
        (["sweep", "--serve", "--metric", "acuracy"], "did you mean 'accuracy'"),
        (["empty", "--serve"], "no finished run below empty"),
        (["sweep", "--basline", "magnitude"], "--basline"),
        ([], "FOLDER"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "sweep").mkdir()
    write(tmp_path / "sweep", "magnitude", 0.9, 0, 0.4)
    write(tmp_path / "sweep", "magnitude", 0.9, 1, 0.4, status="failed")
    (tmp_path / "failed").mkdir()
    write(tmp_path / "failed", "magnitude", 0.9, 0, 0.4, status="failed")
    monkeypatch.chdir(tmp_path)
    assert run_main(arguments) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.count("\n") == 1


@pytest.mark.slow
def test_the_module_is_a_command(sweep):
    def run(*arguments):
        return subprocess.run(
            [python(), "-m", "seven_exp", "compare", *map(str, arguments)],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip

    done = run(sweep, "--output", sweep / "out")
    assert done.returncode == 0, done.stderr
    assert (sweep / "out" / "comparison.png").exists()
    with subprocess.Popen(
        [sys.executable, "-m", "seven_exp", "compare", str(sweep)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
    ) as piped:  # fmt: skip
        piped.stdout.close()
    assert (sweep / "comparison.html").exists()
    mistaken = run(sweep, "--metric", "acuracy")
    assert mistaken.returncode == 2
    assert mistaken.stderr == "error: --metric is 'acuracy': did you mean 'accuracy'?\n"


def test_published_figures_stand_beside_ours_of_the_same_task(capsys):
    from seven_exp.compare.published import beside, print_published, read_published
    from seven_exp.compare.statistics import estimate
    from seven_exp.compare.summary import Row

    source, figures = read_published()
    assert "2403.12688" in source
    assert all(0 <= f.sparsity < 1 and f.metric in ("accuracy", "f1") for f in figures)
    values = {0: 0.80, 1: 0.82}
    row = Row("minilm", "glue/mrpc", "seven_pre", {}, 0.8, values, estimate([0.8, 0.82]), 1.0, 1.0)
    found = [(figure, ours) for figure, ours in beside([row], "accuracy") if ours]
    assert [(f.percent, f.pruner, f.sparsity) for f, _ in found] == [("81.0", "seven_pre", 0.8)]
    assert {figure.dataset for figure, _ in beside([row], "accuracy")} == {"glue/mrpc"}
    print_published([row], "accuracy")
    out = capsys.readouterr().out
    assert "81.0" in out
    assert "minilm" in out


def test_the_headline_is_what_most_runs_name():
    from types import SimpleNamespace

    from seven_exp.compare.summary import headline

    named = [SimpleNamespace(values=v) for v in ({"metric": "f1"}, {"metric": "f1"}, {})]
    assert headline(named) == "f1"
    assert headline(named[2:]) == "accuracy"
