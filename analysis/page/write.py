"""A `Report` as one self-contained HTML file: text, static figures, charts, and the libraries they need."""

import base64
import functools
import html
import io
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import vl_convert
from matplotlib import image
from numpy.typing import NDArray

from hiddenweights.analysis import claims, forest, masks
from hiddenweights.analysis.aggregate import cut
from hiddenweights.analysis.figures import looks
from hiddenweights.analysis.page import charts
from hiddenweights.analysis.report import CLAIM_COLUMNS, TITLE, Drawing, Report, as_svg, duration, svg
from hiddenweights.analysis.training import METRICS

VEGA_LITE = "6.4"
_NO_TICKETS = "The source has no tickets of these cells. They are in the store of a sweep."


def as_html(report: Report) -> str:
    """The page. Without scripts the browser shows static pictures in place of the interactive charts."""
    files = resources.files(__package__)
    text = Template((files / "page.html").read_text())
    inside = report.verdicts["verdict"] != claims.OUT_OF_SCOPE
    shown = report.verdicts[CLAIM_COLUMNS]
    return text.substitute(
        title=html.escape(TITLE),
        style=(files / "page.css").read_text(),
        lead=html.escape(report.lead),
        tiles=_tiles(report),
        ran=html.escape(report.ran),
        best=table(report.best, "best-table", small={"network": "figure", "best subnetwork (%)": "of"}),
        figures="\n".join(map(_figure, report.drawings)),
        skipped=_folded(f"{len(report.skipped)} figures not drawn", _list(report.not_drawn())),
        claims=_forest(report) + _claims(shown[inside]),
        outside=_folded(
            f"{(~inside).sum()} claims are out of the scope of these runs", _list(_outside(shown[~inside]))
        ),
        training=_each(_training, report.drawings) or "<p>No epochs were recorded.</p>",
        masks=_each(_layers, report.drawings) or "<p>No record has values per layer.</p>",
        overlaps=_each(_overlaps, report.drawings) or f"<p>{_NO_TICKETS}</p>",
        filters=_each(_filters, report.drawings) or f"<p>{_NO_TICKETS}</p>",
        facts=table(report.facts, "fact-table"),
        left_out=_folded(f"{len(report.left_out)} runs", table(report.left_out, "left-out-table"))
        or "<p>Nothing.</p>",
        cells=table(report.cells, "cell-table"),
        library=_library(),
        script=(files / "page.js").read_text(),
    )


def _each(part: Callable[[Drawing], str], drawings: Iterable[Drawing]) -> str:
    """The `part` of all drawings that have one."""
    return "\n".join(filter(None, map(part, drawings)))


def waiting(why: str) -> str:
    """The page while there is nothing to show yet, with the reason."""
    title, style = html.escape(TITLE), (resources.files(__package__) / "page.css").read_text()
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style></head><body><h1>{title}</h1><p>Waiting for the first finished cell.</p>"
        f'<p class="soft">{html.escape(why)}</p></body></html>'
    )


@functools.cache  # bundling takes seconds, and `report --watch` writes the page many times
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, escaped so that it cannot close its script element."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return bundle.replace("</script", "<\\/script")


def _tiles(report: Report) -> str:
    failed = int((report.cells["state"] == "failed").sum())
    tiles = [
        (f"{report.finished:,}", "finished cells"),
        (f"{failed:,}", "failed"),
        (duration(report.seconds), "of training"),
    ]
    if report.price is not None:
        tiles.append((f"${report.price * report.seconds / 3600:,.2f}", f"at ${report.price:g} per hour"))
    tiles += [(str(count), verdict) for verdict, count in report.counts.items()]
    return "".join(f"<div><b>{html.escape(number)}</b> {html.escape(word)}</div>" for number, word in tiles)


def _figure(drawing: Drawing) -> str:
    curves = list(dict.fromkeys(drawing.drawn["curve"]))
    ends = cut(drawing.drawn, drawing.spec.y_scale)
    values = ends[["mean", "low", "high"]]  # all panels share one y axis
    chart = functools.partial(charts.accuracy_chart, y_domain=(values.min().min(), values.max().max()))
    panels = _panels(drawing.drawn, drawing, chart, "accuracy", curves)
    data = table(drawing.drawn.drop(columns=["full", "tag"]), f"data-{drawing.spec.name}")
    lines = "<br>".join(map(html.escape, [*drawing.lines, drawing.note]))
    return (
        f'<figure id="{drawing.spec.name}">{_title(drawing)}{_legend(curves)}{panels}'
        f'<div class="scroll static">{svg(drawing)}</div><figcaption>{lines}</figcaption>'
        f"{_folded('Data', data)}</figure>"
    )


def _title(drawing: Drawing) -> str:
    return f"<h3>{html.escape(drawing.spec.title)}</h3>"


