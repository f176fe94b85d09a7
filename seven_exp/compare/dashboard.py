"""A comparison on Weights & Biases: workspaces, and a report with the present results.

W&B's own plots use the runs that the tracker has logged. W&B computes no t intervals, so a separate
run of the job type "comparison" holds the means with their intervals; a custom chart plots them. It
uses the artifacts of the runs that it compares.
"""

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

from seven_exp.compare.metrics import bounds, in_percent
from seven_exp.compare.paper import markdown_line
from seven_exp.compare.plot import styles
from seven_exp.compare.summary import Row, by_task
from seven_exp.compare.table import captions, cells, headings
from seven_exp.messages import one_line
from seven_exp.tracking.weights_and_biases import FINISH_SECONDS, artifact_name, limits

if TYPE_CHECKING:
    import wandb
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

TITLE = "Comparison of pruning methods"
VIEW = "sevenexp"
"""Prefix of a workspace's name in its address; constant, so that later calls find it."""

RUN = "seven-exp-comparison"
"""Id of the run that holds the tables; that of a sweep ends with a hash of the sweep's name."""

COLUMNS = (
    *("method", "sparsity", "reached", "mean", "low", "high", "seeds", "difference", "p_holm"),
    *("without_result", "zeros_total"),
)

MOST_LAYERS = 60
"""Height of a chart in bars."""


@dataclass(frozen=True)
class Dashboard:
    """The objects to send.

    Attributes:
        workspaces: One per model and data set: a workspace has one filter, and all of its panels
            show the same runs.
        report: The same panels with the statistics.
        charts: Name -> Vega-Lite of the custom charts.
        tables: Key -> rows of `COLUMNS`.
        run: Name of the run that holds the tables.
        used: Names of the artifacts of the runs that are compared.
    """

    workspaces: list["ws.Workspace"]
    report: "wr.Report"
    charts: dict[str, dict[str, Any]]
    tables: dict[str, list[list[Any]]]
    run: str
    used: list[str]


def parse_place(place: str) -> tuple[str, str]:
    """Split "entity/project" into (entity, project).

    Raises:
        ValueError: It has another form.
    """
    entity, _, project = place.partition("/")
    if not (entity and project) or "/" in project:
        raise ValueError(f"--wandb is '{place}': expected entity/project")
    return entity, project


def require_login() -> None:
    """Check that W&B accepts uploads, before any other work.

    Raises:
        ValueError: The extra isn't installed, or there is no login.
    """
    from seven_exp.tracking.weights_and_biases import logged_in

    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise ValueError("needs wandb-workspaces: uv sync --extra dashboard") from None
    if not logged_in():
        raise ValueError("not logged in to W&B: type wandb login, or set WANDB_API_KEY")


