"""Figures and tables for a paper: names, highlighting, captions, formats."""

import itertools
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from test_compare import rows_of, run_main, write

from seven_exp.cli.compare import main
from seven_exp.compare.axes import axes, direction, front, place, with_results
from seven_exp.compare.conclusions import Conclusions
from seven_exp.compare.inference import Inference
from seven_exp.compare.look import Look, parse_names, parse_width, ranking
from seven_exp.compare.metrics import smaller_is_better
from seven_exp.compare.paper import caption, figure_captions, tables, write_markdown, write_tex
from seven_exp.compare.plot import draw, draw_differences, write_figure
from seven_exp.compare.records import read_runs
from seven_exp.compare.summary import summarize

PDFLATEX = shutil.which("pdflatex")

GAINS = {"magnitude": 0.0, "seven_dyn": 0.02, "seven_pre": -0.01}


@pytest.fixture
def sweep(tmp_path):
    """Three methods at two sparsities on three seeds, and dense."""
    config = {
        "optimizer": {"name": "adamw", "lr": 0.0005},
        "trainer": {"batch_size": 64, "max_steps": None},
    }
    for pruner, gain in GAINS.items():
        for sparsity in (0.5, 0.9):
            for seed, noise in enumerate((-0.001, 0.0, 0.002)):
                accuracy = 0.9 - sparsity / 10 + gain * (1 + noise)
                write(tmp_path, pruner, sparsity, seed, accuracy + noise, config=config, steps=220,
                      params_prunable=131072, test_examples=1000)  # fmt: skip
    write(tmp_path, "dense", 0.0, 0, 0.95, config=config, steps=220, params_prunable=131072,
          test_examples=1000)  # fmt: skip
    return tmp_path


@pytest.fixture
def rows(sweep):
    return list(rows_of(sweep).values())


def many(root, n=12):
    for i in range(n):
        for sparsity in (0.5, 0.9):
            write(root, f"pruner_{i:02d}", sparsity, 0, 0.5 + i / 100)
    return list(rows_of(root, baseline="pruner_00").values())


def artists(panel):
    return {artist.get_gid(): artist for artist in panel.get_children() if artist.get_gid()}


def test_methods_are_ranked_by_their_mean_rank(tmp_path):
    values = {"a": (0.9, 0.5, 0.5), "b": (0.8, 0.6, 0.6), "c": (0.7, 0.7, 0.4)}
    for pruner, accuracies in values.items():
        for sparsity, accuracy in zip((0.5, 0.7, 0.9), accuracies, strict=True):
            write(tmp_path, pruner, sparsity, 0, accuracy)
    rows = rows_of(tmp_path, baseline=None).values()
    # ranks by hand: a 1, 3, 2; b 2, 2, 1; c 3, 1, 3
    assert ranking(rows, "accuracy") == ["b", "a", "c"]
    # the loss is 1 - accuracy
    assert ranking(rows_of(tmp_path, metric="loss", baseline=None).values(), "loss") == [
        *("b", "a", "c"),
    ]


def test_beyond_seven_methods_the_best_and_the_baseline_are_coloured(tmp_path):
    rows = many(tmp_path)
    (panel,) = draw(rows, "accuracy", "pruner_00").axes
    drawn = artists(panel)
    coloured = {name.removesuffix("-means") for name in drawn if name.endswith("-means")}
    # the baseline is the worst
    assert coloured == {"pruner_00", *(f"pruner_{i:02d}" for i in range(6, 12))}
    assert len({drawn[f"{name}-means"].get_color() for name in coloured}) == 7
    grey = {name.removesuffix("-line") for name in drawn if name.endswith("-line")}
    assert grey == {f"pruner_{i:02d}" for i in range(1, 6)}
    assert {text.get_text() for text in panel.texts} == coloured
    assert (
        "Grey: the means of 5 other methods"
        in figure_captions(rows, "accuracy", "pruner_00", Look())["comparison"]
    )


def test_the_best_of_each_sparsity_is_coloured_whatever_its_mean_rank(tmp_path):
    for i in range(12):
        write(tmp_path, f"pruner_{i:02d}", 0.5, 0, 0.5 + 0.01 * i)
        write(tmp_path, f"pruner_{i:02d}", 0.9, 0, 0.9 if i == 0 else 0.5 + 0.01 * i)
    rows = rows_of(tmp_path, baseline="pruner_03")
    found = Look().coloured(list(rows.values()), "accuracy", "pruner_03")
    assert found == {"pruner_03", "pruner_00", *(f"pruner_{i:02d}" for i in range(7, 12))}


