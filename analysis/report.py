"""One report of all that the runs show: a self-contained HTML page, and the same as Markdown."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

import matplotlib as mpl
import pandas as pd

from hiddenweights.analysis import aggregate, claims, figures, specs, summary
from hiddenweights.analysis.paper import published
from hiddenweights.analysis.table import FINISHED, Table
from hiddenweights.errors import UserError

TITLE = "Hidden weights: what random networks already contain"
SHOWN = {
    "cell": "cell",
    "name": "name",
    "sweeps": "sweeps",
    "state": "state",
    "model.arch": "network",
    "model.width": "width",
    "model.method": "method",
    "model.distribution": "distribution",
    "model.k": "k",
    "seed": "seed",
    "data.name": "data",
    "train.epochs": "epochs",
    "test_accuracy": "test accuracy",
    "best_validation_accuracy": "best validation accuracy",
    "kept": "kept",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: its numbers, the note under it, and what it comes to."""

    spec: specs.Spec
    drawn: pd.DataFrame
    note: str
    lines: list[str]


@dataclass(frozen=True)
class Report:
    """All that a report shows; nothing is computed while it is written."""

    source: str
    drawings: list[Drawing]
    skipped: dict[str, str]
    """Figures that the table cannot make, with the reason."""
    verdicts: pd.DataFrame
    facts: pd.DataFrame
    cells: pd.DataFrame
    left_out: pd.DataFrame

    @property
    def lead(self) -> str:
        """The report in two sentences."""
        finished = int((self.cells["state"] == FINISHED).sum())
        counts = self.verdicts["verdict"].value_counts()
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        hours = self.cells["seconds"].sum() / 3600
        return (
            f"{finished} finished cells from {self.source}, {hours:.1f} hours of training. "
            f"Verdicts on the paper's claims: {verdicts}."
        )


def collect(table: Table, source: str, *, mixed: bool = False) -> Report:
    """Everything the report shows, measured once."""
    drawings, skipped = [], {}
    for spec in specs.FIGURES.values():
        try:
            points = specs.points(table, spec)
            ours = aggregate.curves(points, mixed=mixed)
        except UserError as error:
            skipped[spec.name] = str(error)
            continue
        drawn = pd.concat([ours, published(spec.name, points)], ignore_index=True)
        lines = summary.lines(points, ours, table, spec)
        drawings.append(Drawing(spec, drawn, summary.note(points, drawn), lines))
    columns = {name: label for name, label in SHOWN.items() if name in table.cells}
    return Report(
        source=source,
        drawings=drawings,
        skipped=skipped,
        verdicts=claims.verdicts(table),
        facts=facts(table),
        cells=table.cells[list(columns)].rename(columns=columns),
        left_out=table.left_out,
    )


def facts(table: Table) -> pd.DataFrame:
    """How it was run: one row a setting, device and set of versions, with cells and hours."""
    cells = table.cells[table.cells["state"] == FINISHED]
    versions = [str(name) for name in cells if str(name).startswith("versions.")]
    rows = cells[versions].rename(columns=lambda name: name.removeprefix("versions.")).to_dict("records")
    words = [", ".join(f"{name} {value}" for name, value in row.items() if pd.notna(value)) for row in rows]
    settings = cells[list(claims.SETTING)].apply(claims.setting, axis=1)
    by = {"setting": settings, "device": cells["device"].fillna(""), "versions": words}
    groups = pd.DataFrame({**by, "seconds": cells["seconds"]}).groupby(list(by), sort=True)
    found = groups.agg(cells=("seconds", "size"), hours=("seconds", lambda seconds: seconds.sum() / 3600))
    return found.reset_index()


def as_html(report: Report) -> str:
    """The page; it needs no network to open."""
    template = Template((resources.files(__package__) / "report.html").read_text())
    shown = report.verdicts[["verdict", "says", "setting", "effect", "mean", "low", "high", "n", "rule"]]
    return template.substitute(
        title=html.escape(TITLE),
        lead=html.escape(report.lead),
        figures="\n".join(map(_figure_html, report.drawings)) + _skipped_html(report),
        claims_note=html.escape(
            "Differences in percentage points of test accuracy, paired over shared seeds, with 95% t "
            "intervals; of several comparisons the one furthest from supporting the claim is shown."
        ),
        claims=_table(shown, "claim-table", verdict=True),
        facts=_table(report.facts, "fact-table"),
        left_out=_table(report.left_out, "left-out-table") if len(report.left_out) else "<p>Nothing.</p>",
        cells=_table(report.cells, "cell-table"),
    )


