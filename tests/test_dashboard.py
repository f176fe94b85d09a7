"""The comparison on W&B: what would be sent, from the objects' own serialisation."""

import json
import re
import sys

import pytest

pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")

from wandb_server import ENTITY, PROJECT
from wandb_workspaces.reports.v2.internal import Spec
from wandb_workspaces.workspaces.internal import WorkspaceViewspec

from seven_exp.cli.compare import main
from seven_exp.compare import dashboard as boards
from seven_exp.compare.dashboard import COLUMNS, build_dashboard, parse_place, publish
from seven_exp.compare.records import read_runs
from seven_exp.compare.summary import summarize

LAYERS = ("a.weight", "b.weight")


def write(root, pruner, sparsity, seed, accuracy, model="vit_tiny", reached=None):
    folder = root / f"{model}_{pruner}_{sparsity}_{seed}"
    folder.mkdir()
    (folder / "results.json").write_text(
        json.dumps({
            "run_hash": folder.name, "status": "finished", "pruner": pruner, "model": model,
            "dataset": "digits", "seed": seed, "sparsity_target": sparsity, "params_nonzero": 1,
            "splits": {"metrics": "test"}, "sparsity": sparsity if reached is None else reached,
            "metrics": {"accuracy": accuracy}, "seconds": 1.0, "flops_sparse": 5,
            "layers": [{"name": name, "numel": 10, "nonzero": 5} for name in LAYERS],
            "config": {"seed": seed, "sparsity": sparsity, "pruner": {"name": pruner}},
        })
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    for seed in (0, 1, 2):
        for sparsity in (0.5, 0.9):
            write(tmp_path, "magnitude", sparsity, seed, 0.6 + seed / 10)
            # ahead by 1, 2 and 3 points
            write(tmp_path, "seven_dyn", sparsity, seed, 0.6 + seed / 10 + 0.01 * (seed + 1))
    write(tmp_path, "magnitude", 0.5, 0, 0.5, model="mlp")
    return tmp_path


@pytest.fixture
def board(sweep):
    records, _ = read_runs([sweep])
    rows, _ = summarize(records, "accuracy", "magnitude")
    return build_dashboard(rows, "accuracy", "magnitude", "team", "project")


def sent(model):
    """What ``save`` would send of a report or a workspace."""
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))


def blocks(board, kind):
    return [b for b in sent(board.report._to_model())["blocks"] if b["type"] == kind]


def panels(block):
    return block["metadata"]["panelBankSectionConfig"]["panels"]


def filters(block):
    (runs,) = block["metadata"]["runSets"]
    return {f["key"]["name"]: f["value"] for f in runs["filters"]["filters"]}


def vit(board):
    """The panel grids of the second model: means, runs, and layers with training."""
    grids = blocks(board, "panel-grid")
    assert len(grids) == 6
    return grids[3:]


def test_the_report_begins_with_the_table_of_means(board):
    tables = [b["content"] for b in blocks(board, "markdown-block")]
    assert len(tables) == 2
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[1].splitlines()]
    assert lines[0][:6] == [
        *("sparsity", "method", "accuracy", "seeds", "minus magnitude", "p (Holm)"),
    ]
    by_place = {(line[0], line[1]): line for line in lines[2:]}
    assert set(by_place) == {
        (s, method) for s in ("50%", "90%") for method in ("magnitude", "seven_dyn")
    }
    # worked out in test_compare: 4.302653 * 0.01 / sqrt 3
    assert by_place["90%", "seven_dyn"][4] == "+2.00 ± 2.48"
    titles = [b["children"][0]["text"] for b in blocks(board, "heading") if b["level"] == 1]
    assert titles == ["mlp on digits", "vit_tiny on digits"]


