"""The interactive page in a browser: it shows what the records hold."""

import csv
import itertools
import json
import math
import re
import statistics
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, Browser

from seven_exp.compare import page as pages
from seven_exp.compare.comparison import compare as compare_and_draw
from seven_exp.compare.files import Output
from seven_exp.compare.inference import Inference
from seven_exp.compare.page import Section, render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
]


def compare(folders, metric=None, baseline=None):
    """The page alone."""
    compare_and_draw(folders, metric, baseline, Output(formats=("html",)))


LAYERS = ("block.0.qkv.weight", "block.0.mlp.weight", "block.1.qkv.weight")
SIZE = 1000
SPARSITIES = (0.5, 0.8, 0.95)
SEEDS = (0, 1, 2)
GAIN = {"magnitude": 0.0, "seven_dyn": 0.01, "snip": -0.02}


def write(root, pruner, sparsity, seed, metrics, *, history=True, **changes):
    """A record as a run leaves it."""
    folder = root / f"{pruner}_{sparsity}_{seed}"
    folder.mkdir(parents=True)
    kept = [round(SIZE * (1 - sparsity) * (0.8 + 0.2 * i)) for i in range(len(LAYERS))]
    record = {
        "schema": 1, "run_hash": f"{root.name}-{pruner}-{sparsity}-{seed}", "status": "finished",
        "pruner": pruner, "model": "vit", "dataset": "digits", "seed": seed,
        "sparsity_target": sparsity, "sparsity": sparsity, "metrics": metrics,
        "params_nonzero": sum(kept) + seed, "flops_sparse": 2 * sum(kept) + 1000 * len(pruner),
        "seconds": 10.0 + len(pruner) + seed, "steps": 20,
        "layers": [
            {"name": name, "numel": SIZE, "nonzero": n + seed}
            for name, n in zip(LAYERS, kept, strict=True)
        ],
        "config": {
            "seed": seed, "sparsity": sparsity, "pruner": {"name": pruner, "rounds": len(pruner)},
            "optimizer": {"lr": 0.001},
        },
        **changes,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record))
    if history:
        with (folder / "metrics.jsonl").open("w") as file:
            for step in range(1, 21):
                line = {"step": step, "loss": 2 / step + seed, "layer_sparsity/x": 0.5}
                if step % 10 == 0:
                    line["test/accuracy"] = metrics.get("accuracy", 0) * step / 20
                file.write(json.dumps(line) + "\n")
    return record


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three methods and dense; the page, and the records that it is made of."""
    root = tmp_path_factory.mktemp("sweep")
    records = []
    for pruner, sparsity, seed in itertools.product(GAIN, SPARSITIES, SEEDS):
        accuracy = 0.95 - 0.3 * sparsity**6 + GAIN[pruner] * (seed + 1) + 0.004 * seed
        metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
        records.append(write(root, pruner, sparsity, seed, metrics))
    for seed in SEEDS:
        accuracy = 0.96 + 0.001 * seed
        metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
        records.append(write(root, "dense", 0.0, seed, metrics))
    compare([root])
    return root, records


@pytest.fixture
def shown(browser, sweep):
    """The page, freshly opened; afterwards nothing has gone wrong in it."""
    root, _ = sweep
    yield browser.open((root / "comparison.html").as_uri())
    assert browser.errors == []
    assert browser.requests == [(root / "comparison.html").as_uri()]


def groups(records):
    found = {}
    for record in records:
        found.setdefault((record["pruner"], record["sparsity_target"]), []).append(record)
    return found


def drawn(browser, section="#curves"):
    """Series -> its points as (x, y) in the picture, in the order of their rows' sparsities."""
    return browser.run(
        f"Object.fromEntries([...document.querySelectorAll('{section} [data-series]')].map(g =>"
        "[g.dataset.series, [...g.querySelectorAll('.point')].map(p => {"
        "const m = p.transform.baseVal.consolidate().matrix; return [m.e, m.f]; })]))"
    )


def ticks(browser, anchor):
    """Tick labels of an axis as numbers, and where they stand in the picture."""
    place = "y" if anchor == "end" else "x"
    found = browser.run(
        f"[...document.querySelectorAll('#curves svg text[text-anchor={anchor}]')].filter(t =>"
        "!t.hasAttribute('transform') && isFinite(parseFloat(t.textContent)))"
        f".map(t => [t.textContent, parseFloat(t.getAttribute('{place}'))])"
    )
    scale = {"K": 1e3, "M": 1e6}
    shift = 4 if anchor == "end" else 0  # a label's baseline lies below its line
    return [
        (float(text.rstrip("KM")) * scale.get(text[-1], 1), where - shift) for text, where in found
    ]


