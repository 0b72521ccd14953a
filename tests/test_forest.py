"""The forest plot of the claims, and what is drawn for fewer than three values."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_stores import grid, made_store

from hiddenweights.analysis import aggregate, claims, experiments, figures, forest, specs, summary
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.page import charts
from hiddenweights.analysis.table import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    like = grid(archs=("conv2", "conv4"), seeds=range(4), data__name="cifar10", train__epochs=100)
    here = grid(archs=("conv2",), seeds=(0, 1))
    return fetch(str(made_store(tmp_path, "depth", like + here)))


def test_every_measured_claim_has_its_row_by_verdict(table: Table) -> None:
    measured = claims.measure(table)
    shown = forest.drawable(measured)
    assert {one.claim.name for one in shown} == {
        one.claim.name for one in measured if one.effects and one.claim.name != "unchanged"
    }
    assert {one.verdict for one in shown} > {"open here", "supported"}
    order = [*forest.COLORS]
    assert [order.index(one.verdict) for one in shown] == sorted(order.index(one.verdict) for one in shown)
    (ax,) = forest.forest(measured).axes
    assert [text.get_text().split()[0] for text in ax.get_yticklabels()] == [one.claim.name for one in shown]
    written = [text.get_text() for text in ax.texts]
    for one in shown:
        assert any(f"margin {one.worst.margin:+g}; n = {one.worst.n}" in text for text in written)
        assert one.verdict in written


def test_rows_of_one_claim_and_setting_say_how_they_differ(tmp_path: Path) -> None:
    """FC at full width and Conv2 at half width are two settings of one data set and one budget."""
    full = grid(archs=("fc",), seeds=range(3), data__name="cifar10")
    half = grid(archs=("conv2",), seeds=range(3), data__name="cifar10", model__width=0.5)
    shown = forest.drawable(claims.measure(fetch(str(made_store(tmp_path, "depth", full + half)))))
    twice = [one for one in shown if one.claim.name == "plateau"]
    assert len(twice) == len({one.lacks for one in twice}) == 2
    (ax,) = forest.forest(shown).axes
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert len({*labels}) == len(labels)


def test_fewer_than_three_values_are_drawn_themselves(table: Table) -> None:
    measured = [one for one in claims.measure(table) if one.claim.name == "signed_below"]
    paper, here = sorted(measured, key=lambda one: one.worst.n, reverse=True)
    assert (paper.worst.n, here.worst.n) == (4, 2)
    assert np.isnan(here.worst.low)
    (ax,) = forest.forest([here]).axes
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [*crosses[0].get_xdata()] == pytest.approx([*here.worst.values])
    (ax,) = forest.forest([paper]).axes
    assert not [line for line in ax.lines if line.get_marker() == "x"]


def test_a_curve_of_two_seeds_has_points_and_no_band(table: Table) -> None:
    spec = experiments.find_spec("depth")
    digits = summary.where(table, ["data.name=digits"])
    points = specs.points(digits, spec)
    drawn = aggregate.curves(points)
    assert drawn["low"].isna().all()
    shown = np.array([[float(value) for value in values.split()] for values in drawn["values"]])
    assert shown.mean(axis=1) == pytest.approx(drawn["mean"].to_numpy(), abs=1e-3)
    (ax,) = (ax for ax in figures.render(drawn, spec).axes)
    single = [y for line in ax.lines if line.get_marker() == "_" for y in line.get_ydata()]
    assert len(single) == 2 * (drawn["kind"] == specs.SUBNETWORK).sum()
    assert "single values" in summary.note(points, drawn, spec)
    three = specs.points(summary.where(table, ["data.name=cifar10"]), spec)
    assert aggregate.curves(three)["low"].notna().all()
    assert "95% t interval" in summary.note(three, aggregate.curves(three), spec)


def test_an_interval_without_one_beside_it_is_a_bar_and_bands_do_not_cross_a_gap(table: Table) -> None:
    spec = experiments.find_spec("depth")
    points = specs.points(summary.where(table, ["data.name=cifar10"]), spec)
    drawn = aggregate.curves(points)
    one = dict(drawn[drawn["x"].notna()].iloc[0])
    ends = [
        (1.0, 3.0),
        (1.0, 3.0),
        (math.nan, math.nan),
        (1.0, 3.0),
        (math.nan, math.nan),
        (4.0, 6.0),
        (4.0, 6.0),
    ]
    gaps = pd.DataFrame(
        [one | {"x": x / 10, "low": low, "high": high, "mean": 2.0} for x, (low, high) in enumerate(ends)]
    ).sample(frac=1, random_state=0)
    banded = [True, True, False, False, False, True, True]
    assert [*aggregate.in_band(gaps).loc[gaps.sort_values("x").index]] == banded
    (ax,) = figures.render(gaps, spec).axes
    shaded = [path.get_extents().intervalx for path in ax.collections[0].get_paths()]
    assert shaded == [pytest.approx([0, 0.1]), pytest.approx([0.5, 0.6])]
    (bars,) = ax.containers
    assert [*bars.lines[0].get_xdata()] == pytest.approx([0.3])
    assert "band or bar" in summary.note(points, gaps, spec)
    chart = charts.accuracy_chart(gaps, spec, [one["curve"]], (0, 100))
    values = sorted(chart["data"]["values"], key=lambda value: value["x"])
    assert [value["band"] for value in values] == banded


def test_verdicts_on_other_settings_are_counted_apart(table: Table) -> None:
    found = claims.verdicts(table)
    words = summary.verdict_counts(found)
    paper, method, here = words.split("; ")[:3]
    assert paper.startswith("on the paper: ")
    assert method == "on the method: 2 supported"  # no weight is trained, on two data sets
    assert "here" not in paper
    assert here.startswith("on other settings: ")
    of_digits = summary.verdict_counts(claims.verdicts(summary.where(table, ["data.name=digits"])))
    assert "on the paper" not in of_digits
    lines = summary.claim_lines(claims.verdicts(summary.where(table, ["data.name=digits"])))
    lacking = [
        line for line in lines if "it lacks: cifar10 instead of digits; 100 epochs instead of 3" in line
    ]
    assert len(lacking) == 4  # plateau, ends, signed above and below
    assert not any("it lacks" in line for line in summary.claim_lines(found))
