"""The report in a W&B project: a W&B Report with the same text and numbers, and a view of the project's page.

Both show W&B's own charts, which stay live, instead of our figures.
"""

import importlib
from typing import Any

import pandas as pd

from hiddenweights.analysis.report import CLAIM_COLUMNS, TITLE, Drawing, Report, markdown_table
from hiddenweights.errors import UserError

# W&B shows the mean of the runs that agree in these as one point or line: all seeds.
GROUPS = (
    "model.arch", "model.width", "model.method", "model.distribution", "model.k",
    "data.name", "data.protocol", "train.epochs", "optim.optimizer", "optim.lr",
)  # fmt: skip
# Columns of the table of runs. W&B keeps the nested config's `model.k` as `model.value.k`.
COLUMNS = (
    "summary:test_accuracy",
    "summary:kept",
    *(f"config:{name.replace('.', '.value.', 1)}" for name in GROUPS),
)


def publish(report: Report, path: str) -> tuple[str, str]:
    """Save a draft of a report and a view in the project ``entity/project``; return their addresses.

    Every call saves new ones. Raises `UserError` if the package `wandb-workspaces` is missing, or if W&B
    refuses.
    """
    entity, project = place(path)
    try:
        reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
        workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")
        expr: Any = importlib.import_module("wandb_workspaces.expr")
    except ImportError as error:
        raise UserError("--wandb: needs wandb-workspaces: pip install 'hiddenweights[report]'") from error
    made = reports.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description=report.lead,
        blocks=_blocks(report, entity, project, reports, expr),
    )
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name="Hidden weights",
        sections=[
            workspaces.Section(
                name=drawing.spec.title,
                panels=_panels(drawing, reports),
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(columns=2, rows=1),
            )
            for drawing in report.drawings
        ],
        settings=workspaces.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            groupby=[expr.Config(name) for name in GROUPS], pinned_columns=list(COLUMNS)
        ),
    )
    try:
        made.save(draft=True)
        view.save()
    except Exception as error:  # the library raises many types, including plain Exception
        raise UserError(f"--wandb: {path!r} was not saved: {str(error).splitlines()[0]}") from error
    return str(made.url), str(view.url)


def place(path: str) -> tuple[str, str]:
    """Entity and project of ``entity/project``. Raises `UserError` for anything else."""
    entity, slash, project = path.removeprefix("wandb:").partition("/")
    if not (entity and slash and project):
        raise UserError(f"--wandb: {path!r} is not of the form ENTITY/PROJECT")
    return entity, project


def _panels(drawing: Drawing, reports: Any) -> list[Any]:
    """W&B's charts of a figure: accuracy over its x axis, and by epoch."""
    x = "model.k" if drawing.spec.x == "kept" else drawing.spec.x
    across = reports.SummaryMetric(x) if x == "weights_kept" else reports.Config(x)
    return [
        reports.ScatterPlot(title=drawing.spec.title, x=across, y=reports.SummaryMetric(drawing.spec.y)),
        reports.LinePlot(title="test accuracy by epoch", x="epoch", y=["test_accuracy"]),
    ]


def _blocks(report: Report, entity: str, project: str, reports: Any, expr: Any) -> list[Any]:
    blocks: list[Any] = [reports.P(report.lead), reports.H1("Figures")]
    for drawing in report.drawings:
        runs = reports.Runset(
            entity=entity,
            project=project,
            name=drawing.spec.name,
            filters=[expr.Tags().isin([drawing.spec.name])],  # a run is tagged with its sweeps
            groupby=[f"config.{name}" for name in GROUPS],
        )
        points = drawing.drawn[["panel", "curve", "kind", "x", "mean", "sd", "n", "low", "high"]]
        blocks += [
            reports.H2(drawing.spec.title),
            reports.MarkdownBlock(text="\n".join(f"- {line}" for line in (*drawing.lines, drawing.note))),
            reports.PanelGrid(runsets=[runs], panels=_panels(drawing, reports)),
            reports.MarkdownBlock(text=markdown_table(points)),
        ]
    shown = report.verdicts[CLAIM_COLUMNS]
    parts: dict[str, pd.DataFrame] = {
        "Claims": shown,
        "How it was run": report.facts,
        "What was left out": report.left_out[["cell", "name", "sweeps", "reason"]],
    }
    for title, rows in parts.items():
        words = markdown_table(rows) if len(rows) else "Nothing."
        blocks += [reports.H1(title), reports.MarkdownBlock(text=words)]
    return blocks