def along(known, transform, value):
    """Where a value stands on an axis of which two ticks are known."""
    (a, at_a), (b, at_b) = known[0], known[-1]
    share = (transform(value) - transform(a)) / (transform(b) - transform(a))
    return at_a + share * (at_b - at_a)


def mean(records, get):
    return statistics.fmean(get(record) for record in records)


def fitting(values):
    return math.log if max(values) / min(values) > 16 else float


AXES = {
    "sparsity": lambda r: 100 * r["sparsity_target"],
    "kept": lambda r: r["params_nonzero"],
    "flops": lambda r: r["flops_sparse"],
    "seconds": lambda r: r["seconds"],
}


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("axis", AXES)
def test_points_stand_where_the_records_say(shown, sweep, metric, axis):
    # alone on the axis of sparsities a method isn't moved aside
    for name in ("dense", "magnitude", "snip"):
        shown.click(f".key label:has(input[data-method='{method(shown, name)}'])")
    shown.choose("metric", metric)
    shown.choose("x", axis)
    ours = {s: g for (p, s), g in groups(sweep[1]).items() if p == "seven_dyn"}
    across = {
        "sparsity": lambda v: math.log(100 - v),
        "kept": fitting([AXES["kept"](r) for g in ours.values() for r in g]),
        "flops": fitting([mean(g, AXES["flops"]) for g in ours.values()]),
        "seconds": float,
    }[axis]
    factor = 100 if metric == "accuracy" else 1
    up = float if metric == "accuracy" else fitting(
        [r["metrics"]["loss"] for g in ours.values() for r in g]
    )  # fmt: skip
    x_ticks, y_ticks = ticks(shown, "middle"), ticks(shown, "end")
    expected = [
        (along(x_ticks, across, mean(group, AXES[axis])),
         along(y_ticks, up, factor * mean(group, lambda r: r["metrics"][metric])))
        for group in ours.values()
    ]  # fmt: skip
    assert len(expected) == 3
    for found, wanted in zip(sorted(drawn(shown)["seven_dyn"]), sorted(expected), strict=True):
        assert found == pytest.approx(wanted, abs=1.0)


def test_a_setting_and_a_metric_can_be_the_axis(browser, tmp_path):
    for lr, sparsity, seed in itertools.product((0.001, 0.01, 0.1), (0.5, 0.9), (0, 1)):
        accuracy = 0.5 + lr + sparsity / 10 + seed / 100
        config = {"seed": seed, "optimizer": {"lr": lr}, "pruner": {"name": "magnitude"}}
        write(
            tmp_path / str(lr), "magnitude", sparsity, seed, {"accuracy": accuracy}, config=config
        )
    compare([tmp_path])
    browser.open((tmp_path / "comparison.html").as_uri())
    assert len(drawn(browser)) == 3
    browser.choose("x", "optimizer.lr")
    found = drawn(browser)
    assert set(found) == {"magnitude sparsity=50%", "magnitude sparsity=90%"}
    x_ticks, y_ticks = ticks(browser, "middle"), ticks(browser, "end")
    # two decades are logarithmic; the mean over seeds is half a point above the first
    for (x, y), lr in zip(found["magnitude sparsity=90%"], (0.001, 0.01, 0.1), strict=True):
        assert x == pytest.approx(along(x_ticks, math.log, lr), abs=1.0)
        assert y == pytest.approx(along(y_ticks, float, 59.5 + 100 * lr), abs=1.0)
    browser.choose("colour", "sparsity")
    fills = browser.run(
        "[...document.querySelectorAll('#curves .point')].map(p =>"
        "[page.rows.sparsity[p.dataset.row], p.getAttribute('fill')])"
    )
    assert {tuple(fill) for fill in fills} == {(0.5, "rgb(230,159,0)"), (0.9, "rgb(0,114,178)")}
    assert "from orange (0.5) to blue (0.9)" in browser.run(
        "document.querySelector('#curves').textContent"
    )
    # nothing is better about a higher learning rate
    assert browser.run("document.querySelectorAll('#curves .ring').length") == 0
    browser.choose("x", "accuracy")
    assert browser.errors == []
    assert len(drawn(browser)) == 3
    # any other number can be shown, over any
    browser.choose("y", "optimizer.lr")
    y_ticks = ticks(browser, "end")
    for (_, y), lr in zip(drawn(browser)["magnitude optimizer.lr=0.1"], (0.1, 0.1), strict=True):
        assert y == pytest.approx(along(y_ticks, math.log, lr), abs=1.0)
    browser.choose("y", "seconds")
    browser.choose("x", "kept")
    # less is better on both axes, where all have the same mean: one point, of the first method
    assert browser.run("document.querySelectorAll('#curves .ring').length") == 1