def build_dashboard(
    rows: Sequence[Row],
    metric: str,
    baseline: str | None,
    entity: str,
    project: str,
    sweep: str | None = None,
) -> Dashboard:
    """Build the objects without sending them.

    Args:
        rows: At least one, with their differences.
        metric: Their metric.
        baseline: The baseline of the differences.
        entity: W&B entity.
        project: W&B project of the runs.
        sweep: Name of the sweep whose own view this is; None: a comparison of any runs.
    """
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    run = f"comparison {sweep or ''}".strip()
    spec = _interval_chart(rows, metric)
    # The name contains a hash of the content, so an existing chart of this name is the same one.
    chart = f"seven-exp-intervals-{_digest(json.dumps(spec, sort_keys=True))}"
    tables: dict[str, list[list[Any]]] = {}
    blocks: list[Any] = [wr.P(_explained(metric, baseline)), wr.TableOfContents()]
    workspaces = []
    means = expr.And(expr.Metric("JobType") == "comparison", expr.Metric("Name") == run)
    for task, own in by_task(rows):
        title = " on ".join(task)
        key = f"comparison/{metric}/{'-'.join(task).replace('/', '-')}"
        tables[key] = [_cells(row, metric) for row in own]
        panels = _panels(own, metric, key, f"{entity}/{chart}")
        compared = sorted({record.run_hash for row in own for record in row.records})
        runs = [
            expr.Config("model") == task[0],
            expr.Config("dataset") == task[1],
            # Others of the same model and data are not in the table.
            expr.Summary("run_hash").isin(compared),
        ]
        top = max(row.sparsity for row in own)
        at_top = expr.Config("sparsity") == top
        blocks += [
            wr.H1(title),
            wr.MarkdownBlock(_markdown(own, metric, baseline)),
            *map(wr.P, captions(own, metric)),
            wr.H2(f"{metric} over sparsity"),
            wr.PanelGrid(
                runsets=[wr.Runset(name="means", filters=means)],
                panels=panels["intervals"],
            ),
            wr.PanelGrid(
                runsets=[_table_of_runs(expr.And(*runs), metric)],
                panels=panels["runs"],
            ),
            wr.H2(f"Layers and training at {top:g}"),
            wr.PanelGrid(
                runsets=[wr.Runset(name=f"sparsity {top:g}", filters=expr.And(*runs, at_top))],
                panels=[*panels["layers"], *panels["training"]],
            ),
        ]
        workspaces.append(
            _workspace(
                *(entity, project, f"{title}, {sweep}" if sweep else title),
                {f"{metric} over sparsity": [*panels["intervals"], *panels["runs"]]}
                | {name: panels[name] for name in ("layers", "training")},
                expr.Or(means, expr.And(*runs)),
                metric,
            )
        )
    report = wr.Report(
        project=project,
        entity=entity,
        title=f"{TITLE} by {metric}",
        description="Made by seven_exp.compare",
        blocks=blocks,
        width="fluid",
    )
    used = [
        artifact_name(record.values)
        for row in rows
        for record in row.records
        if _logged(record.values).get("artifacts", "none") != "none"
    ]
    return Dashboard(workspaces, report, {chart: spec}, tables, run, used)


def publish(dashboard: Dashboard) -> list[str]:
    """Send all objects; those that an earlier call created are updated.

    Returns:
        The addresses of the report and the workspaces.

    Raises:
        ConnectionError: W&B refuses or can't be reached.
    """
    views = publish_views(dashboard)
    with _refusals():
        return [_save_report(dashboard.report), *views]


def publish_views(dashboard: Dashboard) -> list[str]:
    """Send all objects but the report; those that an earlier call created are updated.

    Returns:
        The addresses of the workspaces.

    Raises:
        ConnectionError: W&B refuses or can't be reached.
    """
    with _refusals():
        _send_tables(dashboard)
        _register_charts(dashboard)
        return [*map(_save_workspace, dashboard.workspaces)]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns all of the client's exceptions, which share no base class, into one."""
    try:
        yield
    except Exception as error:
        raise ConnectionError(f"W&B: {one_line(error)}") from error


def _send_tables(dashboard: Dashboard) -> None:
    import wandb

    columns: list[str | int] = [*COLUMNS]
    id = RUN if dashboard.run == "comparison" else f"{RUN}-{_digest(dashboard.run)}"
    with tempfile.TemporaryDirectory() as scratch:
        run = wandb.init(
            entity=dashboard.report.entity,
            project=dashboard.report.project,
            id=id,
            resume="allow",
            name=dashboard.run,
            job_type="comparison",
            dir=scratch,
            settings=limits(),
        )
        run.log({key: wandb.Table(columns, rows) for key, rows in dashboard.tables.items()})
        _use(run, dashboard.used)
        run.finish()


def _use(run: "wandb.Run", artifacts: Sequence[str]) -> None:
    """Declare the artifacts as inputs of the run, as far as the project has them."""
    for name in artifacts:
        try:
            run.use_artifact(f"{name}:latest", "run")
        except Exception as error:  # of no common class, see `_refusals`
            if "not found" not in str(error):
                reason = one_line(error)
                print(f"W&B: the comparison is not linked to its runs ({reason})", file=sys.stderr)
                return


def _register_charts(dashboard: Dashboard) -> None:
    for name, spec in dashboard.charts.items():
        # The client would wait for a server that is out of order without end.
        registering = Thread(target=_register, args=(dashboard, name, spec), daemon=True)
        registering.start()
        registering.join(FINISH_SECONDS)
        if registering.is_alive():
            raise TimeoutError(f"the server did not register the chart {name}")


