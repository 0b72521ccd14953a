"""The report as a W&B Report: the same text and numbers, with W&B's live panels instead of figures."""

import importlib
from typing import Any

import pandas as pd

from hiddenweights.analysis.report import CLAIM_COLUMNS, TITLE, Report, markdown_table
from hiddenweights.errors import UserError


def publish(report: Report, path: str, *, draft: bool = True) -> str:
    """Save the report in the project ``entity/project`` and return its address.

    Raises `UserError` if the package `wandb-workspaces` is missing, or if W&B refuses.
    """
    entity, slash, project = path.removeprefix("wandb:").partition("/")
    if not (entity and slash and project):
        raise UserError(f"--wandb: {path!r} is not of the form ENTITY/PROJECT")
    try:
        reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise UserError("--wandb: needs wandb-workspaces: pip install 'hiddenweights[report]'") from error
    made = reports.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description=report.lead,
        blocks=_blocks(report, entity, project, reports),
    )
    try:
        made.save(draft=draft)
    except Exception as error:  # the library raises many types, including plain Exception
        raise UserError(f"--wandb: {path!r} was not saved: {str(error).splitlines()[0]}") from error
    return str(made.url)


def _blocks(report: Report, entity: str, project: str, reports: Any) -> list[Any]:
    blocks: list[Any] = [reports.P(report.lead), reports.H1("Figures")]
    for drawing in report.drawings:
        runs = reports.Runset(entity=entity, project=project, name=drawing.spec.name, query=drawing.spec.name)
        x = "model.k" if drawing.spec.x == "kept" else drawing.spec.x
        across = reports.SummaryMetric(x) if x == "weights_kept" else reports.Config(x)
        panels = [
            reports.ScatterPlot(title=drawing.spec.title, x=across, y=reports.SummaryMetric("test_accuracy")),
            reports.LinePlot(title="test accuracy by epoch", x="epoch", y=["test_accuracy"]),
        ]
        points = drawing.drawn[["panel", "curve", "kind", "x", "mean", "sd", "n", "low", "high"]]
        blocks += [
            reports.H2(drawing.spec.title),
            reports.MarkdownBlock(text="\n".join(f"- {line}" for line in (*drawing.lines, drawing.note))),
            reports.PanelGrid(runsets=[runs], panels=panels),
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
