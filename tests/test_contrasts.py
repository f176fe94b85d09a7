"""Planned contrasts and mean ranks, against published examples and figures worked out by hand."""

import csv
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2, norm, ttest_1samp
from scipy.stats import t as student
from test_compare import embedded, rows_of, run_main, write
from test_conf import composed

from seven_exp.compare.comparison import compare
from seven_exp.compare.conclusions import Conclusions
from seven_exp.compare.contrasts import p_words, parse, planned, split
from seven_exp.compare.inference import Inference, as_stated
from seven_exp.compare.plot import as_svg
from seven_exp.compare.power import power, resolved, seeds_to_resolve
from seven_exp.compare.rank_diagram import draw
from seven_exp.compare.ranks import alike, friedman, rank, sentences
from seven_exp.compare.records import read_runs
from seven_exp.compare.statistics import (
    Difference,
    Estimate,
    equivalence,
    holm,
    paired_difference,
    unpaired_difference,
)
from seven_exp.compare.summary import summarize
from seven_exp.config import ConfigError
from seven_exp.runs.check import check
from seven_exp.runs.identity import run_hash

# R's data set `sleep` (Student 1908): hours gained by ten patients with two drugs.
DRUG_1 = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
DRUG_2 = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))

# Demšar (2006), table 6: AUC of C4.5 and of three ways to tune it, on 14 data sets.
DEMSAR = """
    0.763 0.768 0.771 0.798   0.599 0.591 0.590 0.569   0.954 0.971 0.968 0.967
    0.628 0.661 0.654 0.657   0.882 0.888 0.886 0.898   0.936 0.931 0.916 0.931
    0.661 0.668 0.609 0.685   0.583 0.583 0.563 0.625   0.775 0.838 0.866 0.875
    1.000 1.000 1.000 1.000   0.940 0.962 0.965 0.962   0.619 0.666 0.614 0.669
    0.972 0.981 0.978 0.975   0.957 0.978 0.946 0.970
"""
AUC = np.array(DEMSAR.split(), float).reshape(14, 4)
C45 = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]

# Hollander and Wolfe (1973, page 140): 22 players round the first base in three ways.
ROUNDING_TIMES = """
    5.40 5.50 5.55  5.85 5.70 5.75  5.20 5.60 5.50  5.55 5.50 5.40  5.90 5.85 5.70  5.45 5.55 5.60
    5.40 5.40 5.35  5.45 5.50 5.35  5.25 5.15 5.00  5.85 5.80 5.70  5.25 5.20 5.10  5.65 5.55 5.45
    5.60 5.35 5.45  5.05 5.00 4.95  5.50 5.50 5.40  5.45 5.55 5.50  5.55 5.55 5.35  5.45 5.50 5.55
    5.50 5.45 5.25  5.65 5.60 5.40  5.70 5.65 5.55  6.30 6.30 6.25
"""


def tasks(n):
    return [(f"model {i}", "data") for i in range(n)]


@pytest.mark.parametrize(("margin", "p"), [(0.5, 0.98924), (3.0, 0.0026556)])
def test_equivalence_of_students_sleep_data(margin, p):
    # statsmodels 0.15, ttost_paired; for 0.5 also the vignette of R's TOSTER: t(9) = -2.777
    difference = paired_difference(DRUG_2, DRUG_1)
    assert equivalence(difference, margin) == pytest.approx(p, rel=1e-4)
    # R's help page of t.test: t = -4.0621, df = 9, p-value = 0.002833
    assert difference.p == pytest.approx(0.002833, rel=2e-4)
    assert difference.estimate.ends() == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


@pytest.mark.parametrize("shift", [-1.0, -0.2, 0.0, 0.7, 2.0])
def test_equivalence_is_the_larger_of_two_one_sided_tests(shift):
    values = np.array([0.1, -0.4, 0.3, 0.5, -0.2]) + shift
    difference = paired_difference(dict(enumerate(values)), dict.fromkeys(range(5), 0.0))
    low = ttest_1samp(values, -0.6, alternative="greater").pvalue
    high = ttest_1samp(values, 0.6, alternative="less").pvalue
    assert equivalence(difference, 0.6) == pytest.approx(max(low, high))


