"""Draw curves. No function here computes a statistic or changes matplotlib's global state.

A curve has the same colour, marker and line style in every figure. The first colours are those of Okabe and
Ito, which remain distinct for colour-blind readers; markers and line styles remain distinct in grey. What is
published has hollow markers and no line, so that every line is ours.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from hiddenweights.analysis.aggregate import MOST_BANDS, cut, in_band, shifts
from hiddenweights.analysis.specs import EDGE_POPUP, ORDER, PREFIX, PUBLISHED, SUBNETWORK, Spec

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "pdf.fonttype": 42,  # embed TrueType, so that text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "hiddenweights",  # so that equal figures give equal files
}

LABELS = 30  # characters that fit beside each other under a panel


class Look(NamedTuple):
    """How one curve is drawn."""

    color: str
    marker: str = "o"
    line: Any = "-"


STEP = 2.8  # typographic points between bars at one place
SIZES = {"*": 7.5, "d": 6.0, "p": 5.5}  # of markers that would look smaller than the others
MARKERS = 20  # on a curve of more points, which would otherwise hide each other, only some are marked

LOOKS = {
    "signed constant": Look("#0072B2", "o"),
    "Kaiming normal": Look("#E69F00", "s"),
    "unsigned constant": Look("#009E73", "^"),
    "Kaiming uniform": Look("#CC79A7", "D"),
    "Xavier normal": Look("#D55E00", "v"),
    "signed Xavier constant": Look("#56B4E9", "P"),
    "default": Look("#999999", "X"),
    "random mask, signed constant": Look("#999933", "<"),
    "random mask, Kaiming normal": Look("#661100", ">"),
    "IteRand, signed constant": Look("#AA4499", "*"),
    "biprop, Kaiming normal": Look("#117733", "d"),
    "sampled, signed constant": Look("#33BBEE", "p"),
    "dense, SGD": Look("#000000", "", (0, (5, 2))),
    "dense, Adam": Look("#666666", "", (0, (1, 1.5))),
    # Of papers that name neither the weights nor the optimiser.
    "best over k": Look("#882255", "D"),
    "dense": Look("#000000", "h"),
    # Curves by k: from dark to light.
    "k = 0.1": Look("#440154", "v"),
    "k = 0.3": Look("#3B528B", "s"),
    "k = 0.5": Look("#21918C", "o"),
    "k = 0.7": Look("#5EC962", "D"),
    "k = 0.9": Look("#D8B900", "^"),
}
_COLORS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#0072B2", "#E69F00")
_MARKERS = "v^DP<>"
_LINES = ((0, (3, 1, 1, 1)), "-", (0, (5, 2)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))


def _spare(i: int) -> Look:
    """The look of the i-th curve without one of its own. The first 36 differ in marker and line."""
    cycle = i // len(_COLORS)
    marker = _MARKERS[(i + cycle) % len(_MARKERS)]
    return Look(_COLORS[i % len(_COLORS)], marker, _LINES[cycle % len(_LINES)])


def looks(curves: Sequence[str]) -> dict[str, Look]:
    """The look of each curve: its own, else a spare one, in order. A published curve has that of ours."""
    ours = {curve: curve.removeprefix(PREFIX) for curve in curves}
    own = {name: LOOKS.get(_plain(name)) for name in ours.values()}
    spare = [name for name, look in own.items() if look is None]
    return {curve: own[name] or _spare(spare.index(name)) for curve, name in ours.items()}


def _plain(name: str) -> str:
    """The name of a curve in `LOOKS`, however a figure writes it."""
    if kept := re.fullmatch(r"([\d.]+)% kept", name):
        return f"k = {float(kept[1]) / 100:g}"
    words = name.removeprefix(EDGE_POPUP).replace("_", " ")
    return re.sub(r"kaiming|xavier", lambda found: found[0].title(), words)


def draw_panel(drawn: pd.DataFrame, ax: Axes, spec: Spec, look: dict[str, Look]) -> Axes:
    """Draw one panel. `drawn` has one row per point (see `aggregate.curves`), in the units of the axes."""
    drawn = drawn.reset_index(drop=True)
    drawn = cut(drawn.assign(band=in_band(drawn)), spec.y_scale)
    steps, beside = shifts(drawn), 0
    banded = drawn.loc[drawn["band"] & drawn["x"].notna(), "curve"].nunique()
    for key, points in drawn.groupby(["curve", "kind"], sort=False):
        curve, kind = map(str, key)
        style = look[curve]
        if kind == PUBLISHED:
            beside += _draw_published(points, ax, style, curve, beside)
        elif points["x"].isna().all():
            _draw_level(points.iloc[0], ax, style, curve)
        else:
            before = {*ax.lines, *ax.collections}
            _draw_curve(points, ax, style, curve, kind, alpha=0.18 if banded <= MOST_BANDS else 0.14)
            _shift({*ax.lines, *ax.collections} - before, ax, STEP * steps.get(curve, 0.0))
    ax.set_xlabel(spec.x_label)
    if spec.log:
        ax.set_xscale("log")
    ticks = spread(drawn["x"], spec)
    if len(ticks) <= 8 and not drawn["tag"].fillna("").any():
        labels = [f"{tick:g}" if tick == int(tick) else f"{tick:.3g}" for tick in ticks]
        ax.set_xticks(ticks, labels, rotation=45 if sum(map(len, labels)) > LABELS else 0)
        ax.minorticks_off()
    if spec.reverse and not ax.xaxis_inverted():
        ax.invert_xaxis()
    return ax


def spread(places: "pd.Series[float]", spec: Spec) -> list[float]:
    """The places of labels. Of two that are too close, the one with more points, else the smaller."""
    at = math.log if spec.log else float
    counts = places.dropna().value_counts()
    closest = 0.05 * (at(counts.index.max()) - at(counts.index.min())) if len(counts) else 0.0
    ticks: list[float] = []
    for place in sorted(counts.index, key=lambda place: (-counts[place], place)):
        if all(abs(at(place) - at(tick)) > closest for tick in ticks):
            ticks.append(place)
    return sorted(ticks)


def _shift(artists: Iterable[Artist], ax: Axes, points: float) -> None:
    """Draw them so many typographic points further to the right. Their data stay the same."""
    if points and isinstance(ax.figure, Figure):
        aside = ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)
        for artist in artists:
            artist.set_transform(ax.transData + aside)


def _draw_published(points: pd.DataFrame, ax: Axes, look: Look, curve: str, beside: int) -> int:
    """Hollow markers without a line; without x beside the panel. Returns how many are there."""
    level = bool(points["x"].isna().all())
    places = [1.025 + 0.035 * beside] if level else points["x"]
    more: Any = {"transform": ax.get_yaxis_transform(), "clip_on": False} if level else {}
    ax.plot(
        places, points["mean"], color=look.color, linestyle="", marker=look.marker or "o", markersize=5,
        markerfacecolor="white", markeredgewidth=1.2, label=_shown(curve), zorder=3.5, **more,
    )  # fmt: skip
    return int(level)


def _draw_level(point: "pd.Series[Any]", ax: Axes, look: Look, curve: str) -> None:
    ax.axhline(
        point["mean"], color=look.color, linestyle=look.line, linewidth=1.4, label=_shown(curve), zorder=2,
    )  # fmt: skip
    if not math.isnan(point["low"]):
        ax.axhspan(point["low"], point["high"], color=look.color, alpha=0.08, linewidth=0, zorder=1)
    for value in _single(point["values"]):
        ax.axhline(value, color=look.color, linewidth=0.5, alpha=0.5, zorder=1)


def _single(values: object) -> list[float]:
    """The values of a point that has too few of them for an interval. A single one is its mean."""
    found = values.split() if isinstance(values, str) else []
    return [*map(float, found)] if len(found) > 1 else []


def _draw_curve(points: pd.DataFrame, ax: Axes, look: Look, curve: str, kind: str, *, alpha: float) -> None:
    points = points.sort_values("x")
    every = math.ceil(len(points) / MARKERS)
    ax.plot(
        points["x"], points["mean"], color=look.color, linestyle=look.line, linewidth=1.6,
        marker=look.marker or "o", markersize=SIZES.get(look.marker, 4.5), markevery=every,
        label=_shown(curve), zorder=3,
    )  # fmt: skip
    lacking = points[~points["full"]]
    ax.plot(  # hollow: fewer seeds than the rest
        lacking["x"], lacking["mean"], color=look.color, linestyle="", marker=look.marker or "o",
        markersize=SIZES.get(look.marker, 4.5), markerfacecolor="white", zorder=4,
    )  # fmt: skip
    named = {text.get_text() for text in ax.texts} if kind == SUBNETWORK else set()
    for point in points[points["tag"].fillna("") != ""].itertuples():
        if point.tag not in named:
            at, offset = (point.x, point.mean), (4, 4)
            ax.annotate(str(point.tag), at, offset, textcoords="offset points", fontsize=6.5, rotation=30)
    for x, text in zip(points["x"], points["values"], strict=True):
        alone = _single(text)
        places = [x] * len(alone)
        ax.plot(places, alone, color=look.color, linestyle="", marker="_", markersize=5, alpha=0.7, zorder=3)
    band = points["band"]
    ax.fill_between(
        points["x"], points["low"], points["high"], band, color=look.color, alpha=alpha, linewidth=0, zorder=1
    )
    bars = points[points["low"].notna() & ~band]
    if len(bars):
        height = [bars["mean"] - bars["low"], bars["high"] - bars["mean"]]
        ax.errorbar(
            bars["x"], bars["mean"], height, color=look.color, linestyle="", capsize=2, linewidth=1, zorder=3
        )


def render(drawn: pd.DataFrame, spec: Spec, note: str = "") -> Figure:
    """The whole figure: one panel per network, one legend, and `note` in small print at the bottom."""
    panels = list(dict.fromkeys(drawn["panel"]))
    rows = math.ceil(len(panels) / 4)
    columns = math.ceil(len(panels) / rows)
    beside = 0.055 * drawn["curve"].str.len().max()  # inches of the legend beside a single panel
    width = {1: 5.3 + beside, 2: 7.2, 3: 9.4}.get(columns, 11.5)
    with mpl.rc_context(RC):
        height = 2.55 * rows + 0.85
        if len(panels) == 1:  # the legend has a line per curve
            height = max(height, 0.18 * drawn["curve"].nunique() + 0.5)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if rows == 1 else True)
        look = looks(list(drawn["curve"]))
        for panel, ax in zip(panels, axes.flat, strict=False):
            draw_panel(drawn[drawn["panel"] == panel], ax, spec, look)
            ax.set_title(panel)
        for ax in list(axes.flat)[len(panels) :]:
            ax.remove()
        for row in axes:
            row[0].set_ylabel(spec.y_label)
        _legend(figure, drawn, columns)
        if note:
            figure.supxlabel(note, fontsize=6.5, color="0.35", x=0.99, ha="right")
    return figure


def _legend(figure: Figure, drawn: pd.DataFrame, panels: int) -> None:
    """One legend with every curve once: beside a single panel, else above. Names n if curves differ.

    Subnetworks come first, then trained networks, then what is published. A published curve that has the
    name and the colour of one of ours is left out: the note says how such curves are drawn.
    """
    curves = {_shown(curve): curve for curve in drawn["curve"]}
    found: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, shown in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(curves[shown], handle)
    kinds = drawn.groupby("curve")["kind"].first()
    named = [name for name in found if not (name.startswith(PREFIX) and name.removeprefix(PREFIX) in found)]
    handles = {name: found[name] for name in sorted(named, key=lambda name: ORDER.index(kinds[name]))}
    names = [*map(_shown, handles)]
    if not drawn["full"].all():
        n = drawn.groupby("curve")["n"].agg(["min", "max"])
        names = [f"{_shown(name)} ({_count(*n.loc[name])})" for name in handles]
    if panels == 1:
        figure.legend(handles.values(), names, loc="outside right upper")
        return
    room = {2: 92, 3: 110}.get(panels, 130) // (max(map(len, names)) + 8)  # in characters, roughly
    columns = max(1, min(len(names), room))
    figure.legend(handles.values(), names, loc="outside upper center", ncols=columns)


def _shown(curve: str) -> str:
    """The name of a curve as matplotlib shows it; it leaves out names that begin with an underscore."""
    return f" {curve}" if curve.startswith("_") else curve


def _count(low: float, high: float) -> str:
    if math.isnan(high):
        return "published"
    return f"n = {low:g}" if low == high else f"n = {low:g} to {high:g}"


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.pdf (with embedded fonts) to a folder. Equal figures give equal bytes."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    with mpl.rc_context(RC):
        figure.savefig(paths[0], dpi=200, bbox_inches="tight", metadata={"Software": None})
        figure.savefig(paths[1], bbox_inches="tight", metadata={"CreationDate": None})
    return paths