def method(browser, name):
    return browser.run(f"page.methods.findIndex(m => m.name === {json.dumps(name)})")


def test_switching_a_method_off_hides_it_alone(shown):
    before = drawn(shown)
    assert set(before) == {"dense", "magnitude", "seven_dyn", "snip"}
    shown.click(f".key label:has(input[data-method='{method(shown, 'snip')}'])")
    assert set(drawn(shown)) == {"dense", "magnitude", "seven_dyn"}
    assert "snip" not in shown.run("document.querySelector('#layers thead').textContent")
    assert shown.run("document.querySelector('#table tbody').textContent.includes('snip')")
    shown.click(".key button.all")
    assert drawn(shown) == before
    shown.click(".key button.all")
    assert drawn(shown) == {}
    assert "Nothing to draw" in shown.run("document.querySelector('#curves').textContent")


def test_the_choice_is_kept_in_the_address(shown, browser, sweep):
    shown.choose("metric", "loss")
    shown.choose("x", "kept")
    shown.click(f".key label:has(input[data-method='{method(shown, 'snip')}'])")
    before, address = drawn(shown), shown.run("location.href")
    again = browser.open(address)
    assert drawn(again) == before
    assert again.run("document.querySelector('select[name=metric]').value") == "loss"
    browser.requests[:] = [urlsplit(address)._replace(fragment="").geturl()]


def test_the_names_stay_in_view(shown):
    top = "document.querySelector('.key').getBoundingClientRect().top"
    shown.run("document.querySelector('#runs').scrollIntoView()")
    assert shown.run(top) == 0
    shown.click(".key .names")
    assert shown.run("document.querySelector('.entries').hidden") is True
    assert shown.run("document.querySelector('.names').getAttribute('aria-expanded')") == "false"


def test_pointing_shows_exact_figures_and_the_interval(shown, sweep):
    assert shown.run("document.getElementById('tip').hidden")
    shown.point_at("#curves [data-series=seven_dyn] .point")
    words = shown.run("document.getElementById('tip').textContent").splitlines()
    values = [r["metrics"]["accuracy"] for r in groups(sweep[1])["seven_dyn", 0.5]]
    # 4.302653 is the 97.5% quantile of Student's t with 2 degrees of freedom
    half = 4.302653 * statistics.stdev(values) / math.sqrt(3)
    assert words[:3] == [
        "seven_dyn",
        f"accuracy: {100 * statistics.fmean(values):.2f} ± {100 * half:.2f} %",
        "seeds: 3",
    ]
    kept = mean(groups(sweep[1])["seven_dyn", 0.5], AXES["kept"])
    assert f"kept: {kept:,.0f}" in words
    # against magnitude: 1, 2 and 3 points, as in the terminal's table
    assert words[-1] == "minus magnitude: +2.00 ± 2.48, p (Holm) " + words[-1].split()[-1]


def test_arrow_keys_walk_from_point_to_point(shown):
    shown.run("document.querySelector('#curves svg.chart').focus()")

    def tip():
        return shown.run("document.getElementById('tip').textContent").splitlines()

    shown.press("ArrowRight")
    first = tip()
    shown.press("ArrowDown")
    assert tip()[0] != first[0]
    below = tip()
    shown.press("ArrowRight")
    assert tip()[0] == below[0]
    assert tip() != below
    shown.press("Escape")
    assert shown.run("document.getElementById('tip').hidden")


def test_seeds_are_points(shown, sweep):
    def count(name):
        return shown.run(f"document.querySelectorAll('#curves [data-series={name}] .seed').length")

    assert count("snip") == len(SPARSITIES) * len(SEEDS)
    shown.click("#curves label:has(input[name=seeds])")
    assert count("snip") == 0


@pytest.mark.parametrize(("metric", "axis"), [("accuracy", "flops"), ("loss", "sparsity")])
def test_the_pareto_front_is_what_nothing_beats(shown, sweep, metric, axis):
    shown.choose("metric", metric)
    shown.choose("x", axis)
    cost = {
        key: (
            (-1 if axis == "sparsity" else 1) * mean(group, AXES[axis]),
            (-1 if metric == "accuracy" else 1) * mean(group, lambda r: r["metrics"][metric]),
        )
        for key, group in groups(sweep[1]).items()
    }
    front = {
        key
        for key, (x, y) in cost.items()
        if not any(u <= x and v <= y and (u, v) != (x, y) for u, v in cost.values())
    }
    ringed = shown.run(
        "[...document.querySelectorAll('#curves .ring')].map(ring => {"
        "const i = +ring.previousElementSibling.dataset.row;"
        "return [page.methods[page.rows.method[i]].name, page.rows.sparsity[i]]; })"
    )
    assert {tuple(key) for key in ringed} == front
    assert len(ringed) == len(front)
    shown.click("#curves label:has(input[name=front])")
    assert shown.run("document.querySelectorAll('#curves .ring').length") == 0