def test_equivalence_respects_the_smallest_step():
    # an interval of one test example each way: its standard error is the step / 2.776445
    ours = {seed: 0.9 + min(seed, 1) / 360 for seed in range(5)}
    difference = paired_difference(ours, dict.fromkeys(range(5), 0.9), 1 / 360)
    assert difference.error == pytest.approx(1 / 360 / 2.776445, rel=1e-6)
    assert equivalence(paired_difference(ours, ours, 1 / 360), 0.1) is None


def test_power_of_published_examples():
    # G*Power 3.1's manual, matched pairs: dz = 0.421637 and 50 pairs give 0.832114
    assert power(0.421637, 1.0, 50, 0.05) == pytest.approx(0.832114, abs=1e-6)
    # G*Power without a true difference: the level
    assert power(0.0, 1.0, 7, 0.05) == pytest.approx(0.05)
    # Dalgaard, Introductory Statistics with R, 8.3: power.t.test(delta=10, sd=10*sqrt(2),
    # power=0.85, type="paired") gives n = 19.96892
    assert power(10, 10 * math.sqrt(2), 20, 0.05) > 0.85 > power(10, 10 * math.sqrt(2), 19, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("tests", [1, 2, 8, 36])
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_power_with_few_seeds_is_the_integral_over_their_spread(n, tests):
    """Given the spread s of n seeds, the mean is normal; n s^2 is a chi squared."""
    alpha, freedom = 0.05 / tests, n - 1
    critical = student.ppf(1 - alpha / 2, freedom)

    def integrated(difference):
        shift = difference * math.sqrt(n)

        def density(s):
            found = norm.cdf(shift - critical * s) + norm.cdf(-shift - critical * s)
            return 2 * freedom * s * chi2.pdf(freedom * s * s, freedom) * found

        ends = [0, 0.5 * shift / critical, shift / critical, 2 * shift / critical, 2, 8]
        return sum(quad(density, *pair, limit=200)[0] for pair in pairwise(sorted(ends)))

    for difference in (0.2, 0.73, 0.74, 0.75, 0.8, 2.0, 6.0):
        expected = integrated(difference)
        assert power(difference, 1.0, n, alpha) == pytest.approx(expected, abs=1e-5)
    assert integrated(resolved(1.0, n, alpha)) == pytest.approx(0.8, abs=1e-5)


def test_power_is_the_fraction_of_simulated_tests():
    sample = np.random.default_rng(0).normal(1.0, 1.0, (20_000, 5))
    t = sample.mean(1) / (sample.std(1, ddof=1) / math.sqrt(5))
    found = np.mean(np.abs(t) > 2.776445)
    assert power(1.0, 1.0, 5, 0.05) == pytest.approx(found, abs=0.012)


def test_what_seeds_resolve():
    assert power(resolved(2.0, 6, 0.05), 2.0, 6, 0.05) == pytest.approx(0.8, abs=1e-6)
    n = seeds_to_resolve(0.5, 1.0, 0.05)
    assert power(0.5, 1.0, n, 0.05) >= 0.8 > power(0.5, 1.0, n - 1, 0.05)
    assert seeds_to_resolve(100.0, 1.0, 0.05) == 2
    assert seeds_to_resolve(0.001, 1.0, 0.05) is None


def test_friedman_and_nemenyi_are_demsars():
    found = friedman(0.9, tasks(14), C45, (-AUC).tolist())
    # page 13: average ranks 3.143, 2.000, 2.893, 1.964, and a critical difference of 1.25
    expected = {"C4.5+m+cf": 1.964, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5": 3.143}
    assert list(found.means) == list(expected)
    assert found.means == pytest.approx(expected, abs=5e-4)
    assert found.critical == pytest.approx(1.25, abs=5e-3)
    # page 13: chi squared = 9.28 without the correction for ties, which divides it by
    # 1 - sum(t^3 - t) / (N k (k^2 - 1)) over the groups of t ties
    ties = sum(int(t**3 - t) for row in AUC for t in np.unique(row, return_counts=True)[1])
    assert found.statistic * (1 - ties / (14 * 4 * 15)) == pytest.approx(9.28, abs=5e-3)
    # page 14: no pair differs at 5%
    assert alike(found) == [("C4.5+m+cf", "C4.5")]


def test_friedman_is_rs():
    # R's help page of friedman.test: chi-squared = 11.143, df = 2, p-value = 0.003805
    times = np.array(ROUNDING_TIMES.split(), float).reshape(22, 3)
    found = friedman(0.9, tasks(22), ["out", "narrow", "wide"], times.tolist())
    assert found.statistic == pytest.approx(11.143, abs=5e-4)
    assert found.p == pytest.approx(0.003805, abs=5e-7)
    assert "the methods differ" in sentences(found)[0]
    # Nemenyi (1963): q = 2.343 for three methods, as in Demšar's table 5
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 22)), abs=5e-4)


