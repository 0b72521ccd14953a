"""The content of a report, computed once, and its Markdown form. The package `page` writes it as HTML."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from hiddenweights.analysis import (
    aggregate,
    claims,
    experiments,
    figures,
    forest,
    masks,
    specs,
    summary,
    training,
)
from hiddenweights.analysis.layout import layout
from hiddenweights.analysis.page.reproduce import command
from hiddenweights.analysis.published import published
from hiddenweights.analysis.table import FINISHED, METRIC, Table
from hiddenweights.claims import registry
from hiddenweights.claims.contrasts import SETTING
from hiddenweights.errors import UserError

MOST_VALUES = 8  # of a setting, in the first screen
TITLE = "Hidden weights: what random networks already contain"
CLAIM_COLUMNS = [
    "verdict", "says", "setting", "lacks", "effect", "mean", "low", "high", "margin", "n", "rule",
]  # fmt: skip
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
    """A figure of the report: its numbers, the note under it, and its result in one line per panel."""

    spec: specs.Spec
    drawn: pd.DataFrame
    note: str
    lines: list[str]
    best: list[summary.Best]
    epochs: pd.DataFrame
    """Training curves, see `training.epoch_means`."""
    layers: pd.DataFrame
    """The fraction that each layer keeps, see `training.layer_means`."""
    overlaps: pd.DataFrame
    """The overlap of masks of different seeds, see `masks.overlaps`."""
    filters: list[masks.Filters]


@dataclass(frozen=True)
class Report:
    """The content of a report. Writing it as HTML or Markdown computes nothing."""

    source: str
    drawings: list[Drawing]
    skipped: dict[str, str]
    """Figures that cannot be drawn from the table, with the reason."""
    measured: list[claims.Measured]
    verdicts: pd.DataFrame
    """One row per entry of `measured`."""
    facts: pd.DataFrame
    cells: pd.DataFrame
    left_out: pd.DataFrame
    price: float | None = None
    """Dollars per hour of training, if the cost is to be shown."""

    @property
    def finished(self) -> int:
        """The number of finished cells."""
        return int((self.cells["state"] == FINISHED).sum())

    @property
    def seconds(self) -> float:
        """The training time of all cells together."""
        return float(self.cells["seconds"].sum())

    @property
    def counts(self) -> dict[str, int]:
        """How many claims got each verdict; claims out of scope are not counted."""
        counts = self.verdicts["verdict"].value_counts().to_dict()
        return {verdict: int(counts[verdict]) for verdict in forest.COLORS if verdict in counts}

    def not_drawn(self) -> list[str]:
        """The skipped figures, one line per reason."""
        names: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            names.setdefault(reason, []).append(name)
        return [f"{reason}: {', '.join(figures)}" for reason, figures in names.items()]

    @property
    def best(self) -> pd.DataFrame:
        """The result of each figure: one row per panel, accuracies in per cent."""
        rows = [
            {
                "network": one.panel,
                "figure": drawing.spec.title,
                "best subnetwork (%)": f"{one.accuracy:.1f}",
                "of": f"{one.curve}, {one.place}{one.chosen}; {one.interval}",
                "trained (%)": "; ".join(f"{name}: {mean:.1f}" for name, mean in one.trained.items()),
            }
            for drawing in self.drawings
            for one in drawing.best
        ]
        return pd.DataFrame(rows)

    @property
    def ran(self) -> str:
        """The values of the main settings of the finished cells."""
        cells = self.cells[self.cells["state"] == FINISHED]
        parts = []
        for name, label in (
            ("network", "Networks"),
            ("data", "data"),
            ("method", "methods"),
            ("epochs", "epochs"),
            ("seed", "seeds"),
        ):
            values = [
                f"{value:g}" if isinstance(value, float) else str(value)
                for value in sorted(cells[name].unique())
            ]
            shown = ", ".join(values[:MOST_VALUES]) + (", ..." if len(values) > MOST_VALUES else "")
            parts.append(f"{label}: {shown}")
        return "; ".join(parts) + "."

    @property
    def lead(self) -> str:
        """The report in two sentences."""
        verdicts = summary.verdict_counts(self.verdicts)
        return (
            f"{self.finished} finished cells from {self.source}, {duration(self.seconds)} of training. "
            f"Verdicts {verdicts}."
        )


def duration(seconds: float) -> str:
    """Seconds in a readable unit: ``48 seconds``, ``14 minutes``, ``2.3 hours``."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def collect(table: Table, source: str, *, mixed: bool = False, price: float | None = None) -> Report:
    """The report on the cells of `table`."""
    drawings, skipped = [], {}
    finished = table.finished_sweeps()
    for name in (*experiments.FIGURES, *sorted(finished - experiments.FIGURES.keys())):
        if name not in finished:
            skipped[name] = "no finished cell; train some with hiddenweights sweeps launch NAME"
            continue
        try:
            # The axes of a sweep without a declared figure are chosen from the fields that vary.
            spec = experiments.FIGURES.get(name) or layout(name, table)
            points = specs.points(table, spec)
            ours = aggregate.curves(points, mixed=mixed)
        except UserError as error:
            skipped[name] = str(error).removeprefix(f"figure {name}: ")
            continue
        drawn = pd.concat([ours, published(spec.name, points)], ignore_index=True)
        best = summary.best(points, ours, spec) if spec.y == METRIC else []
        lines = [*map(str, best), *summary.remarks(points, table)]
        epochs, layers = training.epoch_means(points, table), training.layer_means(points, table)
        seen = masks.look(points, table)
        note = summary.note(points, drawn, spec)
        drawings.append(Drawing(spec, drawn, note, lines, best, epochs, layers, *seen))
    columns = {name: label for name, label in SHOWN.items() if name in table.cells}
    measured = claims.measure(table, registry.registered())
    return Report(
        source=source,
        drawings=drawings,
        skipped=skipped,
        measured=measured,
        verdicts=claims.rows(measured),
        facts=facts(table),
        cells=table.cells[list(columns)]
        .rename(columns=columns)
        .assign(command=table.cells.apply(command, axis=1)),
        left_out=table.left_out,
        price=price,
    )