def table(browser, selector):
    return browser.run(
        f"[...document.querySelectorAll('{selector} tbody tr')].map(row =>"
        "[...row.cells].map(cell => cell.textContent))"
    )


def test_differences_follow_the_chosen_baseline(shown, sweep):
    def row():
        return next(r for r in table(shown, "#table") if r[:2] == ["95%", "seven_dyn"])

    assert row()[4] == "+2.00 ± 2.48"
    shown.choose("baseline", "snip")
    # 1 + 2, 2 + 4 and 3 + 6 points: the mean is 6, and s is 3
    assert row()[4] == f"+6.00 ± {4.302653 * 3 / math.sqrt(3):.2f}"
    # t = 6 / (3 / sqrt 3) = 2 sqrt 3 with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2); the two
    # methods have the same at every sparsity, and Holm multiplies by two.
    t = 2 * math.sqrt(3)
    assert row()[5] == f"{2 * (1 - t / math.sqrt(2 + t * t)):.3f}"
    assert "each sparsity, 6 in all" in shown.run(
        "document.querySelector('#table .note').textContent"
    )
    shown.choose("baseline", "dense")
    rows = [r for r in table(shown, "#table") if r[1] == "magnitude"]
    assert all(r[4] for r in rows)
    shown.choose("baseline", "")
    assert len(row()) == 8


def test_planned_contrasts_are_shown_after_who_wins(browser, sweep, tmp_path):
    plan = Inference(contrasts=("seven_dyn:magnitude",), margin=1)
    compare_and_draw([sweep[0]], output=Output(tmp_path, ("html",)), inference=plan)
    browser.open((tmp_path / "comparison.html").as_uri())
    order = browser.run("[...document.querySelectorAll('section')].map(s => s.id)")
    assert order[:2] == ["answer", "contrasts"]
    lines = table(browser, "#contrasts")
    assert [line[1] for line in lines] == ["50%", "80%", "95%"]
    # 1, 2 and 3 points at each sparsity, one contrast in each family
    p = f"p = {1 - 2 * math.sqrt(3) / math.sqrt(14):.3f}".replace("0.", ".")
    assert {tuple(line[2:6]) for line in lines} == {
        ("seven_dyn - magnitude", "+2.00 ± 2.48", "3", p)
    }
    assert all(line[-1].startswith(f"no difference shown ({p}), nor") for line in lines)
    assert browser.errors == []


def test_cells_of_the_heat_map_are_the_records(shown, sweep):
    at = groups(sweep[1])

    def cells():
        return shown.run(
            "[...document.querySelectorAll('#layers td')].map(c =>"
            "[c.dataset.layer, +c.dataset.value, c.dataset.row ?? null, c.dataset.run ?? null])"
        )

    names = shown.run("page.methods.map(m => m.name)")
    rows = shown.run("page.rows")
    for layer, value, row, _ in (found := cells()):
        name = names[rows["method"][int(row)]]
        expected = statistics.fmean(1 - kept(r, layer) / SIZE for r in at[name, 0.95])
        assert value == pytest.approx(expected, abs=1e-4)
    assert len(found) == len(LAYERS) * len(GAIN)

    shown.choose("layersMethod", "snip")
    by_run = [(layer, value, int(run)) for layer, value, _, run in cells() if run is not None]
    assert len(by_run) == len(LAYERS) * len(SEEDS)
    for layer, value, run in by_run:
        record = next(r for r in at["snip", 0.95] if r["seed"] == seed_of(shown, run))
        assert value == pytest.approx(1 - kept(record, layer) / SIZE, abs=1e-4)


def kept(record, layer):
    return next(x["nonzero"] for x in record["layers"] if x["name"] == layer)


def seed_of(browser, run):
    return browser.run(f"page.runs.seed[{run}]")


def test_training_curves_hold_what_was_logged(shown):
    assert shown.run("document.querySelector('select[name=curve]').value") == "test/accuracy"
    shown.choose("curve", "loss")
    options = shown.run(
        "[...document.querySelector('select[name=curve]').options].map(o => o.value)"
    )
    assert options == ["test/accuracy", "loss"]
    shown.run("document.querySelector('#training svg.chart').focus()")
    shown.press("ArrowRight")
    shown.press("ArrowRight")
    words = shown.run("document.getElementById('tip').textContent").splitlines()
    # the second line logged: 2/2 + seed, whose mean over seeds 0, 1, 2 is 2
    assert words == ["magnitude", "mean of 3 seeds", "step: 2", "loss: 2"]
    assert shown.run("document.querySelectorAll('#training [data-run]').length") == 9