def test_groups_of_methods_that_do_not_differ():
    costs = [[1, 2, 3, 4, 5, 6]] * 9
    found = friedman(0.9, tasks(9), list("abcdef"), costs)
    # q = 2.850 for six methods: 2.850 sqrt(6 * 7 / (6 * 9)) = 2.51
    assert found.critical == pytest.approx(2.513, abs=2e-3)
    assert alike(found) == [("a", "c"), ("b", "d"), ("c", "e"), ("d", "f")]
    svg = as_svg(draw([found]))
    assert svg.startswith("<svg")
    assert svg == as_svg(draw([found]))
    assert all(f"{name} {i + 1}.00" in svg for i, name in enumerate("abcdef"))


def test_few_tasks_make_nothing_certain():
    found = friedman(0.9, tasks(2), ["a", "b", "c"], [[1, 2, 3], [1, 2, 3]])
    assert found.p > 0.05
    assert "2 tasks are too few" in sentences(found)[1]
    same = friedman(0.9, tasks(2), ["a", "b", "c"], [[1, 1, 1], [2, 2, 2]])
    assert (same.statistic, same.p) == (None, None)
    assert sentences(same)[0] == "all 3 methods tie on all 2 tasks"


@pytest.fixture
def several(tmp_path):
    """Three tasks; snip has no result on one of them."""
    for i, dataset in enumerate(("digits", "fashion_mnist", "cifar10")):
        for j, method in enumerate(("magnitude", "seven_dyn", "taylor_dyn", "snip")):
            if (dataset, method) == ("cifar10", "snip"):
                continue
            for seed in range(3):
                value = 0.5 + 0.1 * i + 0.02 * j * (-1) ** (i == 2) + 0.001 * seed
                name = f"{dataset}-{method}-{seed}"
                write(tmp_path, method, 0.9, seed, value, dataset=dataset, run_hash=name)
    return tmp_path


