"""From numbers to Vega-Lite specifications (plain dicts), one per panel. No statistics are computed here.

The page contains the Vega libraries that draw them. Colours, markers and dashes are those of the static
figures. The page sets two parameters: `hidden`, the curves that the legend has switched off, and `metric`,
the column that a chart of epochs or layers shows.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from hiddenweights.analysis.aggregate import cut, in_band, shifts
from hiddenweights.analysis.figures import Look, looks, spread
from hiddenweights.analysis.specs import PUBLISHED, Spec
from hiddenweights.analysis.training import METRICS

Chart = dict[str, Any]
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "P": "cross",
    "X": "cross",
    "<": "triangle-left",
    ">": "triangle-right",
    # Vega has no shapes for these: paths in a square from -1 to 1.
    "*": "M0,-1L.24,-.32L.95,-.31L.38,.12L.59,.81L0,.4L-.59,.81L-.38,.12L-.95,-.31L-.24,-.32Z",
    "d": "M0,-1L.6,0L0,1L-.6,0Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
}
VISIBLE = {"filter": "indexof(hidden, datum.curve) < 0"}


def accuracy_chart(
    rows: pd.DataFrame, spec: Spec, curves: Sequence[str], y_domain: tuple[float, float]
) -> Chart:
    """One panel of a figure: `rows` are those of `aggregate.curves`, `curves` all curves of the figure."""
    below = cut(rows.assign(band=in_band(rows), ends=_intervals(rows)), spec.y_scale).sort_values(
        "kind", key=lambda kind: kind != PUBLISHED, kind="stable"
    )  # ours are drawn last
    levels = below.loc[(below["kind"] == PUBLISHED) & below["x"].isna(), "curve"]
    steps = {curve: 4 * step for curve, step in shifts(below).items()}
    steps |= {curve: -6.0 - 11 * i for i, curve in enumerate(levels)}  # from the right edge
    values = [_point(row, spec, steps.get(row["curve"], 0.0)) for _, row in below.iterrows()]
    x = _x(rows, spec)
    scale = {"domain": [*map(_number, y_domain)], "nice": True, "zero": False}
    y = {"field": "mean", "type": "quantitative", "title": spec.y_label, "scale": scale}
    return _chart(values, [*_levels(y, curves), *_lines(x, y, curves)])


_TIPS = [
    {"field": "curve", "title": "curve"},
    {"field": "place", "title": "at"},
    {"field": "mean", "type": "quantitative", "format": ".2f", "title": "mean (%)"},
    {"field": "interval", "title": "95% interval"},
    {"field": "n", "title": "seeds"},
    {"field": "cells", "title": "cells"},
]
_HAS_INTERVAL = {"filter": "isValid(datum.low)"}


def _ends(y: Chart) -> Chart:
    """From the lower to the upper end of an interval."""
    return {"y": {**y, "field": "low"}, "y2": {"field": "high"}}


def _levels(y: Chart, curves: Sequence[str]) -> list[Chart]:
    """Curves without x: a line across the panel, in front of its interval. A published one is a point."""
    level, colour = {"filter": "!isValid(datum.x) && datum.ours"}, _colour(curves)
    beside = {"filter": "!isValid(datum.x) && !datum.ours"}
    return [
        {
            "transform": [level, _HAS_INTERVAL],
            "mark": {"type": "rect", "opacity": 0.1},
            "encoding": {**_ends(y), "color": colour},
        },
        {
            "transform": [level],
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"y": y, "color": colour, "strokeDash": _dash(curves), "tooltip": _TIPS},
        },
        {
            "transform": [beside],
            "mark": {"type": "point", "size": 70, "strokeWidth": 2, "xOffset": {"expr": "datum.step"}},
            "encoding": {
                "x": {"value": "width"},
                "y": y,
                "color": colour,
                "shape": _shape(curves),
                "tooltip": _TIPS,
            },
        },
    ]


def _lines(x: Chart, y: Chart, curves: Sequence[str]) -> list[Chart]:
    """Curves over x: intervals as bands or bars, a line, single values as ticks, and the means as points.

    Published ones have no line.
    """
    curve, colour = {"filter": "isValid(datum.x)"}, _colour(curves)
    aside = {"xOffset": {"expr": "datum.step"}}
    return [
        {
            # A point without an interval interrupts the band.
            "transform": [curve, {"filter": "datum.band || !isValid(datum.low)"}],
            "mark": {"type": "area", "opacity": 0.18},
            "encoding": {"x": x, **_ends(y), "color": colour},
        },
        {
            "transform": [curve, _HAS_INTERVAL, {"filter": "!datum.band"}],
            "mark": {"type": "rule", "strokeWidth": 1.5, **aside},
            "encoding": {"x": x, **_ends(y), "color": colour},
        },
        {
            "transform": [curve, {"filter": "datum.ours"}],
            "mark": {"type": "line", "strokeWidth": 2, **aside},
            "encoding": {"x": x, "y": y, "color": colour, "strokeDash": _dash(curves)},
        },
        {
            "transform": [curve, {"flatten": ["single"]}],
            "mark": {"type": "tick", "orient": "horizontal", "size": 18, **aside},
            "encoding": {"x": x, "y": {**y, "field": "single"}, "color": colour},
        },
        {
            "transform": [curve],
            "mark": {"type": "point", "size": 70, "strokeWidth": 2, **aside},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "shape": _shape(curves),
                "fillOpacity": {"condition": {"test": "datum.hollow", "value": 0}, "value": 1},
                "fill": colour,
                "tooltip": _TIPS,
            },
        },
    ]


def epoch_chart(rows: pd.DataFrame, spec: Spec, curves: Sequence[str]) -> Chart:
    """The training curves of one panel (see `training.epoch_means`): a line per curve and x, x at its end."""
    rows, metrics = rows.reset_index(drop=True), [name for name in METRICS if name in rows]
    named = _ends_with_room(rows, metrics[0])
    values = [
        {
            "curve": row["curve"],
            "place": _place(row["x"], spec),
            "epoch": int(row["epoch"]),
            "n": int(row["n"]),
            "end": f"{row['x']:g}" if place in named else "",
            **{name: _number(row[name]) for name in metrics},
        }
        for place, row in rows.iterrows()
    ]
    y = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    tips = [
        {"field": "curve", "title": "curve"},
        {"field": "place", "title": "at"},
        {"field": "epoch", "title": "epoch"},
        {"field": "value", "type": "quantitative", "format": ".4~g", "title": "value"},
        {"field": "n", "title": "seeds"},
    ]
    encoding = {
        "x": {"field": "epoch", "type": "quantitative", "title": "epoch", "axis": {"tickMinStep": 1}},
        "y": y,
        "color": _colour(curves),
        "detail": {"field": "place"},
    }
    chosen = {"calculate": "datum[metric]", "as": "value"}
    chart = _chart(
        values,
        [
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": encoding},
            {
                "mark": {"type": "text", "align": "right", "baseline": "bottom", "dy": -1, "fontSize": 10},
                "encoding": {**encoding, "text": {"field": "end"}},
            },
            {"mark": {"type": "point", "size": 40, "opacity": 0}, "encoding": {**encoding, "tooltip": tips}},
        ],
    )
    chart["params"].append({"name": "metric", "value": metrics[0]})
    chart["transform"] += [chosen, {"filter": "isValid(datum.value)"}]
    return chart


def _ends_with_room(rows: pd.DataFrame, metric: str) -> set[Any]:
    """The last rows of the training curves over x, without those whose label would hide another's."""
    last = rows["epoch"] == rows.groupby(["curve", "x"])["epoch"].transform("max")  # not of those without x
    apart = (rows[metric].max() - rows[metric].min()) / 15
    found, lowest = set(), math.inf
    for place, value in rows.loc[last, metric].sort_values(ascending=False).items():
        if lowest - value > apart:
            found.add(place)
            lowest = value
    return found