def _register(dashboard: Dashboard, name: str, spec: Mapping[str, Any]) -> None:
    import wandb

    try:
        wandb.Api().create_custom_chart(
            entity=dashboard.report.entity,
            name=name,
            display_name="Means with intervals",
            spec_type="vega2",
            access="private",
            spec=dict(spec),
        )
    except Exception as error:
        # W&B can't be asked whether a chart exists; for its exceptions see `_refusals`.
        reason = one_line(error)
        if "exist" not in reason:
            print(f"W&B: the chart {name} was not registered ({reason})", file=sys.stderr)


def _save_report(report: "wr.Report") -> str:
    import wandb
    import wandb_workspaces.reports.v2 as wr

    for other in wandb.Api().reports(f"{report.entity}/{report.project}"):
        if other.display_name == report.title and other.url:
            before = wr.Report.from_url(other.url)
            before.blocks, before.description = report.blocks, report.description
            before.width = report.width
            report = before
            break
    return str(report.save().url)


def _workspace(
    entity: str,
    project: str,
    title: str,
    panels: Mapping[str, list[Any]],
    filters: Any,
    metric: str,
) -> "ws.Workspace":
    """A workspace with panels over the runs of one model and data set."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{TITLE}: {title}",
        sections=[ws.Section(name, own, is_open=True) for name, own in panels.items()],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=filters,
            # A group is a point of the curves: its runs differ in their seeds.
            groupby=[expr.Config("pruner"), expr.Config("sparsity")],
            pinned_columns=["run:displayName", *_columns(metric)],
        ),
    )


def _save_workspace(workspace: "ws.Workspace") -> str:
    import wandb_workspaces.workspaces as ws

    view = VIEW + _digest(workspace.name)
    address = f"https://wandb.ai/{workspace.entity}/{workspace.project}?nw={view}"
    try:
        before = ws.Workspace.from_url(address)
    except ValueError:
        workspace._internal_name = f"nw-{view}-v"
    else:
        before.sections, before.settings = workspace.sections, workspace.settings
        before.runset_settings = workspace.runset_settings
        workspace = before
    return str(workspace.save().url)  # type: ignore[no-untyped-call]


def _panels(rows: Sequence[Row], metric: str, table: str, chart: str) -> dict[str, list[Any]]:
    """Panels of one model and data set, by topic."""
    import wandb_workspaces.reports.v2 as wr

    names = [layer["name"] for row in rows for r in row.records for layer in _layers(r.values)]
    layers = [f"layer_sparsity/{name}" for name in dict.fromkeys(names)][:MOST_LAYERS]
    by_pruner: dict[str, Any] = {"groupby": wr.Config("pruner"), "groupby_aggfunc": "mean"}
    return {
        "intervals": [
            wr.CustomChart(
                query={"summaryTable": {"tableKey": table}},
                chart_name=chart,
                chart_fields={column: column for column in COLUMNS},
                chart_strings={"title": f"{metric}: means over seeds, 95% t intervals"},
                layout=wr.Layout(w=24, h=12),
            )
        ],
        "runs": [
            wr.ScatterPlot(
                title=f"{metric} over the sparsity reached",
                # The reached sparsity, not the requested one: a dense run keeps everything.
                x=wr.SummaryMetric("final/sparsity"),
                y=wr.SummaryMetric(f"final/{metric}"),
                layout=wr.Layout(w=12, h=9),
            ),
            wr.ScatterPlot(
                title=f"{metric} over FLOPs",
                x=wr.SummaryMetric("final/flops_sparse"),
                y=wr.SummaryMetric(f"final/{metric}"),
                log_x=True,
                layout=wr.Layout(x=12, w=12, h=9),
            ),
            wr.RunComparer(diff_only=True, layout=wr.Layout(y=9, w=24, h=10)),
        ],
        "layers": [
            wr.BarPlot(
                title="sparsity of each layer at the end",
                metrics=list(layers),
                **by_pruner,
                layout=wr.Layout(w=12, h=12),
            ),
            wr.LinePlot(
                title="sparsity of each layer",
                x="step",
                metric_regex="layer_sparsity/.*",
                **by_pruner,
                layout=wr.Layout(x=12, w=12, h=12),
            ),
        ],
        "training": [
            wr.LinePlot(
                title=name,
                x="step",
                y=[name],
                **by_pruner,
                groupby_rangefunc="minmax",
                layout=wr.Layout(x=8 * place, y=12, w=8, h=8),
            )
            for place, name in enumerate((f"validation/{metric}", "loss", "sparsity"))
        ],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _logged(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a run was logged: the section ``tracker`` of its config."""
    config: Mapping[str, Any] = values.get("config") or {}
    return config.get("tracker") or {}