def test_what_is_highlighted_has_colour_and_its_name(tmp_path):
    rows = many(tmp_path)
    look = Look({"pruner_03": "Third"}, highlight=["pruner_0[34]"])
    (panel,) = draw(rows, "accuracy", "pruner_00", look).axes
    assert {text.get_text() for text in panel.texts} == {"Third", "pruner_04"}
    means = {name for name in artists(panel) if name.endswith("-means")}
    assert means == {"pruner_03-means", "pruner_04-means"}
    (heat,) = draw_differences(rows, "accuracy", "pruner_00", look).axes
    labels = {label.get_text(): label.get_fontweight() for label in heat.get_yticklabels()}
    assert (labels["Third"], labels["pruner_04"], labels["pruner_05"]) == ("bold", "bold", "normal")


def test_grey_methods_of_one_sparsity_are_points(tmp_path):
    for i in range(12):
        write(tmp_path, f"pruner_{i:02d}", 0.9, 0, 0.5 + i / 100)
    (panel,) = draw(list(rows_of(tmp_path, baseline=None).values()), "accuracy").axes
    grey = [a for name, a in artists(panel).items() if name.endswith("-line")]
    assert len(grey) == 5
    assert all(line.get_marker() == "o" for line in grey)


def test_an_accuracy_as_an_axis_has_no_interval_below_one_example(tmp_path):
    for seed in range(3):
        write(tmp_path, "magnitude", 0.9, seed, 0.5, test_examples=100)
    ((row,),) = [with_results(list(rows_of(tmp_path).values()), "accuracy")]
    assert row.result.half == pytest.approx(0.01)


@pytest.mark.parametrize("metric", ["error_rate", "mae_matched", "wer"])
def test_errors_are_better_when_smaller(metric):
    assert smaller_is_better(metric)


@pytest.mark.parametrize("length", [1, 40])
def test_names_at_the_right_do_not_overlap(tmp_path, length):
    """Long names lose their middle."""
    for i in range(7):
        write(tmp_path, f"pruner_{i}" + " more" * length, 0.9, 0, 0.5 + i / 1e6)
    figure = draw(
        list(rows_of(tmp_path, baseline=None).values()), "accuracy", look=Look(width=3.25)
    )
    figure.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 7
    assert all(above.y0 >= below.y1 - 1 for below, above in itertools.pairwise(boxes))
    panel = figure.axes[0].get_window_extent()
    assert panel.y0 - 2 < boxes[0].y0
    assert boxes[-1].y1 < panel.y1 + 2
    assert {"..." in text.get_text() for text in figure.axes[0].texts} == {length > 1}


def test_cells_of_the_heat_map_are_the_differences(rows):
    (panel,) = draw_differences(rows, "accuracy", "magnitude").axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        *("seven_dyn", "magnitude", "seven_pre"),
    ]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in panel.texts}
    # GAINS in points, at 50% and 90%; the baseline's own means
    assert {place: cell.rstrip("*") for place, cell in cells.items()} == {
        (0, 0): "+2.0", (1, 0): "+2.0",
        (0, 1): "85.0", (1, 1): "81.0",
        (0, 2): "-1.0", (1, 2): "-1.0",
    }  # fmt: skip
    starred = {(r.method, r.sparsity): r.starred for r in rows}
    assert cells[1, 0].endswith("*") == starred["seven_dyn", 0.9]
    (mesh,) = panel.collections
    depths = mesh.get_array()
    assert depths[0, 0] > 0 > depths[2, 0]


def test_smaller_losses_have_the_colour_of_better(sweep):
    def colour(metric):
        rows = list(rows_of(sweep, metric=metric).values())
        (panel,) = draw_differences(rows, metric, "magnitude").axes
        (mesh,) = panel.collections
        mesh.update_scalarmappable()
        return tuple(mesh.get_facecolors()[0])  # of the best method

    assert colour("loss") == pytest.approx(colour("accuracy"))