def test_every_run_leads_to_its_record(shown, sweep):
    root, records = sweep
    links = shown.run(
        "[...document.querySelectorAll('#runs tbody a')].map(a => a.getAttribute('href'))"
    )
    found = {json.loads((root / unquote(link)).read_text())["run_hash"] for link in links}
    assert found == {record["run_hash"] for record in records}
    shown.run(
        "(() => { const s = document.querySelector('input[name=search]');"
        "s.value = 'snip 95%'; s.dispatchEvent(new Event('input')); })()"
    )
    left = shown.run(
        "[...document.querySelectorAll('#runs .runs tbody tr')].filter(r => r.offsetHeight)"
        ".map(r => [r.cells[2].textContent, r.cells[3].textContent])"
    )
    assert left == [["snip", "95%"]] * 3


def test_runs_can_be_sorted(shown, sweep):
    shown.click("#runs th:nth-child(9) button")
    accuracies = [float(row[8]) for row in table(shown, "#runs .runs")]
    assert accuracies == sorted(accuracies)
    assert len(accuracies) == len(sweep[1])


def test_configs_of_chosen_runs_are_compared(shown):
    everything = {row[0]: row[1] for row in table(shown, "#runs .configs")}
    assert everything["seed"] == "0 (10), 1 (10), 2 (10)"
    assert everything["pruner.rounds"] == "5 (3), 9 (18), 4 (9)"
    assert "optimizer.lr" not in everything
    shown.click("#runs tbody tr:nth-child(4) input")
    shown.click("#runs tbody tr:nth-child(13) input")
    names = shown.run("[...document.querySelectorAll('#runs .configs th')].map(h => h.textContent)")
    assert names == ["key", "magnitude_0.5_0", "seven_dyn_0.5_0"]
    found = {row[0]: row[1:] for row in table(shown, "#runs .configs")}
    assert found == {"pruner.name": ["magnitude", "seven_dyn"]}


def test_everything_is_printed(shown):
    hidden = (
        "[...document.querySelectorAll('.controls, .key input')]"
        ".filter(e => e.getBoundingClientRect().height > 0).length"
    )
    cut = (
        "[...document.querySelectorAll('.wide')].filter(e => e.scrollHeight > e.clientHeight + 1"
        "|| e.scrollWidth > e.clientWidth + 1).length"
    )
    # the width of A4 paper between its margins, at 96 dots an inch
    shown.send(
        "Emulation.setDeviceMetricsOverride", width=703, height=500, deviceScaleFactor=1,
        mobile=False,
    )  # fmt: skip
    assert shown.run(hidden) > 0
    assert shown.run(cut) > 0
    shown.send("Emulation.setEmulatedMedia", media="print")
    assert shown.run(hidden) == 0
    assert shown.run(cut) == 0
    assert shown.run("document.documentElement.scrollWidth") <= 703
    assert shown.run(
        "[...document.querySelectorAll('#runs .runs tbody tr')].every(r => r.offsetHeight > 0)"
    )


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out(browser, sweep, width):
    root, _ = sweep
    browser.open((root / "comparison.html").as_uri(), width=width)
    assert browser.run("document.documentElement.scrollWidth") == width
    smallest = browser.run(
        "Math.min(...[...document.querySelectorAll('svg.chart')].map(s =>"
        "12 * s.getBoundingClientRect().width / s.viewBox.baseVal.width))"
    )
    # text of pictures stays legible on a phone
    assert smallest > 9


def test_methods_differ_without_colour(browser, tmp_path):
    for i in range(20):
        write(tmp_path, f"pruner_{i}", 0.9, 0, {"accuracy": 0.5})
    compare([tmp_path])
    browser.open((tmp_path / "comparison.html").as_uri())
    looks = browser.run("page.methods.map(m => m.marker + m.dash)")
    assert len(set(looks)) == 20


