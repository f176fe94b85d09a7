"""Schedules: ends, shapes and windows."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seven_exp.pruning.schedules import SCHEDULES, Gradual

sparsities = st.floats(0, 0.99)


RISING = [name for name in SCHEDULES if name != "alternating"]


@pytest.mark.parametrize("name", RISING)
@given(sparsity=sparsities, steps=st.integers(1, 200), begin=st.integers(0, 50))
def test_never_falls_and_ends_exactly_at_the_target(name, sparsity, steps, begin):
    schedule = Gradual(name, begin, begin + steps)
    path = [schedule.sparsity(t, sparsity) for t in range(begin + steps + 3)]
    assert all(s == 0 for s in path[:begin])
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(path))
    assert path[begin + steps - 1 :] == [sparsity] * 4


@pytest.mark.parametrize(
    ("name", "halfway"),
    [
        ("one_shot", 0.8),
        ("linear", 0.4),
        ("cubic", 0.7),  # 1 - (0.2 + 0.8 / 8)
        ("exponential", 1 - math.sqrt(0.2)),
        ("cosine", 0.4),
        ("constant", 0.8),
    ],
)
def test_values_worked_out_by_hand(name, halfway):
    assert Gradual(name, 10, 20).sparsity(14, 0.8) == pytest.approx(halfway, abs=1e-12)


def test_cubic_is_the_published_density():
    schedule, k, n = Gradual("cubic", 5, 35), 0.3, 30
    for j in range(n):
        density = k + (1 - k) * (1 - (j + 1) / n) ** 3
        assert 1 - schedule.sparsity(5 + j, 1 - k) == pytest.approx(density, abs=1e-12)


def test_updates_fall_on_interval_ends_and_on_the_last_step():
    schedule = Gradual("linear", 3, 13, interval=4)
    assert [t for t in range(20) if schedule.updates(t)] == [6, 10, 12]


def test_levels_make_a_staircase():
    """A level that grows as target * epoch / epochs, epochs counted from 1."""
    schedule, epochs, per_epoch = Gradual("linear", 0, 35, levels=5), 5, 7
    for t in range(35):
        assert schedule.sparsity(t, 0.6) == pytest.approx(0.6 * (t // per_epoch + 1) / epochs)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ((-1, 5, 1), "begin_step is -1"),
        ((5, 5, 1), "never reach its target"),
        ((6, 5, 1), "never reach its target"),
        ((0, 5, 6), "interval is 6"),
        ((0, 5, 0), "interval is 0"),
        ((0, 5, 1, 6), "levels is 6"),
        ((0, 5, 1, 0), "levels is 0"),
    ],
)
def test_impossible_windows_are_refused(window, words):
    with pytest.raises(ValueError, match=words):
        Gradual("cubic", *window)


def test_a_curve_that_stops_short_is_refused():
    SCHEDULES.add("halfway_only", lambda progress, sparsity: sparsity * progress / 2)
    with pytest.raises(ValueError, match="does not reach its target"):
        Gradual("halfway_only", 0, 5)


def test_unknown_curve_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cubic'"):
        Gradual("qubic", 0, 5)


def test_alternating_phases_are_ten_and_the_last_is_sparse():
    schedule = Gradual("alternating", 0, 100)
    path = [schedule.sparsity(t, 0.8) for t in range(100)]
    # the step that completes a tenth belongs to the next phase; the last one to the last
    phases = [(s, len(list(run))) for s, run in itertools.groupby(path)]
    assert phases == [(0.0, 9), *[(0.8, 10), (0.0, 10)] * 4, (0.8, 11)]