def _training(drawing: Drawing) -> str:
    shown = [name for name in METRICS if name in drawing.epochs]
    labels = {name: METRICS[name][0] for name in shown}
    return _chosen(drawing, drawing.epochs, charts.epoch_chart, "epochs", labels)


def _layers(drawing: Drawing) -> str:
    labels = {"kept": "weights kept (%)", "churn": "mask bits changed in the last epoch (%)"}
    shown = {name: label for name, label in labels.items() if name in drawing.layers}
    return _chosen(drawing, drawing.layers, charts.layer_chart, "layers", shown)


def _overlaps(drawing: Drawing) -> str:
    """The overlap of masks of different seeds, for the layer that the reader chooses."""
    if drawing.overlaps.empty:
        return ""
    rows = drawing.overlaps
    whole = rows[rows["layer"] == masks.ALL]
    within = int(whole["both"].between(whole["low"], whole["high"]).sum())
    said = f"All layers together: {within} of {len(whole)} points lie within the range of random masks."
    names = {str(name): str(name) for name in [masks.ALL, *dict.fromkeys(rows["layer"])]}
    rows = pd.concat([whole, rows[rows["layer"] != masks.ALL]])
    drawn = _chosen(drawing, rows, charts.overlap_chart, "overlaps", names)
    return drawn.replace("</figure>", f"<figcaption>{said}</figcaption></figure>")


def _filters(drawing: Drawing) -> str:
    """The first layers as pictures, without and with their masks."""
    parts = []
    for one in drawing.filters:
        count = min(len(one.weights), 32)
        words = (
            f"{one.panel}: {count} of {len(one.weights)} filters of {one.layer}, cell {one.cell} ({one.name})"
        )
        parts.append(
            f'<figure class="pair">{_picture(one.weights, "random weights")}'
            f"{_picture(one.masked, 'with the mask')}<figcaption>{html.escape(words)}</figcaption></figure>"
        )
    return (_title(drawing) + "".join(parts)) if parts else ""


def _picture(filters: NDArray[np.float32], words: str) -> str:
    pixels = masks.mosaic(filters, columns=8, rows=4)
    gap = np.isnan(pixels).any(axis=2)
    shown = np.dstack([np.nan_to_num(pixels), ~gap])
    buffer = io.BytesIO()
    image.imsave(buffer, shown, format="png", metadata={"Software": ""})
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<div><h4>{words}</h4><img class="pixels" alt="{words}" {size} src="{source}"></div>'


def _chosen(
    drawing: Drawing,
    rows: pd.DataFrame,
    chart: Callable[..., charts.Chart],
    kind: str,
    labels: dict[str, str],
) -> str:
    """Charts of one drawing. The reader chooses the column to show. Empty if there are no rows."""
    if rows.empty or not labels:
        return ""
    curves = list(dict.fromkeys(rows["curve"]))
    options = "".join(
        f'<option value="{html.escape(name, quote=True)}">{html.escape(label)}</option>'
        for name, label in labels.items()
    )
    choice = f'<label class="screen">Show: <select data-parameter="metric">{options}</select></label>'
    panels = _panels(rows, drawing, chart, kind, curves)
    stills = _stills(rows, drawing, chart, curves, next(iter(labels.values())))
    return f"<figure>{_title(drawing)}{choice}{_legend(curves)}{panels}{stills}</figure>"


def _stills(
    rows: pd.DataFrame,
    drawing: Drawing,
    chart: Callable[..., charts.Chart],
    curves: Sequence[str],
    label: str,
) -> str:
    """Pictures of the charts with the first column, `label`: for print and for browsers without scripts."""
    colours = looks(curves)
    key = " ".join(
        f'<span><i style="background:{colours[curve].color}"></i>{html.escape(curve)}</span>'
        for curve in curves
    )
    parts = []
    for panel, group in rows.groupby("panel", sort=False):
        title = f"<h4>{html.escape(str(panel))}</h4>" if panel else ""
        words = html.escape(f"{drawing.spec.title}: {panel}, {label}", quote=True)
        source = _still(json.dumps(chart(group, drawing.spec, curves)))
        parts.append(f'<div class="panel">{title}<img alt="{words}" src="{source}"></div>')
    return (
        f'<div class="static"><p class="key">{html.escape(label)}: {key}</p>'
        f'<div class="stills">{"".join(parts)}</div></div>'
    )


@functools.lru_cache(1000)  # drawing takes time, and a page that is kept current is written again and again
def _still(chart: str) -> str:
    """The chart as the source of a picture of a fixed size."""
    fixed = json.loads(chart) | {"width": 320, "height": 200, "autosize": "pad"}
    fixed["layer"] = [layer for layer in fixed["layer"] if layer["mark"].get("opacity") != 0]
    drawn: str = vl_convert.vegalite_to_svg(fixed, vl_version=VEGA_LITE)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()


