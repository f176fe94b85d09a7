"""Main effects and interactions, against a textbook's and against least squares."""

import csv
import itertools

import numpy as np
import pytest
from test_compare import rows_of, run_main, write

from seven_exp.compare.effects import draw, factorials, sentences
from seven_exp.compare.look import Look
from seven_exp.compare.statistics import estimate
from seven_exp.compare.summary import Row

KEYS = ("pruner.evidence", "pruner.memory", "pruner.power")


def rows_with(values, factors, sparsity=0.9):
    """A row for each cell: levels -> seed -> value."""
    rows = []
    for cell, by_seed in values.items():
        settings = dict(zip(factors, cell, strict=True))
        pruner = settings.pop("pruner", "sensitivity_dyn")
        row = Row(
            *("mlp", "digits", pruner, settings, sparsity, by_seed, estimate([*by_seed.values()])),
            kept=1.0, seconds=1.0,
        )  # fmt: skip
        rows.append(row)
    return rows


def test_the_pilot_plant():
    # Box, Hunter and Hunter (Statistics for Experimenters, 2005): yields of a 2^3 design in
    # temperature, concentration, catalyst. Their effects are differences of two levels' means.
    yields = [60, 72, 54, 68, 52, 83, 45, 80]
    cells = [(t, c, k) for k in "-+" for c in "-+" for t in "-+"]
    values = {cell: {0: float(found)} for cell, found in zip(cells, yields, strict=True)}
    (one,) = factorials(rows_with(values, KEYS), KEYS)
    published = {(0,): 23.0, (1,): -5.0, (2,): 1.5, (0, 1): 1.5, (0, 2): 10.0, (1, 2): 0.0}
    for axes, effect in published.items():
        own = one.effects[tuple(KEYS[axis] for axis in axes)]
        assert 2 * own[("+",) * len(axes)].mean == pytest.approx(effect)
        assert own[("+",) * len(axes)].half is None


def random_design(seeds=4, levels=(2, 3, 4)):
    draw = np.random.default_rng(0)
    names = [[f"{axis}{i}" for i in range(n)] for axis, n in zip("abc", levels, strict=True)]
    return names, {
        cell: {seed: float(draw.normal()) for seed in range(seeds)}
        for cell in itertools.product(*names)
    }


def test_effects_and_intervals_are_those_of_least_squares_seed_by_seed():
    names, values = random_design()
    (one,) = factorials(rows_with(values, KEYS), KEYS)
    cells = list(values)
    grand = np.ones(len(cells))

    def coded(axis):
        """Deviations of all levels but the last from the last: coefficients are effects."""
        own = np.array([[cell[axis] == name for name in names[axis]] for cell in cells], float)
        return own[:, :-1] - own[:, -1:]

    codes = [coded(axis) for axis in range(3)]
    pairs = [
        (codes[i][:, :, None] * codes[j][:, None, :]).reshape(len(cells), -1)
        for i, j in itertools.combinations(range(3), 2)
    ]
    triple = np.einsum("ni,nj,nk->nijk", *codes).reshape(len(cells), -1)
    design = np.column_stack([grand, *codes, *pairs, triple])
    fits = np.array(
        [np.linalg.lstsq(design, [values[cell][seed] for cell in cells])[0] for seed in range(4)]
    )
    at = 1
    terms = [*[(key,) for key in KEYS], *itertools.combinations(KEYS, 2)]
    for term, block in zip(terms, [*codes, *pairs], strict=True):
        levels = [names[KEYS.index(key)][:-1] for key in term]
        for chosen in itertools.product(*levels):
            wanted = estimate(fits[:, at].tolist())
            found = one.effects[term][chosen]
            assert found.mean == pytest.approx(wanted.mean)
            assert found.half == pytest.approx(wanted.half)
            at += 1
        assert sum(effect.mean for effect in one.effects[term].values()) == pytest.approx(0)
        assert block.shape[1] == len(list(itertools.product(*levels)))
    means = np.array([np.mean([*values[cell].values()]) for cell in cells])
    rest = triple @ fits.mean(0)[at:]
    assert sum(one.shares.values()) == pytest.approx(1 - np.var(rest) / np.var(means))