def test_of_many_methods_the_best_and_the_chosen_ones_have_colour(browser, tmp_path):
    for i in range(20):
        write(tmp_path, f"pruner_{i:02d}", 0.9, 0, {"accuracy": 0.5 + i / 100})
        write(tmp_path, f"pruner_{i:02d}", 0.9, 1, {"accuracy": 0.5 + i / 100})
    compare([tmp_path], baseline="pruner_05")
    browser.open((tmp_path / "comparison.html").as_uri())

    def coloured():
        return browser.run(
            "[...document.querySelectorAll('#curves [data-series]')].filter(g => g.querySelector("
            "'.point').getAttribute('fill') !== '#b4b4b4').map(g => g.dataset.series)"
        )

    assert set(coloured()) == {"pruner_05", *(f"pruner_{i}" for i in range(13, 20))}
    # grey ones have no intervals, and lie below the others
    assert browser.run("document.querySelectorAll('#curves .interval').length") == 8
    assert len(coloured()) == 8
    assert (
        browser.run("document.querySelector('#curves [data-series]').dataset.series")
        not in coloured()
    )
    browser.run("page.set({only: 'pruner_00'})")
    assert "pruner_00" in coloured()
    browser.run("page.set({only: '', find: 'pruner_0'})")
    browser.run("page.set({hide: ['pruner_00', 'pruner_01', 'pruner_02']})")
    assert len(coloured()) == 7
    assert browser.errors == []


def test_names_with_markup_do_no_harm(browser, tmp_path):
    evil = "</script><script>window.broken = 1</script><img src=x onerror=broken=1>"
    other = "'\"&\u2028 ]]> <!-- <script>"
    for i, name in enumerate((evil, other)):
        record = write(
            tmp_path, "magnitude", 0.9, i, {"accuracy": 0.4}, run_hash=name, model=evil,
            config={"pruner": {"rounds": name}},
            layers=[{"name": name, "numel": 10, "nonzero": 1}],
        )  # fmt: skip
        path = tmp_path / f"magnitude_0.9_{i}" / "results.json"
        path.write_text(json.dumps({**record, "pruner": name}))
    compare([tmp_path])
    browser.open((tmp_path / "comparison.html").as_uri())
    assert browser.run("window.broken") is None
    assert browser.errors == []
    names = browser.run("[...document.querySelectorAll('#table td.words')].map(c => c.textContent)")
    assert set(names) == {evil, other}


def odd_records(root, kind):
    if kind == "one run":
        write(root, "magnitude", 0.9, 0, {"accuracy": 0.5}, history=False, layers=None,
              flops_sparse=None)  # fmt: skip
    elif kind == "several tasks":
        for model, dataset in itertools.product(("mlp", "vit"), ("digits", "wikitext2")):
            metric = {"perplexity": 30.0} if dataset == "wikitext2" else {"accuracy": 0.5}
            for pruner, seed in itertools.product(("magnitude", "snip"), (0, 1)):
                values = {name: v + seed * 0.01 for name, v in metric.items()}
                write(root / f"{model}{dataset}", pruner, 0.9, seed, values,
                      model=model, dataset=dataset)  # fmt: skip
    elif kind == "ranks":
        pruners = list(enumerate(("magnitude", "snip", "seven_dyn")))
        datasets = ("digits", "cifar10", "fashion_mnist")
        for dataset, (i, pruner), seed in itertools.product(datasets, pruners, (0, 1)):
            values = {"accuracy": 0.5 + i / 10 + seed / 100}
            write(root / dataset, pruner, 0.9, seed, values, dataset=dataset)
    elif kind == "broken history":
        write(root, "magnitude", 0.9, 0, {"accuracy": 0.5, "loss": float("nan")})
        (root / "magnitude_0.9_0" / "metrics.jsonl").write_text(
            '{"step": 1, "loss": NaN, "name": "x"}\n[1]\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo'
        )
    elif kind == "only dense":
        write(root, "dense", 0.0, 0, {"accuracy": 0.5})


@pytest.mark.parametrize(
    "kind", ["one run", "several tasks", "ranks", "broken history", "only dense"]
)
def test_odd_records_are_shown_as_far_as_they_go(browser, tmp_path, kind):
    # notes name files by their paths, which have no spaces and may be wider than the window
    root = tmp_path / ("folder_of_a_name_without_spaces_" * 4)
    odd_records(root, kind)
    compare([root])
    browser.open((root / "comparison.html").as_uri(), width=400)
    for metric, axis in itertools.product(browser.run("Object.keys(page.metrics)"), AXES):
        browser.choose("metric", metric)
        browser.choose("x", axis)
        browser.choose("colour", axis)
    assert browser.errors == []
    assert (browser.run("document.querySelector('#ranks svg')") is not None) == (kind == "ranks")
    assert "can't be drawn" not in browser.run("document.body.innerText")
    assert "NaN" not in browser.run("document.querySelector('#curves').innerHTML")
    assert browser.run("document.documentElement.scrollWidth") == 400


def answers(browser):
    return browser.run(
        "[...document.querySelectorAll('#answer .answer li')].map(li => li.textContent)"
    )