def _panels(
    rows: pd.DataFrame,
    drawing: Drawing,
    chart: Callable[..., charts.Chart],
    kind: str,
    curves: Sequence[str],
) -> str:
    """One chart per panel: an empty element for the script to draw into, and the chart's specification."""
    parts = []
    for i, (panel, group) in enumerate(rows.groupby("panel", sort=False)):
        place = f"{drawing.spec.name}-{kind}-{i}"
        title = f"<h4>{html.escape(str(panel))}</h4>" if panel else ""
        label = html.escape(f"{drawing.spec.title}: {panel}", quote=True)
        chart_ = f'<div class="chart" role="img" aria-label="{label}" data-of="{place}"></div>'
        data = _json(chart(group, drawing.spec, curves))
        script = f'<script type="application/json" id="{place}">{data}</script>'
        parts.append(f'<div class="panel">{title}{chart_}{script}</div>')
    return f'<div class="panels">{"".join(parts)}</div>'


def _legend(curves: Sequence[str]) -> str:
    """A button per curve, in the colour of the curve, that shows or hides it."""
    colours = looks(curves)
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-curve="{html.escape(curve, quote=True)}">'
        f'<i style="background:{colours[curve].color}"></i>{html.escape(curve)}</button>'
        for curve in curves
    )
    return f'<div class="legend" role="group" aria-label="Curves shown">{buttons}</div>'


def _forest(report: Report) -> str:
    if not forest.drawable(report.measured):
        return ""
    drawn = as_svg(forest.forest(report.measured), "claims", forest.TITLE)
    return f'<figure id="forest"><div class="scroll">{drawn}</div></figure>'


def _claims(shown: pd.DataFrame) -> str:
    """One row per claim: verdict, statement, rule, setting, and the comparison that decides it."""
    if shown.empty:
        return "<p>None of the paper's claims is about these runs.</p>"
    rows = pd.DataFrame(
        {
            "verdict": shown["verdict"],
            "claim": shown["says"],
            "rule": shown["rule"],
            "setting": shown["setting"],
            "lacks for the paper": shown["lacks"],
            "comparison": shown["effect"],
            "difference": [_difference(row) for row in shown.to_dict("records")],
            "must be above": ["" if pd.isna(margin) else f"{margin:+g}" for margin in shown["margin"]],
            "n": shown["n"],
        }
    )
    small = {"claim": "rule", "setting": "lacks for the paper"}
    content = table(rows, "claim-table", verdict=True, small=small)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Claims">{content}</div>'


def _difference(row: dict[Hashable, Any]) -> str:
    """``+1.2 (0.3 to 2.1)``, without an interval if there is none."""
    if pd.isna(row["mean"]):
        return ""
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:+.1f} to {row['high']:+.1f})"
    return f"{row['mean']:+.1f}{interval}"


def _outside(shown: pd.DataFrame) -> list[str]:
    return [f"{row.says} ({row.rule})" for row in shown.itertuples()]


def _list(items: Iterable[str]) -> str:
    entries = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<ul>{entries}</ul>" if entries else ""


def _folded(title: str, content: str) -> str:
    """Content that one click unfolds; empty if there is no content."""
    if not content:
        return ""
    summary = f"<summary>{html.escape(title)}</summary>"
    return f'<details class="screen">{summary}<div class="scroll">{content}</div></details>'


def table(
    frame: pd.DataFrame, name: str, *, verdict: bool = False, small: Mapping[str, str] | None = None
) -> str:
    """A table. A click on a column's head sorts it; numbers are aligned to the right.

    `small` maps a column to another one that is shown in small print under it instead of separately.
    With `verdict`, the first column gets a symbol for its verdict.
    """
    if frame.empty:
        return ""
    under = dict(small or {})
    columns = [column for column in frame if column not in under.values()]
    numbers = {column: bool(pd.api.types.is_numeric_dtype(frame[column])) for column in columns}
    head = "".join(
        f'<th scope="col"{_class(numbers[column])}><button type="button">{html.escape(str(column))}</button>'
        for column in columns
    )
    body = []
    for row in frame.to_dict("records"):
        cells = []
        for i, column in enumerate(columns):
            content = _cell(row[column])
            if note := str(row[under[column]]) if column in under else "":
                content += f"<small>{html.escape(note)}</small>"
            sign = f' class="verdict {str(row[column]).split()[0]}"' if verdict and not i else ""
            cells.append(f"<td{sign or _class(numbers[column])}>{content}</td>")
        body.append("<tr>" + "".join(cells) + "</tr>")
    return (
        f'<table class="sortable" id="{name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(value: Any) -> str:
    """The content of a table cell. Numbers are rounded; the CSV files have all digits."""
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    text = html.escape(str(value))
    return f"<code>{text}</code>" if text.startswith("hiddenweights ") else text


def _json(chart: charts.Chart) -> str:
    """The chart as JSON, escaped so that it cannot close its script element."""
    return json.dumps(chart, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