def layer_chart(rows: pd.DataFrame, spec: Spec, curves: Sequence[str]) -> Chart:
    """The fraction that each layer of a panel's network keeps. `rows` are those of `training.layer_means`."""
    metrics = [name for name in ("kept", "churn") if name in rows]
    values = [
        {
            "curve": row["curve"],
            "place": _place(row["x"], spec),
            "layer": row["layer"],
            **{name: _number(row[name]) for name in metrics},
        }
        for _, row in rows.iterrows()
    ]
    tips = [
        {"field": "layer", "title": "layer"},
        {"field": "curve", "title": "curve"},
        {"field": "place", "title": "at"},
        {"field": "value", "type": "quantitative", "format": ".2f", "title": "per cent"},
    ]
    encoding = {
        "y": {"field": "layer", "type": "nominal", "title": None, "sort": list(dict.fromkeys(rows["layer"]))},
        "x": {"field": "value", "type": "quantitative", "title": "% of the layer's weights"},
        "color": _colour(curves),
        "shape": _shape(curves),
        "tooltip": tips,
    }
    chart = _chart(values, [{"mark": {"type": "point", "size": 50}, "encoding": encoding}])
    chart["height"] = {"step": 22}
    chart["params"].append({"name": "metric", "value": metrics[0]})
    chart["transform"] += [{"calculate": "datum[metric]", "as": "value"}, {"filter": "isValid(datum.value)"}]
    return chart