def test_the_first_words_say_who_wins_by_how_much_and_whether_it_is_certain(shown, sweep):
    assert shown.run("document.querySelector('section').id") == "answer"
    at_95 = [r["metrics"]["accuracy"] for r in groups(sweep[1])["seven_dyn", 0.95]]
    mean, half = statistics.fmean(at_95), 4.302653 * statistics.stdev(at_95) / math.sqrt(3)
    first = answers(shown)[0]
    assert first.startswith(
        f"95%: seven_dyn leads with {100 * mean:.2f} ± {100 * half:.2f} %, +2.00 ± 2.48 against "
        "magnitude (p = "
    )
    # intervals reach down 3.5 points, up 1 from magnitude (2 behind) and 4 from snip (6 behind)
    assert "Not certain: 2 of 2 rivals have intervals that overlap (magnitude, snip)." in first
    assert len(answers(shown)) == len(SPARSITIES)
    note = shown.run("document.querySelector('#answer .note').textContent")
    assert note.startswith("30 runs on seeds 0-2. Each run: 20 steps.")
    shown.choose("metric", "loss")
    assert "seven_dyn leads with 0." in answers(shown)[0]


def test_a_rival_that_is_ahead_with_fewer_seeds_makes_the_lead_uncertain(browser, tmp_path):
    for pruner, seeds, accuracy in (("hi", 2, 0.99), ("ok", 3, 0.8), ("magnitude", 3, 0.7)):
        for seed in range(seeds):
            write(tmp_path, pruner, 0.9, seed, {"accuracy": accuracy + seed / 1000})
    compare([tmp_path])
    (first,) = answers(browser.open((tmp_path / "comparison.html").as_uri()))
    assert first.startswith("90%: ok leads with 80.10")
    assert first.endswith("Not certain: hi (†) is ahead, but incomplete or not as sparse.")


def test_the_heat_map_ranks_methods_by_their_differences(shown):
    def names():
        return shown.run(
            "[...document.querySelectorAll('#answer tbody th')].map(cell => cell.textContent)"
        )

    assert names() == ["seven_dyn", "magnitude", "snip"]
    cells = table(shown, "#answer")
    # 1, 2 and 3 points ahead, and twice that behind
    assert [row[1:] for row in cells if row[0] == "seven_dyn"] == [["+2.0"] * 3]
    assert [row[1:] for row in cells if row[0] == "snip"] == [["-4.0"] * 3]
    colours = (
        "[...document.querySelectorAll('#answer tbody tr')].map(r => r.cells[1].style.background)"
    )
    better, _, worse = shown.run(colours)
    shown.choose("metric", "loss")
    assert names() == ["seven_dyn", "magnitude", "snip"]
    assert (better, worse) == tuple(shown.run(colours)[::2])


def dimmed(browser):
    return set(
        browser.run(
            "[...document.querySelectorAll('#curves [data-series].dim')].map(g => g.dataset.series)"
        )
    )


def test_a_click_isolates_a_method_and_the_address_remembers(shown, browser):
    shown.click("#answer tbody tr:nth-child(3) button")
    assert dimmed(shown) == {"dense", "magnitude", "seven_dyn"}
    address = shown.run("location.href")
    shown.press("Escape")
    assert dimmed(shown) == set()
    shown.click("#curves [data-series=seven_dyn] .point")
    assert dimmed(shown) == {"dense", "magnitude", "snip"}
    shown.run("document.querySelector('#curves svg.chart').focus()")
    shown.press("ArrowRight")
    walked = shown.run("document.getElementById('tip').textContent").splitlines()[0]
    shown.press("Enter")
    assert dimmed(shown) == {"dense", "magnitude", "snip", "seven_dyn"} - {walked}
    assert dimmed(browser.open(address)) == {"dense", "magnitude", "seven_dyn"}
    browser.requests[:] = [urlsplit(address)._replace(fragment="").geturl()]


def test_methods_are_found_by_their_names(shown):
    shown.run(
        "(() => { const s = document.querySelector('input[name=find]');"
        "s.value = 'SEV'; s.dispatchEvent(new Event('input')); })()"
    )
    assert set(drawn(shown)) == {"seven_dyn"}
    assert "1 of 4 methods" in shown.run("document.querySelector('.key').textContent")


def test_figure_and_data_are_saved(shown, sweep, tmp_path):
    shown.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for number, suffix in ((1, ".svg"), (2, ".csv")):
        shown.click(f"#curves .save button:nth-child({number})")
        for _ in range(200):
            if found := list(tmp_path.glob(f"*{suffix}")):
                break
            time.sleep(0.05)
        assert len(found) == 1
    root = ElementTree.parse(next(tmp_path.glob("*.svg"))).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    with next(tmp_path.glob("*.csv")).open(newline="") as file:
        sheet = list(csv.DictReader(file))
    values = {(line["series"], float(next(v for k, v in line.items() if k.startswith("sparsity")))):
              float(line["accuracy, %"]) for line in sheet}  # fmt: skip
    assert values == {
        key: pytest.approx(100 * mean(group, lambda r: r["metrics"]["accuracy"]))
        for key, group in groups(sweep[1]).items()
    }


