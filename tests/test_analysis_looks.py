"""How curves are drawn: looks that stay the same, published points, and intervals that can be told apart."""

import math
from pathlib import Path

import pandas as pd
import pytest
from analysis_stores import grid, made_store
from matplotlib.colors import to_rgb

from hiddenweights.analysis import aggregate, experiments, figures, specs, summary
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.layout import layout
from hiddenweights.analysis.page import charts


def rows(curves: int, places: int, **more: object) -> pd.DataFrame:
    """Curves of one panel as `aggregate.curves` gives them, each with an interval of two points."""
    return pd.DataFrame(
        [
            {
                "panel": "Conv2", "curve": f"k = 0.{i + 1}", "kind": specs.SUBNETWORK, "x": 10.0 * x, "n": 3,
                "mean": 50.0 + i, "low": 49.0 + i, "high": 51.0 + i, "tag": "", "full": True, "values": "",
                "cells": "", **more,
            }
            for i in range(curves) for x in range(1, places + 1)
        ]
    )  # fmt: skip


def test_curves_differ_without_colour() -> None:
    by_k = {name: look for name, look in figures.LOOKS.items() if name.startswith(("k = ", "dense, "))}
    of_papers = ("best over k", "dense")
    others = {name for name in figures.LOOKS if not name.startswith("k = ") and name not in of_papers}
    for names in (by_k, others):  # that may be in one figure
        marks = [(figures.LOOKS[name].marker, str(figures.LOOKS[name].line)) for name in names]
        assert len(set(marks)) == len(marks)
    assert len({(look.color, look.marker, str(look.line)) for look in figures.LOOKS.values()}) == len(
        figures.LOOKS
    )
    signed, normal = (figures.LOOKS[name].color for name in ("signed constant", "Kaiming normal"))
    grey = [
        sum(w * c for w, c in zip((0.3, 0.59, 0.11), to_rgb(color), strict=True))
        for color in (signed, normal)
    ]
    assert abs(grey[0] - grey[1]) > 0.2


def test_thirty_curves_are_told_apart() -> None:
    looks = figures.looks([f"curve {i}" for i in range(30)])
    assert len({(look.marker, look.line) for look in looks.values()}) == 30
    assert len({(look.color, look.marker) for look in looks.values()}) == 30


def test_a_published_curve_looks_like_ours() -> None:
    names = ["a", "signed constant", "b"]
    looks = figures.looks([*names, *(specs.PREFIX + name for name in reversed(names))])
    assert [looks[specs.PREFIX + name] for name in names] == [looks[name] for name in names]
    assert len({*looks.values()}) == 3


def test_masks_have_solid_lines_and_a_look_of_their_own() -> None:
    """In every figure, however it names them; trained networks are dashed or dotted."""
    methods = ("random mask", "IteRand", "sampled")
    names = [*(f"{method}, signed constant" for method in methods), "biprop, Kaiming normal"]
    names += [f"k = 0.{k}" for k in (1, 3, 5, 7, 9)]
    alone = [figures.looks([name])[name] for name in names]
    assert [*figures.looks(["mine", *reversed(names)]).values()][:0:-1] == alone
    assert {look.line for look in alone} == {"-"}
    alike = figures.looks(["30% kept", "edge-popup, Kaiming normal", "signed_constant"])
    assert [*alike.values()] == [figures.LOOKS[n] for n in ("k = 0.3", "Kaiming normal", "signed constant")]


def test_published_points_are_hollow_and_have_no_line() -> None:
    ours = rows(1, 3)
    theirs = ours.assign(curve="published: k = 0.1", kind=specs.PUBLISHED, low=math.nan, high=math.nan)
    level = theirs.iloc[:1].assign(curve="published: dense", x=math.nan)
    spec = experiments.find_spec("depth")
    (ax,) = figures.render(pd.concat([ours, theirs, level]), spec).axes
    lines = {str(line.get_label()): line for line in ax.lines}
    for name in ("published: k = 0.1", "published: dense"):
        assert lines[name].get_linestyle() == "None"
        assert lines[name].get_markerfacecolor() == "white"
    assert lines["k = 0.1"].get_linestyle() == "-"
    assert lines["published: dense"].get_xdata()[0] > 1  # right of the panel
    assert [*lines["published: dense"].get_ydata()] == [50.0]
    assert not [line for line in ax.lines if line.get_linestyle() == "-" and line is not lines["k = 0.1"]]


def test_many_bands_over_few_places_become_bars_beside_each_other() -> None:
    spec = experiments.find_spec("depth")
    for curves, places, bars in ((3, 5, False), (5, 3, True), (5, 20, False)):
        drawn = rows(curves, places)
        assert aggregate.in_band(drawn).tolist() == [not bars] * len(drawn)
        figure = figures.render(drawn, spec)
        (ax,) = figure.axes
        assert len(ax.containers) == (curves if bars else 0)
        lines = [
            next(line for line in ax.lines if line.get_label() == name) for name in drawn["curve"].unique()
        ]
        at = [line.get_transform().transform((10.0, 50.0))[0] for line in lines]
        assert len({round(x, 3) for x in at}) == (curves if bars else 1)
        assert sum(at) / curves == pytest.approx(ax.transData.transform((10.0, 50.0))[0])
        for line in lines:
            assert [*line.get_xdata()] == [10.0 * x for x in range(1, places + 1)]
        values = charts.accuracy_chart(drawn, spec, [*drawn["curve"].unique()], (0, 100))["data"]["values"]
        assert len({value["step"] for value in values}) == (curves if bars else 1)


def test_intervals_are_drawn_to_0_and_100_per_cent_and_stay_whole_in_the_numbers() -> None:
    drawn = rows(2, 2).assign(low=[-5.0, 90.0, 40.0, 40.0], high=[30.0, 104.0, 60.0, 60.0])
    spec = experiments.find_spec("depth")
    (ax,) = figures.render(drawn, spec).axes
    ends = [path.get_extents().intervaly for shape in ax.collections for path in shape.get_paths()]
    assert (min(low for low, _ in ends), max(high for _, high in ends)) == (0, 100)
    assert drawn["low"].min() == -5
    chart = charts.accuracy_chart(drawn, spec, ["k = 0.1", "k = 0.2"], (0, 100))
    first = chart["data"]["values"][0]
    assert (first["low"], first["interval"]) == (0, "-5.00 to 30.00")


def test_a_loss_is_not_cut(tmp_path: Path) -> None:
    table = fetch(str(made_store(tmp_path, "depth", grid(["conv2"]))))
    spec = layout("depth", table, y="train_loss")
    points = specs.points(table, spec)
    drawn = aggregate.curves(points).assign(low=-1.0)
    assert aggregate.cut(drawn, spec.y_scale) is drawn
    assert "cut at" not in summary.note(points, drawn, spec)


def test_a_training_curve_has_its_place_on_the_x_axis_at_its_end_where_there_is_room() -> None:
    ends = {("mask", 90.0): 40.0, ("mask", 50.0): 80.0, ("mask", 30.0): 79.9, ("dense", None): 60.0}
    frame = pd.DataFrame(
        [
            {"curve": curve, "x": x, "epoch": epoch, "n": 3, "test_accuracy": end - 20 / epoch}
            for (curve, x), end in ends.items()
            for epoch in (1, 2)
        ]
    )
    chart = charts.epoch_chart(frame, experiments.find_spec("depth"), ["mask", "dense"])
    labels = {(value["epoch"], value["end"]) for value in chart["data"]["values"] if value["end"]}
    assert labels == {(2, "50"), (2, "90")}