@pytest.mark.parametrize(("width", "pixels"), [("3.25in", 650), ("8.255cm", 650), ("72.27pt", 200)])
def test_figures_are_as_wide_as_asked(rows, tmp_path, width, pixels):
    figure = draw_differences(rows, "accuracy", "magnitude", Look(width=parse_width(width)))
    write_figure(tmp_path / "figure.png", figure)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == pixels


@pytest.mark.slow
def test_styles_change_fonts_and_colours_of_all_figures(rows, tmp_path, monkeypatch):
    """And nothing outside them; of two styles the later one has precedence."""
    import matplotlib

    monkeypatch.chdir(tmp_path)
    Path("own.mplstyle").write_text(
        'font.family: serif\naxes.prop_cycle: cycler(color=["ff0000", "00ff00"])\n'
    )
    before = dict(matplotlib.rcParams)
    look = Look(styles=["dark_background", "own.mplstyle"])
    figure = draw(rows, "accuracy", "magnitude", look)
    assert figure.get_facecolor() == (0, 0, 0, 1)
    (panel,) = figure.axes
    assert panel.xaxis.label.get_family() == ["serif"]
    colours = {line.get_color() for key, line in artists(panel).items() if key.endswith("-means")}
    assert colours == {"#ff0000", "#00ff00"}
    assert artists(panel)["dense-line"].get_color() == "#999999"  # 60% from black to white
    heat = draw_differences(rows, "accuracy", "magnitude", look)
    assert heat.get_facecolor() == (0, 0, 0, 1)
    assert main([".", "--format", "pdf", *(f"--style={style}" for style in look.styles)]) == 0
    fonts = {
        re.sub(rb"^\w{6}\+", b"", name)
        for name in re.findall(rb"/BaseFont /([\w+-]+)", (tmp_path / "comparison.pdf").read_bytes())
    }
    assert fonts
    assert all(name.startswith(b"DejaVuSerif") for name in fonts)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("gplot", "did you mean 'ggplot'?"),
        ("owm.mplstyle", "did you mean 'own.mplstyle'?"),
        ("own.mplstyle", "its text.usetex needs LaTeX, none is installed"),
        ("picture.png", "not a style sheet of matplotlib: 'utf-8' codec can't decode"),
    ],
)
def test_a_style_that_can_not_be_drawn_with_is_one_line(
    tmp_path, monkeypatch, capsys, style, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    Path("own.mplstyle").write_text("text.usetex: True\n")
    Path("picture.png").write_bytes(b"\x89PNG")
    write(tmp_path, "magnitude", 0.5, 0, 0.9)
    assert main([".", "--format", "png", "--style", style]) == 2
    assert f"error: --style is '{style}': {words}" in capsys.readouterr().err
    assert not Path("comparison.png").exists()


@pytest.mark.slow
def test_vector_figures_hold_text_and_no_pixels(rows, tmp_path):
    for form in ("pdf", "svg"):
        write_figure(tmp_path / f"figure.{form}", draw_differences(rows, "accuracy", "magnitude"))
    assert b"/Type3" not in (tmp_path / "figure.pdf").read_bytes()
    assert b"/Subtype /Image" not in (tmp_path / "figure.pdf").read_bytes()
    assert "<image" not in (tmp_path / "figure.svg").read_text()


def test_a_caption_says_data_budget_seeds_test_and_correction(rows):
    words = caption(rows, "accuracy", "magnitude", Look({"mlp": "MLP", "magnitude": "Magnitude"}))
    for part in (
        "Accuracy in % of MLP on digits",
        "mean over 3 seeds (0-2) ± half its 95% t interval",
        "Each run: 220 steps of 64 examples with adamw at learning rate 0.0005.",
        "131,072 prunable weights, 1,000 test examples.",
        "Dense: 95.00.",
        "Bold: the best mean of a sparsity",
        "*: differs from Magnitude with p < 0.05 (paired t tests over seeds, "
        "Holm's correction over 2 tests at each sparsity).",
    ):
        assert part in words


def test_a_caption_counts_accumulated_batches_the_dense_start_and_all_tests(tmp_path):
    config = {
        "trainer": {"batch_size": 32, "accumulate": 4},
        "model": {"pretrain": {"epochs": 5, "lr": 0.001}},
    }
    for dataset in ("digits", "other"):
        (tmp_path / dataset).mkdir()
    for dataset, sparsity, seed in itertools.product(("digits", "other"), (0.5, 0.9), (0, 1, 2)):
        for i, pruner in enumerate(("magnitude", "snip", "seven_dyn")):
            accuracy = 0.8 + i * (seed + 5) / 100 + seed / 1000
            write(tmp_path / dataset, pruner, sparsity, seed, accuracy, dataset=dataset,
                  run_hash=f"{dataset}{pruner}{sparsity}{seed}", config=config,
                  steps=10)  # fmt: skip
    records, _ = read_runs([tmp_path])
    for family, words in (("table", "8 tests of all tables"), ("sparsity", "2 tests at each")):
        rows, _ = summarize(records, "accuracy", "magnitude", inference=Inference(family=family))
        own = [row for row in rows if row.dataset == "digits"]
        said = caption(own, "accuracy", "magnitude", Look())
        assert f"Holm's correction over {words}" in said
    assert "Dense start: 5 epochs at learning rate 0.001. Each run: 10 steps of 128 " in said


def test_tables_of_similar_names_have_their_own_labels_and_marks(tmp_path):
    for dataset in ("d_1", "d-1"):
        (tmp_path / dataset).mkdir()
        write(tmp_path / dataset, "magnitude", 0.5, 0, 0.9, dataset=dataset,
              run_hash=dataset, departures=["own text"])  # fmt: skip
    rows, _ = summarize(read_runs([tmp_path])[0], "accuracy", None)
    look = Look({"magnitude": "Magnitude"})
    found = tables(rows, "accuracy", None, look, Conclusions.of(rows, "accuracy", Inference()))
    assert len({table.label for table in found}) == 2
    for table in found:
        assert table.lines[0][1].marks == "‡"
        assert "‡ not of the published protocol: own text (Magnitude)" in table.caption


def test_a_caption_says_only_what_all_runs_share(tmp_path):
    for steps in (10, 20):
        write(tmp_path, "magnitude", 0.9, 0, 0.5, steps=steps, run_hash=str(steps))
    words = caption(list(rows_of(tmp_path).values()), "accuracy", None, Look())
    assert "steps" not in words
    assert "differs" not in words


def test_a_setting_can_be_the_axis(tmp_path):
    for lr, sparsity, seed in itertools.product((0.001, 0.01, 0.1), (0.5, 0.9), (0, 1)):
        accuracy = 0.5 + lr + sparsity / 10 + seed / 100
        write(tmp_path, "magnitude", sparsity, seed, accuracy, config={"optimizer": {"lr": lr}})
    rows = list(rows_of(tmp_path, baseline=None).values())
    assert len({row.method for row in rows}) == 3
    (panel,) = draw(rows, "accuracy", look=Look(x="optimizer.lr")).axes
    drawn = artists(panel)
    means = {name: artist for name, artist in drawn.items() if name.endswith("-means")}
    assert set(means) == {"magnitude sparsity=50%-means", "magnitude sparsity=90%-means"}
    x, y = means["magnitude sparsity=90%-means"].get_data()
    assert list(x) == pytest.approx([0.001, 0.01, 0.1])
    assert list(y) == pytest.approx([59.6, 60.5, 69.5])
    # two decades
    assert panel.get_xscale() == "log"
    panel.figure.draw_without_rendering()
    assert {"0.001", "0.01", "0.1"} <= {label.get_text() for label in panel.get_xticklabels()}
    assert panel.get_xlabel() == "optimizer.lr"


def test_a_metric_and_a_cost_can_be_axes(sweep):
    rows = list(rows_of(sweep).values())
    (panel,) = draw(rows, "loss", look=Look({"accuracy": "Accuracy (%)"}, x="accuracy")).axes
    x, _ = artists(panel)["seven_pre-means"].get_data()
    # 0.9 - sparsity / 10 - 0.01, and a third of a thousandth
    assert list(x) == pytest.approx([80.03, 84.03], abs=0.01)
    assert panel.get_xlabel() == "Accuracy (%)"
    (panel,) = draw(rows, "accuracy", look=Look(x="kept")).axes
    assert list(artists(panel)["seven_pre-means"].get_data()[0]) == [100, 100]


def test_what_can_be_an_axis(tmp_path):
    for seed, (lr, name) in enumerate(((0.1, "adamw"), (0.2, "sgd"))):
        config = {"optimizer": {"lr": lr, "name": name}, "trainer": {"clip": None}}
        write(tmp_path, "magnitude", 0.9, seed, 0.5, config=config)
    records, _ = read_runs([tmp_path])
    assert list(axes(records)) == [
        *("sparsity", "kept", "zeros", "flops", "seconds", "accuracy", "loss", "optimizer.lr"),
    ]


def test_measured_latency_is_an_axis(tmp_path):
    for seed, seconds in enumerate((0.002, 0.004)):
        folder = write(tmp_path, "magnitude", 0.9, seed, 0.5)
        variant = {"name": "zeros in place", "latency": {"median": seconds}, "bytes": 80}
        variants = [{**variant, "examples_per_second": 1 / seconds}]
        (folder / "measure.json").write_text(json.dumps({"variants": variants}))
    broken = write(tmp_path, "magnitude", 0.9, 2, 0.5)
    (broken / "measure.json").write_text('{"variants": [{}]}')
    (row,) = rows_of(tmp_path).values()
    named = axes(row.records)
    assert named["latency.zeros_in_place"] == "latency of one example, ms (zeros_in_place)"
    # the mean of 2 and 4 ms, of 500 and 250 examples
    assert place(row, "latency.zeros_in_place") == 3.0
    assert place(row, "throughput.zeros_in_place") == 375.0
    assert place(row, "bytes.zeros_in_place") == 80.0
    assert direction("latency.zeros_in_place", row.records) == -1
    assert direction("throughput.zeros_in_place", row.records) == 1


@pytest.mark.parametrize(("x", "y"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_front_is_what_nothing_beats(x, y):
    draws = random.Random(3)
    points = [(draws.randrange(9), draws.randrange(9)) for _ in range(30)]
    beaten = {
        (a, b)
        for a, b in points
        if any(x * u >= x * a and y * v >= y * b and (u, v) != (a, b) for u, v in points)
    }
    assert set(front(points, x, y)) == set(points) - beaten


def test_any_two_numbers_can_be_axes_and_a_third_the_colour(tmp_path):
    costs = {"magnitude": (10, 4.0), "snip": (20, 2.0), "grasp": (30, 3.0)}
    for pruner, (kept, seconds) in costs.items():
        for seed in (0, 1):
            write(tmp_path, pruner, 0.9, seed, kept / 100, params_nonzero=kept,
                  seconds=seconds + seed)  # fmt: skip
    rows = list(rows_of(tmp_path).values())
    look = Look(x="kept", y="seconds", colour="accuracy")
    (panel, bar) = draw(rows, "accuracy", look=look).axes
    drawn = artists(panel)
    # means over seeds 0 and 1; less is better on both axes, so grasp is beaten by snip
    assert sorted(zip(*drawn["front"].get_data(), strict=True)) == [(10, 4.5), (20, 2.5)]
    points = drawn["colours"]
    assert sorted(map(tuple, points.get_offsets().tolist())) == [(10, 4.5), (20, 2.5), (30, 3.5)]
    assert sorted(points.get_array()) == pytest.approx([10, 20, 30])
    assert panel.get_ylabel() == "seconds of training"
    assert bar.get_ylabel() == "accuracy, %"
    words = figure_captions(rows, "accuracy", None, look)["comparison"]
    assert words.startswith("Seconds of training over kept parameters of mlp on digits")
    assert "Colour: accuracy. Wide grey line: the Pareto front." in words
    # an interval of seconds is Student's, half the difference times 12.706, and none is below zero
    (end, *_) = artists(draw(rows, "accuracy", look=Look(x="kept", y="seconds")).axes[0])[
        "magnitude-bars"
    ].get_segments()
    assert end[:, 1] == pytest.approx([0, 4.5 + 12.706205 * 0.5], rel=1e-6)
    # along a setting nothing is better
    assert "front" not in artists(draw(rows, "accuracy").axes[0])


def test_a_loss_that_spans_decades_is_logarithmic(tmp_path):
    for sparsity, loss in ((0.5, 2.0), (0.9, 200.0)):
        write(tmp_path, "magnitude", sparsity, 0, 0.5, metrics={"perplexity": loss})
    rows = list(rows_of(tmp_path, metric="perplexity").values())
    (panel,) = draw(rows, "perplexity").axes
    assert panel.get_yscale() == "log"
    panel.figure.draw_without_rendering()


def cells_of(lines):
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in lines}


def written(folder, rows, look, metric="accuracy", baseline="magnitude", contrasts=()):
    """The tables and captions, as t.tex and t.md."""
    conclusions = Conclusions.of(rows, metric, Inference(contrasts=contrasts, margin=0.3))
    found = tables(rows, metric, baseline, look, conclusions)
    captions = figure_captions(rows, metric, baseline, look)
    write_tex(folder / "t.tex", found, captions)
    write_markdown(folder / "t.md", found, captions, ".png")


def test_tables_hold_means_intervals_bold_and_stars(rows, tmp_path):
    written(tmp_path, rows, Look({"seven_dyn": "SEVEN_dyn"}))
    tex, markdown = (tmp_path / "t.tex").read_text(), (tmp_path / "t.md").read_text()
    body = tex.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    in_tex = cells_of(line.removesuffix("\\\\").split("&") for line in body.splitlines())
    in_markdown = cells_of(
        line.split("|")[1:-1] for line in markdown.splitlines() if line.startswith("| ")
    )
    assert list(in_tex) == ["SEVEN\\_dyn", "magnitude", "seven\\_pre"]
    by_place = {(row.method, row.sparsity): row for row in rows}
    # 4.302653 is the 97.5% quantile of Student's t with 2 degrees of freedom; the deviations of the
    # seeds are -4/3, -1/3 and 5/3 thousandths
    half = 100 * 4.302653 * 1e-3 * math.sqrt((16 + 1 + 25) / 9 / 2 / 3)
    at_90 = by_place["magnitude", 0.9]
    assert 100 * at_90.result.half == pytest.approx(half, rel=1e-5)
    assert in_tex["magnitude"][1].startswith(f"81.03\\,{{\\scriptsize$\\pm${half:.2f}}}")
    assert in_markdown["magnitude"][1].startswith(f"81.03 ± {half:.2f}")
    star = "\\rlap{$^{*}$}" if by_place["seven_dyn", 0.9].starred else ""
    assert re.fullmatch(rf"\\textbf\{{83\.03\}}.*{re.escape(star)}", in_tex["SEVEN\\_dyn"][1])
    assert in_markdown["SEVEN_dyn"][1].startswith("**83.03**")
    assert "textbf" not in "".join(in_tex["magnitude"])
    assert "\\includegraphics[width=\\linewidth]{comparison_differences}" in tex
    assert "![comparison](comparison.png)" in markdown
    # everything special to TeX is escaped
    assert not re.search(r"(?<!\\)[%_&](?!.*\\\\$)", tex.partition("\\begin{table}")[2].replace(
        "comparison_differences}", "").replace(" & ", ""))  # fmt: skip


@pytest.mark.skipif(PDFLATEX is None, reason="needs pdflatex")
def test_latex_compiles_what_is_written(tmp_path):
    # every letter that is special to TeX, in names of one's own and in settings
    config = {"optimizer": {"name": "a_b&c%d#e~f^g\\h{i}j$k<l>m"}}
    for pruner, seed, sparsity in itertools.product(GAINS, range(3), (0.5, 0.7, 0.9)):
        accuracy = 0.9 - sparsity / 10 + GAINS[pruner] + seed * 1e-3
        write(tmp_path, pruner, sparsity, seed, accuracy, config=config, test_examples=1000)
    rows = list(rows_of(tmp_path).values())
    look = Look(parse_names(["seven_dyn=SEVEN$_\\mathrm{dyn}$", "mlp=50% & more_"]), width=3.25)
    written(tmp_path, rows, look, contrasts=("seven_dyn:seven_pre",))
    write_figure(tmp_path / "comparison.pdf", draw(rows, "accuracy", "magnitude", look))
    heat = draw_differences(rows, "accuracy", "magnitude", look)
    write_figure(tmp_path / "comparison_differences.pdf", heat)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}"
        "\\begin{document}\\input{t}\\end{document}"
    )
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    # nothing is wider than its column
    assert "Overfull" not in (tmp_path / "paper.log").read_text(encoding="latin-1")