def test_at_night_the_page_is_dark_and_legible(shown):
    def contrast():
        return shown.run(
            "(() => { const light = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)"
            ".map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)"
            ".reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);"
            "const paper = light(getComputedStyle(document.body).backgroundColor);"
            "const text = s => light(getComputedStyle(document.querySelector(s)).color);"
            "const ratio = v => (Math.max(v, paper) + .05) / (Math.min(v, paper) + .05);"
            "return [paper, ...['body', '.note', '#runs a'].map(s => ratio(text(s)))]; })()"
        )

    for scheme in ("light", "dark"):
        shown.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        paper, *ratios = contrast()
        assert (paper > 0.5) == (scheme == "light")
        # WCAG 2.1, criterion 1.4.3
        assert min(ratios) > 4.5
    shown.send("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(shown, scheme):
    axe = pytest.importorskip("axe_core_python", reason="no axe-core-python here")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    shown.send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    shown.send("Runtime.evaluate", expression=script)
    found = "r => r.violations.map(v => [v.id, ...v.nodes.map(n => n.html)])"
    violations = shown.run(f"axe.run(document).then({found})")
    shown.send("Emulation.setEmulatedMedia", features=[])
    assert violations == []


def test_the_page_has_the_windows_width(browser, sweep):
    browser.open((sweep[0] / "comparison.html").as_uri(), width=1800)
    assert (
        browser.run("document.querySelector('#curves svg.chart').getBoundingClientRect().width")
        > 1300
    )


def test_tasks_have_panels_of_their_own(browser, tmp_path):
    odd_records(tmp_path, "several tasks")
    compare([tmp_path], metric="perplexity")
    browser.open((tmp_path / "comparison.html").as_uri())
    shown = browser.run(
        "[...document.querySelectorAll('#curves figure')].filter(f => !f.hidden)"
        ".map(f => f.querySelector('figcaption').textContent)"
    )
    assert shown == ["mlp on wikitext2", "vit on wikitext2"]


def test_smaller_is_better_for_perplexity(browser, tmp_path):
    for pruner, value in (("magnitude", 40.0), ("snip", 30.0), ("seven_dyn", 35.0)):
        write(tmp_path, pruner, 0.9, 0, {"perplexity": value})
    compare([tmp_path], metric="perplexity")
    browser.open((tmp_path / "comparison.html").as_uri())
    assert [row[1] for row in table(browser, "#table")] == ["snip", "seven_dyn", "magnitude"]
    best = browser.run("document.querySelector('#table tr.best').cells[1].textContent")
    assert best == "snip"
    assert browser.run("document.querySelectorAll('#curves .ring').length") == 1


def test_sections_of_ones_own(browser, tmp_path):
    sections = [
        Section("picture", "A picture", None, '<svg viewBox="0 0 1 1"><circle r="1"/></svg>'),
        Section(
            *("mine", "Mine & <yours>", {"numbers": [1.5, math.nan]}),
            "(root, data, page) => root.append(page.html('b', {id: 'sum'}, String(data.numbers)))",
            note="A note.",
        ),
        Section("broken", "Broken", {}, "() => { throw new Error('no'); }"),
        Section("last", "Last", {}, "root => root.append('still here')"),
    ]
    shared = {"metric": "x", "baseline": None, "metrics": {"x": {}}, "differences": {},
              "methods": [], "significant": 0.05}  # fmt: skip
    path = tmp_path / "page.html"
    pages.write_html(path, render("Title", [], shared, sections))
    browser.open(path.as_uri())
    assert browser.run("document.querySelector('#picture svg circle').r.baseVal.value") == 1
    assert browser.run("document.getElementById('sum').textContent") == "1.5,"
    assert browser.run("document.querySelector('#mine h2').textContent") == "Mine & <yours>"
    assert "can't be drawn: no" in browser.run("document.querySelector('#broken').textContent")
    assert "still here" in browser.run("document.querySelector('#last').textContent")
    with pytest.raises(ValueError, match="twice"):
        render("Title", [], shared, [sections[0], sections[0]])


def test_the_page_can_load_nothing(browser, sweep):
    """Its content policy forbids it, whatever a section might try."""
    root, _ = sweep
    browser.open((root / "comparison.html").as_uri())
    blocked = browser.run("fetch('results.json').then(() => 'loaded', () => 'refused')")
    assert blocked == "refused"
    text = (root / "comparison.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?https?:|@import|url\(", text)