def _figure_html(drawing: Drawing) -> str:
    lines = "<br>".join(map(html.escape, drawing.lines))
    data = _table(drawing.drawn.drop(columns=["full", "tag"]), f"data-{drawing.spec.name}")
    return (
        f'<figure id="{drawing.spec.name}"><h3>{html.escape(drawing.spec.title)}</h3>'
        f'<div class="scroll">{svg(drawing)}</div><figcaption>{lines}</figcaption>'
        f'<details class="screen"><summary>Data</summary><div class="scroll">{data}</div></details></figure>'
    )


def svg(drawing: Drawing) -> str:
    """The figure as an SVG element, text as outlines: it looks the same on every device."""
    buffer = io.StringIO()
    with mpl.rc_context({**figures.RC, "svg.fonttype": "path", "svg.hashsalt": drawing.spec.name}):
        figure = figures.render(drawing.drawn, drawing.spec, drawing.note)
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    label = html.escape(drawing.spec.title, quote=True)
    points = 72 * figure.get_size_inches()[0]  # narrower than this it would be unreadable: it scrolls
    width = f"min-width: {0.8 * points:.0f}pt; max-width: {1.5 * points:.0f}pt"
    attributes = f'role="img" aria-label="{label}" style="{width}"'
    return text[text.index("<svg") :].replace("<svg", f"<svg {attributes}", 1)


def _skipped_html(report: Report) -> str:
    if not report.skipped:
        return ""
    items = "".join(f"<li>{html.escape(reason)}</li>" for reason in report.skipped.values())
    summary_ = f"<summary>{len(report.skipped)} figures not drawn</summary>"
    return f'<details class="screen">{summary_}<ul>{items}</ul></details>'


def _table(frame: pd.DataFrame, name: str, *, verdict: bool = False) -> str:
    numbers = [bool(pd.api.types.is_numeric_dtype(frame[column])) for column in frame]
    head = "".join(
        f'<th scope="col"{_number(n)}><button type="button">{html.escape(str(column))}</button></th>'
        for column, n in zip(frame, numbers, strict=True)
    )
    body = []
    for row in frame.itertuples(index=False):
        cells = [
            f"<td{_number(n)}>{html.escape(_text(value))}</td>" for value, n in zip(row, numbers, strict=True)
        ]
        if verdict:
            cells[0] = f'<td class="verdict {str(row[0]).split()[0]}">{html.escape(str(row[0]))}</td>'
        body.append("<tr>" + "".join(cells) + "</tr>")
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<table class="sortable" id="{name}">{table}</table>'


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_markdown(report: Report) -> str:
    """The same as Markdown; figures are the PNG files of the same folder."""
    parts = [f"# {TITLE}", report.lead, "## Figures"]
    for drawing in report.drawings:
        parts += [
            f"### {drawing.spec.title}",
            f"![{drawing.spec.title}]({drawing.spec.name}.png)",
            "\n".join(f"- {line}" for line in drawing.lines),
            f"{drawing.note}. Data: [{drawing.spec.name}.csv]({drawing.spec.name}.csv)",
        ]
    shown = report.verdicts[["verdict", "says", "setting", "effect", "mean", "low", "high", "n", "rule"]]
    parts += ["## Claims", markdown_table(shown), "## How it was run", markdown_table(report.facts)]
    left_out = report.left_out[["cell", "name", "sweeps", "reason"]]
    parts += ["## What was left out", markdown_table(left_out) if len(left_out) else "Nothing."]
    return "\n\n".join([*parts, "## Cells", "All cells: [cells.csv](cells.csv)"]) + "\n"


def markdown_table(frame: pd.DataFrame) -> str:
    """A table in Markdown."""

    def line(values: Sequence[Any]) -> str:
        return (
            "| " + " | ".join(_text(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"
        )

    rows = [line(row) for row in frame.itertuples(index=False)]
    return "\n".join([line(list(frame)), line(["---"] * len(frame.columns)), *rows])
