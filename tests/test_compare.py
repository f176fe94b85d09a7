"""Comparisons: statistics against figures worked out by hand, grouping, and the files."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seven_exp.compare.__main__ import compare, main
from seven_exp.compare.records import labels, read_records
from seven_exp.compare.statistics import estimate, holm, paired_difference
from seven_exp.compare.summary import summarize

ROOT = Path(__file__).parent.parent


def write(root, pruner, sparsity, seed, accuracy, status="finished", **changes):
    """A record as a run leaves it."""
    config = {
        "seed": seed, "sparsity": sparsity, "schedule": {"name": "cubic"},
        "optimizer": {"lr": 0.001}, "pruner": {"name": pruner}, **changes.pop("config", {}),
    }  # fmt: skip
    values = {
        "schema": 1, "run_hash": f"{pruner}-{sparsity}-{seed}-{json.dumps(config)}",
        "status": status, "pruner": pruner, "model": "mlp", "dataset": "digits", "seed": seed,
        "sparsity_target": sparsity, "metrics": {"accuracy": accuracy, "loss": 1 - accuracy},
        "params_nonzero": 100, "seconds": 2.0, "steps": 10, "config": config, **changes,
    }  # fmt: skip
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


def rows_of(folder, **settings):
    records, _ = read_records([folder])
    arguments = {"metric": "accuracy", "baseline": "magnitude", **settings}
    return {(row.method, row.sparsity): row for row in summarize(records, **arguments)}


def test_interval_of_three_values():
    found = estimate([1.0, 2.0, 3.0])
    # s = 1, and the 97.5% quantile of Student's t with 2 degrees of freedom is 4.302653
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval():
    assert estimate([0.5]).half is None


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


def test_without_a_spread_there_is_no_test():
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
    # one image of 360 in each of three seeds, whose differences are equal but for rounding
    baseline = {0: 350 / 360, 1: 347 / 360, 2: 349 / 360}
    ours = {0: 349 / 360, 1: 346 / 360, 2: 348 / 360}
    difference = paired_difference(ours, baseline)
    assert difference.estimate.mean == pytest.approx(-1 / 360)
    assert difference.p is None


def test_holm_by_hand():
    # sorted: .01 x 4, .02 x 3 = .06, .03 x 2 = .06, .5 x 1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_correction_covers_the_whole_table(sweep):
    rows = rows_of(sweep)
    # two comparisons were made: at 0.5 (p = 1) and at 0.9
    raw = rows["seven_dyn", 0.9].difference.p
    assert rows["seven_dyn", 0.9].p == pytest.approx(2 * raw)
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
        *(("magnitude", 0.9), ("random", 0.9)),
    }
    assert rows["seven_dyn optimizer.lr=0.01", 0.9].result.mean == pytest.approx(0.6)
    assert rows["random", 0.9].result.n == 2


def test_other_models_and_data_sets_are_tables_of_their_own(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 0, 0.8, model="vit_tiny", run_hash="other")
    write(tmp_path, "seven_dyn", 0.9, 0, 0.9, model="vit_tiny", run_hash="another")
    records, _ = read_records([tmp_path])
    assert labels(records) == ["magnitude", "magnitude", "seven_dyn"]
    rows = summarize(records, "accuracy", "magnitude")
    assert [(r.model, r.method, r.best) for r in rows] == [
        *(("mlp", "magnitude", True), ("vit_tiny", "seven_dyn", True)),
        ("vit_tiny", "magnitude", False),
    ]
    assert rows[1].difference.estimate.mean == pytest.approx(0.1)


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path, "magnitude", 0.9, 0, 0.4)
    write(tmp_path, "magnitude", 0.9, 1, 0.4, status="failed")
    half = write(tmp_path, "magnitude", 0.9, 2, 0.4) / "results.json"
    half.write_text(half.read_text()[:40])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text("[1, 2]")
    older = write(tmp_path, "seven_dyn", 0.9, 0, 0.3)
    newer = write(tmp_path, "seven_dyn", 0.9, 0, 0.5)
    os.utime(older / "results.json", (1, 1))
    records, notes = read_records([tmp_path])
    assert notes == ["left out: 1 done twice", "left out: 1 failed", "left out: 2 unreadable"]
    assert {r.folder for r in records} == {tmp_path / "0", newer}


def test_files(sweep, capsys):
    compare([sweep])
    printed = capsys.readouterr().out
    assert "mlp on digits" in printed
    assert re.search(r"90%\s+seven_dyn\s+72\.00 ± 26\.17\s+3\s+\+2\.00 ± 2\.48", printed)

    with (sweep / "comparison.csv").open() as file:
        sheet = {(row["method"], row["sparsity"]): row for row in csv.DictReader(file)}
    assert float(sheet["seven_dyn", "0.9"]["mean"]) == pytest.approx(0.72)
    assert float(sheet["seven_dyn", "0.9"]["difference"]) == pytest.approx(0.02)
    assert sheet["dense", "0.0"]["half_interval_95"] == ""

    with Image.open(sweep / "comparison.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50

    page = (sweep / "comparison.html").read_text()
    for words in ("seven_dyn", "72.00 ± 26.17", "+2.00 ± 2.48", "95% Student t", "13 runs"):
        assert words in page
    assert "<svg" in page
    loaded = re.findall(r"(?:src|href)=['\"]([^'\"#]+)['\"]", page)
    assert loaded
    assert not [link for link in loaded if "://" in link]
    assert all((sweep / link).exists() for link in loaded if link.endswith(".json"))


def test_names_with_markup_do_no_harm(tmp_path):
    write(tmp_path, "<script>alert(1)</script>", 0.9, 0, 0.4)
    compare([tmp_path])
    assert "<script>alert" not in (tmp_path / "comparison.html").read_text()


def test_a_thousand_runs_of_many_settings(tmp_path):
    for seed in range(20):
        for sparsity in range(50):
            write(tmp_path, "magnitude", sparsity / 50, seed, 0.5)
    assert len(rows_of(tmp_path)) == 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder 'nowhere'"),
        (["empty"], "no finished run below empty"),
        (["sweep", "--metric", "acuracy"], "did you mean 'accuracy'"),
        (["sweep", "--baseline", "magnitud"], "did you mean 'magnitude'"),
        (["sweep", "--output", "file/below"], "file/below"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "sweep").mkdir()
    write(tmp_path / "sweep", "magnitude", 0.9, 0, 0.4)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.count("\n") == 1


def test_the_module_is_a_command(sweep):
    done = subprocess.run(
        [sys.executable, "-m", "seven_exp.compare", str(sweep), "--output", str(sweep / "out")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (sweep / "out" / "comparison.png").exists()