def test_intervals_are_drawn_from_the_table_that_is_sent(board):
    means, *_ = vit(board)
    assert filters(means) == {"jobType": "comparison", "displayName": "comparison"}
    (panel,) = panels(means)
    (query,) = panel["config"]["userQuery"]["queryFields"]
    (table,) = [f for f in query["fields"] if f["name"] == "summaryTable"]
    ((key),) = [a["value"] for a in table["args"] if a["name"] == "tableKey"]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in board.tables[key]]
    row = next(r for r in rows if (r["method"], r["sparsity"]) == ("magnitude", 0.9))
    # 0.6, 0.7 and 0.8: s is 0.1
    assert row["mean"] == pytest.approx(0.7)
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert row["mean"] - row["low"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    (name,) = board.charts
    assert panel["config"]["panelDefId"] == f"team/{name}"
    # every field of the chart is a column of the table
    wanted = set(re.findall(r"\$\{field:(\w+)\}", json.dumps(board.charts[name])))
    assert {"method", "reached", "mean", "low", "high"} <= wanted
    settings = panel["config"]["fieldSettings"]
    assert wanted <= set(settings)
    assert set(settings.values()) <= set(COLUMNS)


def test_panels_use_the_keys_that_the_tracker_logs(board):
    _, runs, rest = vit(board)
    hashes = sorted(
        f"vit_tiny_{pruner}_{sparsity}_{seed}"
        for pruner in ("magnitude", "seven_dyn")
        for sparsity in (0.5, 0.9)
        for seed in (0, 1, 2)
    )
    expected = {"model": "vit_tiny", "dataset": "digits", "run_hash": hashes}
    assert filters(runs) == expected
    assert filters(rest) == {**expected, "sparsity": 0.9}
    scatter, flops, comparer = panels(runs)
    assert scatter["viewType"] == "Scatter Plot"
    # what was reached: a dense run keeps all, whatever sparsity its config asks for
    assert scatter["config"]["xAxis"] == "summary:final/sparsity"
    assert scatter["config"]["yAxis"] == "summary:final/accuracy"
    assert flops["config"]["xAxis"] == "summary:final/flops_sparse"
    assert comparer["config"] == {"diffOnly": True}
    bars, layers, *training = panels(rest)
    assert bars["config"]["metrics"] == [f"layer_sparsity/{name}" for name in LAYERS]
    assert layers["config"]["metricRegex"] == "layer_sparsity/.*"
    assert [p["config"]["metrics"] for p in training] == [
        ["validation/accuracy"],
        ["loss"],
        ["sparsity"],
    ]
    for panel in (bars, layers, *training):
        assert panel["config"]["groupBy"] == "pruner.value"
        assert panel["config"]["aggregate"] is True
    for panel in (layers, *training):
        assert panel["config"]["xAxis"] == "step"
    (table,) = runs["metadata"]["runSets"]
    assert "summary:final/accuracy" in table["runFeed"]["columnOrder"]
    assert "config:pruner.value" in table["runFeed"]["columnOrder"]


def test_a_workspace_shows_the_runs_of_its_own_model_and_data_set(board):
    views = [workspace._to_model() for workspace in board.workspaces]
    assert [(view.entity, view.project, view.display_name) for view in views] == [
        ("team", "project", f"{boards.TITLE}: {model} on digits") for model in ("mlp", "vit_tiny")
    ]
    sections = sent(views[1])["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == ["accuracy over sparsity", "layers", "training"]
    assert [len(s["panels"]) for s in sections] == [4, 2, 3]
    assert all(s["isOpen"] for s in sections)
    for model, view in zip(("mlp", "vit_tiny"), views, strict=True):
        (runs,) = view.spec.section.run_sets
        leaves = [(f["key"]["name"], f["op"], f["value"]) for f in leaves_of(runs.filters)]
        assert leaves[:4] == [
            *(("jobType", "=", "comparison"), ("displayName", "=", "comparison")),
            *(("model", "=", model), ("dataset", "=", "digits")),
        ]
        name, op, hashes = leaves[4]
        assert (name, op) == ("run_hash", "IN")
        assert len(hashes) == {"mlp": 1, "vit_tiny": 12}[model]
        assert [key.name for key in runs.grouping] == ["pruner.value", "sparsity.value"]


def test_what_is_sent_keeps_to_the_schemas_of_wandb(board):
    """Read back by W&B's own models of a workspace and a report, nothing is lost."""
    specs = [(WorkspaceViewspec, one._to_model().spec) for one in board.workspaces]
    specs.append((Spec, board.report._to_model().spec))
    for schema, spec in specs:
        text = spec.model_dump_json(by_alias=True, exclude_none=True)
        again = schema.model_validate_json(text)
        assert_holds(json.loads(again.model_dump_json(by_alias=True)), json.loads(text))


def assert_holds(found, sent):
    """``found`` has all that ``sent`` has."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            assert_holds(found[key], value)
    elif isinstance(sent, list):
        for one, other in zip(found, sent, strict=True):
            assert_holds(one, other)
    else:
        assert found == sent


def test_a_sweep_has_a_view_and_a_table_of_its_own(sweep):
    rows, _ = summarize(read_runs([sweep])[0], "accuracy", None)
    one, other = (
        build_dashboard(rows, "accuracy", None, "team", "project", name) for name in ("a/1", "a/2")
    )
    names = {workspace.name for board in (one, other) for workspace in board.workspaces}
    assert len(names) == 4
    assert f"{boards.TITLE}: mlp on digits, a/1" in names
    assert (one.run, other.run) == ("comparison a/1", "comparison a/2")


def test_the_dense_model_is_a_line_and_the_others_points_at_the_sparsity_they_reached(tmp_path):
    write(tmp_path, "dense", 0.9, 0, 0.95, reached=0.0)
    write(tmp_path, "magnitude", 0.9, 0, 0.8, reached=0.89)
    write(tmp_path, "magnitude", 0.9, 1, 0.7, reached=0.91)
    rows, _ = summarize(read_runs([tmp_path])[0], "accuracy", None)
    board = build_dashboard(rows, "accuracy", None, "team", "project")
    ((*cells,),) = board.tables.values()
    table = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in cells}
    assert (table["dense"]["sparsity"], table["dense"]["reached"]) == (0, 0)
    assert table["magnitude"]["reached"] == pytest.approx(0.9)
    (spec,) = board.charts.values()
    drawn = [
        (layer["transform"][0]["filter"], layer["mark"], layer["encoding"])
        for layer in spec["layer"]
    ]
    field = "${field:sparsity}"
    lines = [encoding for chosen, _, encoding in drawn if chosen == {"field": field, "lte": 0}]
    assert len(lines) == 1
    assert lines[0].keys() == {"y", "tooltip"}  # without x: across the whole chart
    assert lines[0]["y"]["field"] == "${field:mean}"
    others = [encoding for chosen, _, encoding in drawn if chosen == {"field": field, "gt": 0}]
    assert len(others) == 3
    assert {encoding["x"]["field"] for encoding in others} == {"${field:reached}"}


def leaves_of(filters):
    """The conditions of a tree of filters."""
    for one in filters["filters"]:
        if one.get("filters"):
            yield from leaves_of(one)
        else:
            yield one


@pytest.mark.slow
def test_publishing_twice_updates_what_is_there(sweep, client):
    rows, _ = summarize(read_runs([sweep])[0], "accuracy", "magnitude")
    board = build_dashboard(rows, "accuracy", "magnitude", ENTITY, PROJECT)
    first = publish(board)
    views = client.views
    assert {view["type"] for view in views.values()} == {"runs", "project-view"}
    (run,) = client.runs.values()
    assert (run.name, run.about["jobType"], run.complete) == (boards.RUN, "comparison", True)
    for key, rows in board.tables.items():
        table = json.loads(run.files[run.summary[key]["path"]])
        assert (table["columns"], table["data"]) == (list(COLUMNS), rows)
    contents = {key: view["spec"] for key, view in views.items()}
    for workspace in board.workspaces:
        workspace.sections.pop()
    board.report.blocks.pop()
    assert publish(board) == first
    assert set(views) == set(contents)
    assert client.charts == board.charts
    for key, view in views.items():
        assert view["spec"] != contents[key]


@pytest.mark.slow
def test_the_command_says_where_it_went_or_what_was_refused(sweep, client, capsys):
    command = [str(sweep), "--wandb", f"{ENTITY}/{PROJECT}", "--format", "html"]
    assert main(command) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"on W&B: {client.url}/{ENTITY}/{PROJECT}/reports/")
    (sweep / "comparison.html").unlink()
    client.fail("deny", about="SpecificReport")
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: W&B: permission denied"
    # the files on this machine are still written
    assert (sweep / "comparison.html").exists()


def test_without_the_extra_it_says_what_to_install(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main([str(sweep), "--wandb", "team/project"]) == 2
    assert capsys.readouterr().err == (
        "error: --wandb: needs wandb-workspaces: uv sync --extra dashboard\n"
    )
    # nothing is done before
    assert not (sweep / "comparison.csv").exists()


def test_intervals_on_the_chart_end_at_the_metrics_bounds(tmp_path):
    for seed, accuracy in enumerate((0.80, 1.0, 0.99)):
        write(tmp_path, "magnitude", 0.9, seed, accuracy)
    rows, _ = summarize(read_runs([tmp_path])[0], "accuracy", None)
    board = build_dashboard(rows, "accuracy", None, "team", "project")
    (((cells,),),) = [board.tables.values()]
    row = dict(zip(COLUMNS, cells, strict=True))
    assert row["high"] == 1.0
    assert row["low"] == pytest.approx(rows[0].result.mean - rows[0].result.half)
    (spec,) = board.charts.values()
    assert {layer["encoding"]["y"]["scale"]["nice"] for layer in spec["layer"]} == {False}


@pytest.mark.parametrize("place", ["project", "/project", "team/", "a/b/c"])
def test_places_that_are_none(place):
    with pytest.raises(ValueError, match="expected entity/project"):
        parse_place(place)