def test_mathematics_in_names(rows, tmp_path):
    look = Look(parse_names(["seven_dyn=SEVEN$_{dyn}$", "magnitude=|w| & $|w|_1$ 5%"]))
    written(tmp_path, rows, look)
    tex = (tmp_path / "t.tex").read_text()
    assert "\nSEVEN$_{dyn}$ & " in tex
    assert "|w| \\& $|w|_1$ 5\\% & " in tex
    (panel,) = draw(rows, "accuracy", "magnitude", look).axes
    panel.figure.draw_without_rendering()
    # a dollar in a record's name is a dollar
    assert Look().name("snip dataset.data_dir=$HOME") == "snip dataset.data_dir=\\$HOME"
    for wrong in ("snip=a$b", "snip=$\\frac{$"):
        with pytest.raises(ValueError, match="not mathematics as in TeX"):
            parse_names([wrong])


def test_the_command_writes_what_is_asked(sweep, capsys):
    arguments = ["--format", "tex,md,png", "--width", "3.25in", "--highlight", "seven_*"]
    output = sweep / "out"
    assert run_main([str(sweep), *arguments, "--rename", "mlp=MLP", "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {
        *("comparison.tex", "comparison.md", "comparison.png", "comparison_differences.png"),
    }
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        f"written to {output}: comparison.md, comparison.png, comparison.tex, "
        "comparison_differences.png"
    )
    assert "MLP on digits" in (output / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "pgn"], "--format is 'pgn': did you mean 'png'?"),
        (["--width", "3.25"], "--width is '3.25': expected 1in to 40in"),
        (["--width", "0.1in"], "--width is '0.1in': expected 1in to 40in"),
        (["--rename", "seven_dyn"], "--rename is 'seven_dyn': expected NAME=NICE"),
        (["--rename", "mlp=稀疏", "--format", "pdf"], "the font sans-serif has no '稀': choose"),
        (["--rename", "seven_dn=SEVEN"], "--rename is 'seven_dn=...': did you mean 'seven_dyn'?"),
        (
            ["--rename", "seven_dyn=magnitude"],
            "'seven_dyn' would both be 'magnitude'",
        ),
        (["--x", "secnds"], "--x is 'secnds': did you mean 'seconds'?"),
        (["--x", "flops"], "--x is 'flops': no run has a number there"),
        (["--y", "secnds"], "--y is 'secnds': did you mean 'seconds'?"),
        (["--colour", "secnds"], "--colour is 'secnds': did you mean 'seconds'?"),
        (["--highlight", "sevn_*"], "--highlight is 'sevn_*': "),
    ],
)
def test_mistakes(sweep, capsys, arguments, words):
    assert run_main([str(sweep), *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not list(Path(sweep).glob("comparison*"))


def test_a_caption_says_each_departure_once_and_that_nothing_was_trained(tmp_path):
    for pruner, sparsity in ((p, s) for p in ("magnitude", "wanda") for s in (0.5, 0.7)):
        for seed in (0, 1):
            write(
                tmp_path, pruner, sparsity, seed, 0.5, steps=0, departures=["own text"],
                config={"trainer": {"batch_size": 4}},
            )  # fmt: skip
    rows = list(rows_of(tmp_path).values())
    words = caption(rows, "accuracy", "magnitude", Look())
    assert words.count("own text (all methods)") == words.count("own text") == 1
    assert "Each run: no training." in words


def test_names_of_methods_with_settings_are_replaced_word_by_word():
    look = Look(parse_names(["optimizer.lr=lr", "snip=SNIP", "snip optimizer.lr=0.1=slow"]))
    assert look.name("snip optimizer.lr=0.2") == "SNIP lr=0.2"
    assert look.name("snip optimizer.lr=0.1") == "slow"
    assert look.name("magnitude") == "magnitude"


def test_one_seed_has_no_interval_and_no_caption_claims_one(tmp_path, capsys):
    for pruner, accuracy in (("magnitude", 0.8), ("snip", 0.9)):
        write(tmp_path, pruner, 0.9, 0, accuracy)
    assert run_main([str(tmp_path), "--format", "tex,md,png"]) == 0
    said = capsys.readouterr().out
    assert "bold is the best value, no ranking: one seed has no interval" in " ".join(said.split())
    text = (tmp_path / "comparison.md").read_text()
    assert "one seed (0), no interval" in text
    assert "values of one seed, without intervals" in text
    assert "overlap" not in said + text
    assert "95% t" not in text