def facts(table: Table) -> pd.DataFrame:
    """How the cells were trained: one row per setting, device and set of versions, with cells and hours."""
    cells = table.cells[table.cells["state"] == FINISHED]
    versions = [str(name) for name in cells if str(name).startswith("versions.")]
    rows = cells[versions].rename(columns=lambda name: name.removeprefix("versions.")).to_dict("records")
    words = [", ".join(f"{name} {value}" for name, value in row.items() if pd.notna(value)) for row in rows]
    settings = cells[list(SETTING)].apply(claims.setting, axis=1)
    by = {"setting": settings, "device": cells["device"].fillna(""), "versions": words}
    groups = pd.DataFrame({**by, "seconds": cells["seconds"]}).groupby(list(by), sort=True)
    found = groups.agg(cells=("seconds", "size"), hours=("seconds", lambda seconds: seconds.sum() / 3600))
    return found.reset_index()


def svg(drawing: Drawing) -> str:
    """The figure as an SVG element."""
    figure = figures.render(drawing.drawn, drawing.spec, drawing.note)
    return as_svg(figure, drawing.spec.name, drawing.spec.title)


def as_svg(figure: Figure, name: str, title: str) -> str:
    """A figure as an SVG element. Text is drawn as outlines, so that it looks the same on every device."""
    buffer = io.StringIO()
    with mpl.rc_context({**figures.RC, "svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    label = html.escape(title, quote=True)
    points = 72 * figure.get_size_inches()[0]  # a narrower figure would be unreadable; it scrolls
    width = f"min-width: {0.8 * points:.0f}pt; max-width: {1.5 * points:.0f}pt"
    attributes = f'role="img" aria-label="{label}" style="{width}"'
    return text[text.index("<svg") :].replace("<svg", f"<svg {attributes}", 1)


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_markdown(report: Report) -> str:
    """The report as Markdown. Its figures are PNG files in the same folder."""
    parts = [f"# {TITLE}", report.lead]
    if forest.drawable(report.measured):
        parts += [f"## {forest.TITLE}", f"![{forest.TITLE}](claims.png)"]
    parts += ["## Figures"]
    for drawing in report.drawings:
        parts += [
            f"### {drawing.spec.title}",
            f"![{drawing.spec.title}]({drawing.spec.file}.png)",
            "\n".join(f"- {line}" for line in drawing.lines),
            f"{drawing.note}. Data: [{drawing.spec.file}.csv]({drawing.spec.file}.csv)",
        ]
    shown = report.verdicts[CLAIM_COLUMNS]
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