def _layers(values: Any) -> list[dict[str, Any]]:
    return [layer for layer in values.get("layers") or [] if isinstance(layer.get("name"), str)]


def _columns(metric: str) -> list[str]:
    return [
        "config:pruner.value",
        "config:sparsity.value",
        "config:seed.value",
        f"summary:final/{metric}",
        "summary:final/sparsity",
        "summary:final/kept_weights",
        "summary:final/flops_sparse",
        "summary:final/seconds",
        "summary:run_hash",
    ]


def _table_of_runs(filters: Any, metric: str) -> "wr.Runset":
    import wandb_workspaces.reports.v2 as wr

    columns = ["run:displayName", *_columns(metric)]
    return wr.Runset(
        name="runs",
        filters=filters,
        order=[wr.OrderBy(wr.SummaryMetric(f"final/{metric}"), ascending=False)],
        visible_columns=columns,
        column_order=columns,
        lock_columns=True,
    )


def _cells(row: Row, metric: str) -> list[Any]:
    low, high = row.result.ends(*bounds(metric)) or (row.result.mean,) * 2
    difference = row.difference.estimate.mean if row.difference else None
    reached = [float(record.values.get("sparsity", row.sparsity)) for record in row.records]
    return [
        *(row.method, row.sparsity, sum(reached) / len(reached), row.result.mean, low, high),
        *(row.result.n, difference, row.p, sum(row.lost.values()), row.zeros),
    ]


def _explained(metric: str, baseline: str | None) -> str:
    words = f"{metric}: mean over seeds ± half the 95% Student t interval."
    if baseline is None:
        return words
    return f"{words} Differences are to {baseline}; p is Holm's, * below 0.05."


def _markdown(rows: Sequence[Row], metric: str, baseline: str | None) -> str:
    titles = headings(metric, baseline)
    lines = [titles, ["---"] * len(titles), *(cells(row, metric, baseline) for row in rows)]
    return "\n".join(map(markdown_line, lines))


def _interval_chart(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Vega-Lite: one line per method over sparsity, with the intervals of the table."""
    look = styles(rows)
    colour = {
        "field": "${field:method}",
        "type": "nominal",
        "scale": {"domain": list(look), "range": [style.colour for style in look.values()]},
    }
    reached = {
        "field": "${field:reached}",
        "type": "quantitative",
        "title": "sparsity",
        "axis": {"format": "%"},
        "scale": {"zero": False},
    }
    y = {
        "type": "quantitative",
        "title": metric,
        # Rounded axis ends would show an accuracy above 100%.
        "scale": {"zero": False, "nice": not math.isfinite(bounds(metric)[1])},
        "axis": {"format": "%" if in_percent(metric) else "g"},
    }
    mean = {**y, "field": "${field:mean}"}
    tooltip = [{"field": f"${{field:{column}}}"} for column in COLUMNS]
    ends = {"y": {**y, "field": "${field:low}"}, "y2": {"field": "${field:high}"}}
    shape = {"field": "${field:method}", "type": "nominal"}
    dense, pruned = (
        {"filter": {"field": "${field:sparsity}", **condition}}
        for condition in ({"lte": 0}, {"gt": 0})
    )
    point = {"type": "point", "filled": True, "size": 50}
    layers = [
        (dense, {"type": "rule", "strokeDash": [2, 4]}, {"y": mean, "tooltip": tooltip}),
        (pruned, "line", {"x": reached, "y": mean}),
        (pruned, point, {"x": reached, "y": mean, "shape": shape, "tooltip": tooltip}),
        (pruned, "rule", {"x": reached, **ends}),
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": "${string:title}",
        "data": {"name": "wandb"},
        "encoding": {"color": colour},
        "layer": [
            {"transform": [chosen], "mark": mark, "encoding": encoding}
            for chosen, mark, encoding in layers
        ],
    }