def overlap_chart(rows: pd.DataFrame, spec: Spec, curves: Sequence[str]) -> Chart:
    """The overlap of masks above chance over x, in front of the range of random masks, for one layer."""
    values = [
        {
            "curve": row["curve"],
            "place": _place(row["x"], spec),
            "x": _number(row["x"]),
            "layer": row["layer"],
            "above": _number(row["both"] - row["chance"]),
            "low": _number(row["low"] - row["chance"]),
            "high": _number(row["high"] - row["chance"]),
            "words": f"{row['both']:.2f}%; random masks {row['low']:.2f} to {row['high']:.2f}%",
            "seeds": int(row["seeds"]),
        }
        for _, row in rows.iterrows()
    ]
    tips = [
        {"field": "layer", "title": "layer"},
        {"field": "curve", "title": "curve"},
        {"field": "place", "title": "at"},
        {"field": "words", "title": "kept by both"},
        {"field": "seeds", "title": "seeds"},
    ]
    x = _x(rows, spec)
    y = {"field": "above", "type": "quantitative", "title": "overlap above chance (points)"}
    colour = _colour(curves)
    chart = _chart(
        values,
        [
            {"mark": {"type": "area", "opacity": 0.18}, "encoding": {"x": x, **_ends(y), "color": colour}},
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": {"x": x, "y": y, "color": colour}},
            {
                "mark": {"type": "point", "size": 60, "filled": True},
                "encoding": {"x": x, "y": y, "color": colour, "shape": _shape(curves), "tooltip": tips},
            },
        ],
    )
    chart["params"].append({"name": "metric", "value": str(rows["layer"].iloc[0])})
    chart["transform"].append({"filter": "datum.layer === metric"})
    return chart


def _x(rows: pd.DataFrame, spec: Spec) -> Chart:
    """The x axis of a figure, with ticks at its places if these are few."""
    kind = {"type": "log"} if spec.log else {"zero": False}
    x: Chart = {
        "field": "x",
        "type": "quantitative",
        "title": spec.x_label,
        "scale": {"reverse": spec.reverse, "padding": 12, **kind},
    }
    places = spread(rows["x"], spec)
    if len(places) <= 8:
        words = "datum.value === floor(datum.value) ? datum.value : format(datum.value, '.3~r')"
        x["axis"] = {"values": places, "labelExpr": words}
    return x


def _chart(values: list[dict[str, Any]], layers: list[Chart]) -> Chart:
    return {
        "width": "container",
        "height": 260,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": values},
        "params": [{"name": "hidden", "value": []}],
        "transform": [VISIBLE],
        "layer": layers,
    }


def _intervals(rows: pd.DataFrame) -> "pd.Series[str]":
    """The intervals in words."""
    words = [f"{low:.2f} to {high:.2f}" for low, high in zip(rows["low"], rows["high"], strict=True)]
    return pd.Series(words, rows.index, dtype="str").where(
        rows["low"].notna(), "none: fewer than three seeds"
    )


def _point(row: "pd.Series[Any]", spec: Spec, step: float) -> dict[str, Any]:
    published = row["kind"] == PUBLISHED
    alone = [] if published else row["values"].split()
    return {
        "curve": row["curve"],
        "place": _place(row["x"], spec),
        "x": _number(row["x"]),
        "mean": _number(row["mean"]),
        "low": _number(row["low"]),
        "high": _number(row["high"]),
        "band": bool(row["band"]),
        "ours": not published,
        "step": step,
        "interval": row["ends"],
        "n": "published" if published else int(row["n"]),
        "cells": str(row["source"]) if published else row["cells"],
        "single": [_number(float(value)) for value in alone] if len(alone) > 1 else [],
        "hollow": bool(published or not row["full"]),
    }


def _place(x: float, spec: Spec) -> str:
    return "trained network" if math.isnan(x) else spec.x_words.format(x)


def _number(value: float) -> float | None:
    """Five significant digits; None for a missing number, because JSON has no NaN."""
    return None if pd.isna(value) or math.isinf(value) else float(f"{value:.5g}")


def _scale(curves: Sequence[str], channel: list[Any]) -> Chart:
    return {
        "field": "curve",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(curves), "range": channel},
    }


def _colour(curves: Sequence[str]) -> Chart:
    return _scale(curves, [look.color for look in _looks(curves)])


def _shape(curves: Sequence[str]) -> Chart:
    return _scale(curves, [SHAPES.get(look.marker, "circle") for look in _looks(curves)])


def _dash(curves: Sequence[str]) -> Chart:
    return _scale(curves, [_dashes(look) for look in _looks(curves)])


def _dashes(look: Look) -> list[float]:
    return [1, 0] if isinstance(look.line, str) else [2 * length for length in look.line[1]]


def _looks(curves: Sequence[str]) -> list[Look]:
    found = looks(curves)
    return [found[curve] for curve in curves]