@pytest.mark.slow
def test_methods_with_a_result_on_every_task_are_ranked(several, capsys):
    rows = list(rows_of_all(several).values())
    (found,) = rank(rows, "accuracy")
    # taylor, seven, magnitude on two tasks, the reverse on the third
    assert dict(found.means) == pytest.approx(
        {"taylor_dyn": 5 / 3, "seven_dyn": 2.0, "magnitude": 7 / 3}
    )
    assert found.left_out == ["snip"]
    # loss is 1 - accuracy, of which the smallest is the best
    (by_loss,) = rank(list(rows_of_all(several, metric="loss").values()), "loss")
    assert by_loss.means == found.means
    compare([several])
    printed = capsys.readouterr().out
    assert "not ranked, without a result on some task: snip" in printed
    assert "comparison_ranks.png" in printed
    with (several / "comparison_ranks.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["taylor_dyn", "seven_dyn", "magnitude"]
    assert float(lines[0]["mean_rank"]) == 5 / 3
    page = (several / "comparison.html").read_text()
    assert '<section id="ranks">' in page
    assert "<svg" in page


def rows_of_all(folder, **settings):
    records, _ = read_runs([folder])
    rows, _ = summarize(records, **{"metric": "accuracy", "baseline": None, **settings})
    return {(row.method, row.task, row.sparsity): row for row in rows}


def test_one_task_is_not_ranked(tmp_path):
    for method in ("magnitude", "seven_dyn", "snip"):
        write(tmp_path, method, 0.9, 0, 0.5)
    assert rank(list(rows_of(tmp_path).values()), "accuracy") == []


# ---- planned contrasts


def arms(folder, methods, sparsity=0.9, **changes):
    """Records of methods: name -> accuracy of each seed."""
    for method, values in methods.items():
        for seed, value in enumerate(values):
            write(folder, method, sparsity, seed, value, test_examples=100_000, **changes)


NEAR = [0.8012, 0.7991, 0.8009, 0.7993, 0.8004, 0.8001]
FAR = [0.78, 0.781, 0.779, 0.7805, 0.7795, 0.78]
FLAT = [0.8] * 6


def conclusions(folder, contrasts, margin=None, **options):
    rows = list(rows_of(folder, baseline=None, metric=options.pop("metric", "accuracy")).values())
    metric = "accuracy"
    return Conclusions.of(rows, metric, Inference(contrasts=contrasts, margin=margin, **options))


def test_verdicts_of_planned_contrasts(tmp_path):
    arms(tmp_path, {"seven_dyn": FLAT, "taylor_dyn": NEAR, "magnitude_dyn": FAR})
    found = conclusions(tmp_path, ("seven_dyn:taylor_dyn", "seven_dyn:magnitude_dyn"), 0.3)
    near, far = found.contrasts
    assert (near.verdict, far.verdict) == ("equivalent", "better")

    # both p values are those of the two tests, after Holm over two contrasts
    def raw(other, margin=None):
        of = paired_difference(dict(enumerate(FLAT)), dict(enumerate(other)), 1e-5)
        return of.p if margin is None else equivalence(of, margin)

    assert [near.p, far.p] == pytest.approx(holm([raw(NEAR), raw(FAR)]))
    expected = holm([raw(NEAR, 0.003), raw(FAR, 0.003)])
    assert [near.p_equivalence, far.p_equivalence] == pytest.approx(expected)
    assert near.family == far.family == 2
    assert found.said(near).startswith(
        f"equivalent within 0.3 points at 95%: {p_words(near.p_equivalence)}."
    )
    assert found.said(far).startswith("better by 2 points (95% interval 1.")
    # without a margin nothing is equivalent, and a test that finds nothing shows no equality
    (alone,) = conclusions(tmp_path, ("seven_dyn:taylor_dyn",)).contrasts
    assert (alone.verdict, alone.p_equivalence) == ("undecided", None)
    assert "does not show that there is none" in found.said(alone)
    # the other way round
    (worse,) = conclusions(tmp_path, ("magnitude_dyn:seven_dyn",)).contrasts
    assert worse.verdict == "worse"
    # a difference that is certain, and smaller than the margin
    (slight,) = conclusions(tmp_path, ("seven_dyn:magnitude_dyn",), 3).contrasts
    assert slight.verdict == "slightly better"
    assert "but by less than 3 points" in found.said(slight)


def test_a_smaller_loss_is_better(tmp_path):
    arms(tmp_path, {"seven_dyn": NEAR, "magnitude": FAR})
    rows = list(rows_of(tmp_path, metric="loss").values())
    ((found,), _) = planned(rows, "loss", Inference(contrasts=("seven_dyn:magnitude",)))
    assert found.difference.estimate.mean < 0
    assert found.verdict == "better"
    # a loss has no unit in which half a point means something
    assert found.to_resolve is None


def test_families(tmp_path):
    for sparsity in (0.5, 0.9):
        arms(tmp_path, {"seven_dyn": FLAT, "taylor_dyn": NEAR, "snip": FAR}, sparsity)
    names = ("seven_dyn:taylor_dyn", "seven_dyn:snip")
    by_sparsity = conclusions(tmp_path, names).contrasts
    whole = conclusions(tmp_path, names, family="table").contrasts
    assert {c.family for c in by_sparsity} == {2}
    assert {c.family for c in whole} == {4}
    raw = [c.difference.p for c in whole]
    assert [c.p for c in whole] == pytest.approx(holm(raw))
    # the unplanned differences to a baseline: two at each sparsity
    for family, n in (("sparsity", 2), ("table", 4)):
        rows = rows_of(tmp_path, baseline="seven_dyn", inference=Inference(family=family))
        smallest = rows["snip", 0.9]
        assert smallest.p == pytest.approx(n * smallest.difference.p, rel=1e-6)


def test_a_comparison_that_cannot_be_tested_counts_in_its_family(tmp_path):
    arms(tmp_path, {"seven_dyn": NEAR, "magnitude": FAR, "snip": [0.5]})
    far, single, missing = conclusions(
        tmp_path, ("seven_dyn:magnitude", "seven_dyn:snip", "snip:magnitude")
    ).contrasts
    assert far.p == pytest.approx(3 * far.difference.p)
    assert (single.p, missing.p) == (None, None)
    assert single.verdict == "untested"


def failed(folder):
    arms(folder, {"seven_dyn": NEAR, "magnitude": FAR})
    write(folder, "seven_dyn", 0.9, 6, 0.1, status="failed")


def unpaired(folder):
    write(folder, "seven_dyn", 0.9, 0, 0.5)
    write(folder, "seven_dyn", 0.9, 1, 0.6)
    write(folder, "magnitude", 0.9, 2, 0.5)
    write(folder, "magnitude", 0.9, 3, 0.6)


def fewer(folder):
    arms(folder, {"seven_dyn": NEAR, "magnitude": FAR[:3]})


def longer(folder):
    arms(folder, {"seven_dyn": NEAR}, steps=20)
    arms(folder, {"magnitude": FAR}, steps=10)


def denser(folder):
    arms(folder, {"seven_dyn": NEAR}, params_nonzero=200)
    arms(folder, {"magnitude": FAR})


@pytest.mark.parametrize(
    ("make", "verdict", "words"),
    [
        (failed, "undecided", "undecided: seeds without a result are not missing by chance. "
         "Caution: seven_dyn: 1 of 7 failed"),
        (unpaired, "untested", "not tested: no common seed (0-1 against 2-3)"),
        (fewer, "better", "Caution: only 3 of 6 seeds are common."),
        (longer, "better", "Caution: steps differs (20 against 10): the budgets"),
        (denser, "better", "Caution: kept weights differ (200 against 100)."),
        (lambda folder: arms(folder, {"seven_dyn": [0.8], "magnitude": [0.7]}), "untested",
         "not tested: one seed has no spread, so there is no test."),
        (lambda folder: arms(folder, {"seven_dyn": FLAT, "magnitude": FLAT}), "untested",
         "not tested: identical on all 6 seeds: without a spread there is no test."),
        (lambda folder: arms(folder, {"seven_dyn": FLAT, "magnitude": [0.7] * 6}), "untested",
         "not tested: the same difference on all 6 seeds"),
    ],
)  # fmt: skip
def test_what_is_missing_or_unequal_is_said(tmp_path, make, verdict, words):
    make(tmp_path)
    found = conclusions(tmp_path, ("seven_dyn:magnitude",), 0.3)
    (contrast,) = found.contrasts
    assert contrast.verdict == verdict
    assert words in found.said(contrast)
    (facts,) = found.facts()
    json.dumps(facts, allow_nan=False)


def test_methods_without_pairs_can_be_compared_unpaired(tmp_path):
    unpaired(tmp_path)
    found = conclusions(tmp_path, ("seven_dyn:magnitude",), 50, differ=unpaired_difference)
    (contrast,) = found.contrasts
    # Welch with equal variances: s = 0.05 sqrt 2 in both, and the standard error is 0.05 sqrt 2;
    # with two degrees of freedom P(T > t) = 1/2 - t / (2 sqrt(2 + t^2))
    t = 0.5 / (0.05 * math.sqrt(2))
    assert contrast.p_equivalence == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert contrast.resolves is None


def test_a_method_without_a_row_at_a_sparsity_is_named(tmp_path):
    arms(tmp_path, {"seven_dyn": NEAR, "magnitude": FAR})
    arms(tmp_path, {"seven_dyn": NEAR}, 0.5)
    found = conclusions(tmp_path, ("seven_dyn:magnitude",))
    assert [c.verdict for c in found.contrasts] == ["untested", "better"]
    assert found.cells(found.contrasts[0])[:2] == ["50%", "seven_dyn - magnitude"]
    assert found.contrasts[0].reason == "no row of magnitude, or no single one, is here"
    turned = conclusions(tmp_path, ("magnitude:seven_dyn",))
    assert [c.verdict for c in turned.contrasts] == ["untested", "worse"]
    assert turned.cells(turned.contrasts[0])[:2] == ["50%", "magnitude - seven_dyn"]
    assert turned.contrasts[0].reason == "magnitude has no result here"


def test_a_stated_plan_keeps_its_family_when_a_method_has_no_result(tmp_path):
    values = {"a": [0.90, 0.91, 0.93], "b": [0.90, 0.90, 0.91], "base": [0.89, 0.9, 0.9]}
    arms(tmp_path, values)
    rows = list(rows_of(tmp_path, baseline=None).values())
    plan = ("a:base", "b:base", "gone:base")
    found = Conclusions.of(rows, "accuracy", Inference(contrasts=plan, stated="in the config"))
    assert [c.family for c in found.contrasts] == [3, 3]
    alone = [
        Conclusions.of(rows, "accuracy", Inference(contrasts=(one,))).contrasts[0].p
        for one in plan[:2]
    ]
    # Holm: the smallest of three is multiplied by 3, the next by 2.
    first, second = sorted(alone)
    assert sorted(c.p for c in found.contrasts) == pytest.approx(
        [3 * first, max(3 * first, 2 * second)]
    )
    assert "Of the plan one has no result here and counted with p = 1." in found.captions


@pytest.mark.parametrize(
    ("n", "tests", "floor"), [(3, 1, 1.0), (5, 4, 3.0), (5, 1, 0.4), (2, 8, 2.0)]
)
def test_power_counts_that_no_interval_is_narrower_than_one_example(n, tests, floor):
    alpha, freedom = 0.05 / tests, n - 1
    draw = np.random.default_rng(0).normal(0.0, 1.0, (40_000, n))
    errors = np.maximum(draw.std(1, ddof=1) / math.sqrt(n), floor / student.ppf(0.975, freedom))
    needed = student.ppf(1 - alpha / 2, freedom) * errors
    for difference in (0.0, 0.5, 2.0, 5.0, 20.0):
        found = np.mean(abs(draw.mean(1) + difference) > needed)
        assert power(difference, 1.0, n, alpha, floor) == pytest.approx(found, abs=0.01)
    least = resolved(1.0, n, alpha, floor)
    assert power(least, 1.0, n, alpha, floor) == pytest.approx(0.8, abs=1e-6)
    assert least >= resolved(1.0, n, alpha)


def test_a_dense_run_is_compared_with_every_sparsity(tmp_path):
    arms(tmp_path, {"seven_dyn": NEAR}, 0.5)
    arms(tmp_path, {"seven_dyn": FAR}, 0.9)
    arms(tmp_path, {"dense": [0.9] * 6}, 0.0)
    found = conclusions(tmp_path, ("seven_dyn:dense",))
    assert [c.verdict for c in found.contrasts] == ["worse", "worse"]
    assert not any(c.cautions for c in found.contrasts)


def test_settings_are_compared_with_the_same_settings(tmp_path):
    for lr in (0.01, 0.001):
        config = {"optimizer": {"lr": lr}}
        arms(tmp_path, {"seven_dyn": NEAR, "magnitude": FAR}, config=config)
    found = conclusions(tmp_path, ("seven_dyn:magnitude",))
    pairs = [(c.ours.method, c.theirs.method) for c in found.contrasts]
    assert pairs == [
        (f"seven_dyn optimizer.lr={lr}", f"magnitude optimizer.lr={lr}") for lr in (0.001, 0.01)
    ]
    (mixed,) = conclusions(
        tmp_path, ("seven_dyn optimizer.lr=0.01:magnitude optimizer.lr=0.001",)
    ).contrasts
    assert "optimizer.lr differs (0.01 against 0.001)" in mixed.cautions[0]


def test_what_this_many_seeds_could_have_found(tmp_path):
    noisy = [0.81, 0.79, 0.8, 0.805, 0.795, 0.8]
    arms(tmp_path, {"seven_dyn": noisy, "magnitude": FLAT})
    found = conclusions(tmp_path, ("seven_dyn:magnitude",))
    (contrast,) = found.contrasts
    spread = float(np.std(noisy, ddof=1))
    assert power(contrast.resolves, spread, 6, 0.05) == pytest.approx(0.8, abs=1e-4)
    n = contrast.seeds
    assert power(0.005, spread, n, 0.05) >= 0.8 > power(0.005, spread, n - 1, 0.05)
    assert f"0.5 points takes {n} seeds." in found.said(contrast)
    # no number of seeds resolves less than one test example
    (coarse,) = conclusions(tmp_path, ("seven_dyn:magnitude",), 0.0005).contrasts
    assert coarse.seeds is None
    assert "0.0005 points can't be resolved, one test example is 0.001 points" in found.said(coarse)


def test_names_of_contrasts():
    names = {"seven_dyn", "magnitude", "magnitude pruner.pattern=2:4"}
    assert parse("seven_dyn:magnitude", names) == ("seven_dyn", "magnitude")
    both = ("magnitude pruner.pattern=2:4", "seven_dyn")
    assert parse(":".join(both), names) == both
    assert split(["a:b,c:d", "e x=[1, 2]:f"]) == ("a:b", "c:d", "e x=[1, 2]:f")
    with pytest.raises(ValueError, match="no results of 'sevn_dyn': did you mean 'seven_dyn'"):
        parse("sevn_dyn:magnitude", names)
    with pytest.raises(ValueError, match="write METHOD:METHOD"):
        parse("seven_dyn", names)


@pytest.mark.parametrize(
    ("p", "words"),
    [(0.0004, "p < .001"), (0.0034, "p = .003"), (1.0, "p = 1.000"), (None, "p unknown")],
)
def test_p_values_in_words(p, words):
    assert p_words(p) == words


def test_contrasts_are_printed_and_written(tmp_path, capsys):
    arms(tmp_path, {"seven_dyn": FLAT, "taylor_dyn": NEAR})
    out = tmp_path / "out"
    options = ["--contrast", "seven_dyn:taylor_dyn", "--margin", "0.3", "--output", str(out)]
    assert run_main([str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert "equivalent within 0.3 points at 95%: p < .001." in printed
    assert "planned only if they were chosen before the results" in printed
    with (out / "comparison_contrasts.csv").open() as file:
        (line,) = csv.DictReader(file)
    difference = paired_difference(dict(enumerate(FLAT)), dict(enumerate(NEAR)), 1e-5)
    assert float(line["difference"]) == difference.estimate.mean
    assert float(line["p_equivalence_holm"]) == equivalence(difference, 0.003)
    assert line["verdict"] == "equivalent"
    ((cells,),) = [s["lines"] for s in [embedded(out / "comparison.html")["sections"]["contrasts"]]]
    assert cells[-1].startswith("equivalent within 0.3 points")
    # a comparison without contrasts leaves none of an earlier one
    (out / "comparison_conclusions.md").write_text("of an earlier version")
    assert run_main([str(tmp_path), "--output", str(out)]) == 0
    assert {path.name for path in out.glob("comparison*")} == {
        *("comparison.csv", "comparison.html", "comparison.png"),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--contrast", "seven_dyn:magnitud"], "did you mean 'magnitude'"),
        (["--contrast", "seven_dyn"], "write METHOD:METHOD"),
        (["--contrast", "seven_dyn:magnitude", "--margin", "-1"], "choose a number above 0"),
        (["--margin", "1"], "--margin works only with --contrast"),
        (["--family", "all"], "--family"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, words):
    arms(tmp_path, {"seven_dyn": NEAR, "magnitude": FAR})
    assert run_main([str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.count("\n") == 1


# ---- contrasts stated in the config


def plan(*contrasts, margin=None):
    return {"compare": {"contrasts": list(contrasts), "margin": margin}}


def test_contrasts_can_be_stated_before_the_runs(tmp_path, capsys):
    arms(tmp_path, {"seven_dyn": FLAT}, config=plan("seven_dyn:taylor_dyn", margin=0.3))
    arms(tmp_path, {"taylor_dyn": NEAR}, config=plan("seven_dyn:taylor_dyn", margin=0.3))
    compare([tmp_path])
    printed = capsys.readouterr().out
    assert "equivalent within 0.3 points" in printed
    assert "stated in the config of all runs, before they started" in printed
    # the plan does not tell methods apart
    records, _ = read_runs([tmp_path])
    assert not any("compare" in key for record in records for key in record.settings)
    stated, _ = as_stated(records, Inference(margin=1.0), "accuracy")
    assert (stated.contrasts, stated.margin) == (("seven_dyn:taylor_dyn",), 1.0)
    assert "the margin was chosen when comparing" in stated.stated
    # points of an accuracy mean nothing for a loss
    assert as_stated(records, Inference(), "accuracy")[0].margin == 0.3
    assert as_stated(records, Inference(), "loss")[0].margin is None
    # a sweep that is cut down to some methods is compared all the same
    part = [record for record in records if record.pruner == "seven_dyn"]
    rows, _ = summarize(part, "accuracy", None)
    assert Conclusions.of(rows, "accuracy", stated).notes == [
        "planned contrast 'seven_dyn:taylor_dyn': no results of 'taylor_dyn': choose from seven_dyn"
    ]
    arms(tmp_path, {"snip": NEAR})
    assert (
        "of 12 of 18 runs" in as_stated(read_runs([tmp_path])[0], Inference(), "accuracy")[0].stated
    )


def test_runs_with_different_plans_are_named(tmp_path, capsys):
    arms(tmp_path, {"seven_dyn": NEAR}, config=plan("seven_dyn:snip"))
    arms(tmp_path, {"snip": FAR}, config=plan("seven_dyn:magnitude"))
    compare([tmp_path])
    captured = capsys.readouterr()
    assert "the runs state 2; --contrast takes one" in captured.err
    assert "planned contrasts: " not in captured.out


def test_a_plan_does_not_change_the_runs_hash():
    usual = composed()
    stated = composed("compare.contrasts=[seven_dyn:magnitude]", "compare.margin=0.3")
    assert stated.compare.contrasts == ["seven_dyn:magnitude"]
    assert run_hash(stated) == run_hash(usual)
    check(stated)
    check(composed("compare.contrasts=['magnitude pruner.pattern=2:4:seven_dyn']"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("compare.contrasts=[sevn_dyn:magnitude]", "unknown pruner 'sevn_dyn': did you mean"),
        ("compare.contrasts=[seven_dyn]", "compare.contrasts"),
        ("compare.margin=0", "compare.margin is 0"),
    ],
)
def test_a_misspelt_plan_is_an_error_before_the_runs(override, words):
    with pytest.raises(ConfigError, match=words):
        check(composed(override))


def test_a_difference_without_a_test_has_no_equivalence():
    assert equivalence(Difference(Estimate(0.0, 0.1, 3), None), 1.0) is None


@pytest.fixture
def pair(tmp_path):
    """Two methods on three seeds."""
    for seed in range(3):
        write(tmp_path, "magnitude", 0.9, seed, 0.6 + 0.01 * seed)
        write(tmp_path, "seven_dyn", 0.9, seed, 0.7 + 0.02 * seed)
    return tmp_path


def test_a_pair_can_t_be_planned_twice(pair, capsys):
    reversed_too = "seven_dyn:magnitude,magnitude:seven_dyn"
    assert run_main([str(pair), "--contrast", reversed_too]) == 2
    assert "'seven_dyn:magnitude' has the same two methods" in capsys.readouterr().err


def test_contrasts_are_called_planned_if_they_were_stated_before(pair, capsys):
    assert run_main([str(pair), "--contrast", "seven_dyn:magnitude", "--format", "md"]) == 0
    assert "planned contrasts: mlp" not in capsys.readouterr().out
    assert "Contrasts of accuracy of mlp on digits" in (pair / "comparison.md").read_text()
