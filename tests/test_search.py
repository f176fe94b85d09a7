"""Searches of settings: what was tried, what was best when, and what mattered."""

import itertools
import math

import pytest
from test_compare import rows_of, run_main, write

from seven_exp.compare.look import Look
from seven_exp.compare.search import caption, draw, searches

RATES = (0.1, 0.001, 0.01, 0.0001)
"""In the order in which they are tried."""


def accuracy(rate, name):
    return 0.9 - abs(math.log10(rate) + 2) / 10 - (0.001 if name == "sgd" else 0.0)


@pytest.fixture
def sweep(tmp_path):
    """Four rates and three optimizers on two seeds: rates matter, optimizers hardly do."""
    names = ("adamw", "sgd", "lion")
    for i, (rate, name) in enumerate((r, n) for r in RATES for n in names):
        for seed in (0, 1):
            value = accuracy(rate, name)
            write(
                tmp_path, "seven_dyn", 0.9, seed, 1 - value,
                config={"optimizer": {"lr": rate, "name": name}},
                validation={"accuracy": value + seed / 100, "loss": 1 - value},
                ended=f"2026-01-01T00:{i:02d}:{seed:02d}+00:00",
            )  # fmt: skip
    write(tmp_path, "magnitude", 0.9, 0, 0.5)
    return tmp_path


def test_settings_are_compared_on_validation_in_order_of_time(sweep):
    rows = list(rows_of(sweep, baseline=None).values())
    (found,) = searches(rows, "accuracy")
    assert (found.pruner, found.sparsity, found.validated) == ("seven_dyn", 0.9, True)
    assert set(found.tried) == {"optimizer.lr", "optimizer.name"}
    assert found.tried["optimizer.lr"] == [rate for rate in RATES for _ in range(3)]
    assert found.tried["optimizer.name"] == ["adamw", "sgd", "lion"] * 4
    # the mean over seeds 0 and 1 is half a point above the first
    expected = [accuracy(r, n) + 0.005 for r in RATES for n in ("adamw", "sgd", "lion")]
    assert list(found.values) == pytest.approx(expected)
    # 0.01 is the third of the rates
    assert found.best == 6
    assert found.best_so_far == pytest.approx([0.805] * 6 + [0.905] * 6)
    # the rate explains all but a thousandth
    assert found.importance["optimizer.lr"] > 0.95
    assert sum(found.importance.values()) == pytest.approx(1)
    # of a loss the smallest is the best
    (by_loss,) = searches(list(rows_of(sweep, metric="loss", baseline=None).values()), "loss")
    assert by_loss.best == 6
    assert by_loss.best_so_far[0] == pytest.approx(0.2)


def test_the_figure_shows_what_was_tried(sweep):
    found = searches(list(rows_of(sweep, baseline=None).values()), "accuracy")
    figure = draw(found, Look({"seven_dyn": "SEVEN", "optimizer.lr": "rate"}))
    figure.draw_without_rendering()
    history, importance, parallel, *slices = figure.subfigs[0].axes
    (best,) = [line for line in history.lines if line.get_gid() == "best-so-far"]
    assert list(best.get_ydata()) == pytest.approx([80.5] * 6 + [90.5] * 6)
    assert importance.get_yticklabels()[0].get_text() == "rate"
    (lines,) = [c for c in parallel.collections if c.get_gid() == "lines"]
    assert len(lines.get_segments()) == 12
    # places from 0 to 1: rates by their logarithm, words in their order, the best on top
    assert lines.get_segments()[-1][:, 1] == pytest.approx([2 / 3, 0, 1])
    texts = {text.get_text() for text in parallel.texts}
    assert texts == {"0.1", "0.0001", "adamw", "lion", "sgd", "70.4", "90.5"}
    names = [label.get_text() for label in parallel.get_xticklabels()]
    assert names == ["rate", "optimizer\nname", "validation accuracy, %"]
    boxes = [text.get_window_extent() for text in (*parallel.texts, *parallel.get_xticklabels())]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert [panel.get_xlabel() for panel in slices] == ["rate", "optimizer.name"]
    assert slices[0].get_xscale() == "log"
    assert "SEVEN" in caption(found, Look({"seven_dyn": "SEVEN"}))
    assert "on the validation split" in caption(found, Look())


def test_few_settings_are_no_search_and_without_validation_the_metric_counts(tmp_path):
    for i, rate in enumerate(RATES):
        assert searches(list(rows_of(tmp_path).values()) if i else [], "accuracy") == []
        write(tmp_path, "magnitude", 0.9, 0, 0.5 + i / 100, config={"optimizer": {"lr": rate}})
    (found,) = searches(list(rows_of(tmp_path, baseline=None).values()), "accuracy")
    assert not found.validated
    assert max(found.values) == 0.53
    # four points say nothing about importance
    assert found.importance == {}
    assert "on the test split" in caption([found], Look())
    draw([found], Look(width=3.25)).draw_without_rendering()


@pytest.mark.slow
def test_the_command_draws_the_search_and_removes_it_when_there_is_none(sweep):
    assert run_main([str(sweep)]) == 0
    assert (sweep / "comparison_search.png").is_file()
    page = (sweep / "comparison.html").read_text()
    assert '<section id="search">' in page
    for folder in sweep.iterdir():
        if folder.is_dir() and folder.name not in ("0", "24"):
            (folder / "results.json").unlink()
    assert run_main([str(sweep)]) == 0
    assert not (sweep / "comparison_search.png").exists()
    assert '<section id="search">' not in (sweep / "comparison.html").read_text()