def test_no_effects_interval_is_narrower_than_one_example_in_one_of_its_runs(tmp_path):
    for pruner, lr, seed in itertools.product(("magnitude", "snip"), (0.1, 0.01), (0, 1, 2)):
        accuracy = 0.5 + 0.1 * (pruner == "snip") + 0.02 * (lr == 0.1)
        config = {"optimizer": {"lr": lr}}
        write(tmp_path, pruner, 0.9, seed, accuracy, config=config, test_examples=100)
    rows = list(rows_of(tmp_path, baseline=None).values())
    (one,) = factorials(rows, ["pruner", "optimizer.lr"])
    effect = one.effects[("pruner",)][("snip",)]
    assert (effect.mean, effect.half) == pytest.approx((0.05, 0.005))  # two runs per level
    figure = draw([one], "accuracy", Look(width=3.25))
    figure.draw_without_rendering()
    first, second = (panel.get_tightbbox() for panel in figure.axes)
    assert not first.overlaps(second)
    assert figure.bbox.x0 <= first.x0


def test_a_seed_without_all_cells_is_left_out():
    _, values = random_design()
    del values["a0", "b0", "c0"][2]
    (one,) = factorials(rows_with(values, KEYS), KEYS)
    assert (one.seeds, one.left_out) == ([0, 1, 3], 1)
    assert "1 seeds without all combinations" in sentences(one, "accuracy")[0]


def test_pruners_are_a_factor_and_sparsities_are_apart():
    values = {(p, e): {0: 0.5, 1: 0.75} for p in ("pre", "dyn") for e in ("weight", "taylor")}
    factors = ("pruner", "pruner.evidence")
    rows = [*rows_with(values, factors, 0.5), *rows_with(values, factors, 0.9)]
    rows += rows_with({("dense",): {0: 0.9}}, ("pruner",), 0.0)
    found = factorials(rows, factors)
    assert [one.sparsity for one in found] == [0.5, 0.9]
    assert set(found[0].effects) == {("pruner",), ("pruner.evidence",), factors}
    assert all(share == 0 for share in found[0].shares.values())


@pytest.mark.parametrize(
    ("change", "factors", "words"),
    [
        (None, ("pruner.evidnce", "pruner.power"), "did you mean 'pruner.evidence'"),
        (None, ("pruner.power",), "at least two settings"),
        (None, KEYS[:2], "pruner.power differs too"),
        ("less", KEYS, "pruner.evidence=a0 pruner.memory=b0 pruner.power=c0 has none"),
        ("seed", KEYS, "no seed has a result for every combination"),
        ("one", KEYS, "pruner.evidence is a0 everywhere"),
    ],
)
def test_what_is_no_factorial_is_one_line(change, factors, words):
    _, values = random_design(seeds=1)
    first = next(iter(values))
    if change == "less":
        values = {cell: own for cell, own in values.items() if cell != first}
    elif change == "seed":
        values[first] = {9: 0.0}
    elif change == "one":
        values = {cell: own for cell, own in values.items() if cell[0] == "a0"}
    with pytest.raises(ValueError, match=words):
        factorials(rows_with(values, KEYS), factors)


@pytest.mark.slow
def test_a_sweeps_effects_are_printed_drawn_and_written(tmp_path, capsys):
    for seed, power, memory in itertools.product(range(3), (0.0, 1.0), ("last", "sum")):
        pruner = {"name": "sensitivity_dyn", "power": power, "memory": memory}
        accuracy = 0.8 + 0.04 * (memory == "sum") + 0.01 * seed + 0.001 * seed * power
        write(tmp_path, "sensitivity_dyn", 0.9, seed, accuracy, config={"pruner": pruner})
    write(tmp_path, "dense", 0.0, 0, 0.97)
    assert run_main([str(tmp_path), "--effects", "pruner.power, pruner.memory"]) == 0
    said = capsys.readouterr().out
    assert "mlp on digits at 90%, 3 seeds:" in said
    assert "pruner.memory: 99.9% of the variance, most for sum: +2.00 ± 0.00 points" in said
    with (tmp_path / "comparison_effects.csv").open() as file:
        lines = {(line["term"], line["level"]): line for line in csv.DictReader(file)}
    assert float(lines["pruner.memory", "last"]["effect"]) == pytest.approx(-0.02)
    # Seeds 0, 1 and 2 gain 0, 0.1 and 0.2 points with the factor: half of the mean is 0.05.
    assert float(lines["pruner.power", "1.0"]["effect"]) == pytest.approx(0.0005)
    assert ("pruner.power x pruner.memory", "1.0 x sum") in lines
    assert (tmp_path / "comparison_effects.png").stat().st_size > 1000
    assert "Effects of crossed settings" in (tmp_path / "comparison.html").read_text()

    assert run_main([str(tmp_path), "--effects", "pruner.powr,pruner.memory"]) == 2
    assert "did you mean 'pruner.power'" in capsys.readouterr().err
    assert run_main([str(tmp_path)]) == 0
    assert not list(tmp_path.glob("comparison_effects.*"))
