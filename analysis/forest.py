"""All claims as one forest plot: the distance from the margin, with interval and n, grouped by verdict."""

import itertools
import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from hiddenweights.analysis.aggregate import FEW
from hiddenweights.analysis.claims import OUT_OF_SCOPE, Effect, Measured
from hiddenweights.analysis.figures import RC
from hiddenweights.claims.verdict import CONTRADICTED, HERE, OPEN, SUPPORTED

# From top to bottom. Markers are filled for a verdict on the paper and hollow for other settings.
COLORS = {
    SUPPORTED: "#00614a",
    CONTRADICTED: "#a33c00",
    OPEN: "#666666",
    HERE[SUPPORTED]: "#4a4a8a",
    HERE[CONTRADICTED]: "#8a4a7a",
    HERE[OPEN]: "#888888",
}
TITLE = "The claims of the paper"
LINEAR = 3.0  # points on each side of the margin with a linear scale; the axis is logarithmic beyond


def drawable(measured: Sequence[Measured]) -> list[Measured]:
    """The claims that have comparisons, by verdict."""
    order = [*COLORS]
    shown = [one for one in measured if one.effects and one.claim.contrasts]
    return sorted(shown, key=lambda one: order.index(one.verdict))


def forest(measured: Sequence[Measured]) -> Figure:
    """The plot of all claims with comparisons. At least one of `measured` must have some."""
    shown = drawable(measured)
    groups = len({one.verdict for one in shown})
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.4, 0.24 * (len(shown) + groups) + 1.2), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        rows = _rows(shown)
        for place, one in rows:
            _draw(one, ax, place)
        _dress(ax, rows)
        absent = sum(one.verdict == OUT_OF_SCOPE for one in measured)
        figure.supxlabel(_note(shown, absent), fontsize=6.5, color="0.35", x=0.99, ha="right")
    return figure


def _rows(shown: Sequence[Measured]) -> list[tuple[int, Measured]]:
    """The place of each claim from the top. Every verdict has a heading above its claims."""
    rows: list[tuple[int, Measured]] = []
    place = 0
    for _, group in itertools.groupby(shown, key=lambda one: one.verdict):
        for one in group:
            first = not rows or rows[-1][1].verdict != one.verdict
            place += 2 if first and rows else 1
            rows.append((place, one))
    return rows


def _draw(one: Measured, ax: Axes, place: int) -> None:
    """Draw one claim: all comparisons faintly, the worst one with its interval and as text."""
    color, worst = COLORS[one.verdict], one.worst
    others = [found.mean - found.margin for found in one.effects if found is not worst and found.n]
    ax.plot(others, [place] * len(others), "|", color=color, alpha=0.35, markersize=6, zorder=2)
    ax.text(
        1.01, place, _numbers(worst), transform=blended_transform_factory(ax.transAxes, ax.transData),
        va="center", fontsize=7, color=color,
    )  # fmt: skip
    if worst.n < FEW:  # too few values for an interval: draw the values
        values = [value - worst.margin for value in worst.values]
        ax.plot(values, [place] * worst.n, "x", color=color, markersize=5, zorder=4)
        return
    ends = [worst.low - worst.margin, worst.high - worst.margin]
    ax.plot(ends, [place] * 2, color=color, linewidth=1.4, zorder=3)
    face = "white" if one.verdict in HERE.values() else color
    mean = worst.mean - worst.margin
    ax.plot(mean, place, "o", color=color, markerfacecolor=face, markersize=5, zorder=4)


def _numbers(effect: Effect) -> str:
    margin = f"margin {effect.margin:+g}"
    if effect.n < FEW:
        return f"{', '.join(f'{value:+.1f}' for value in effect.values)}; {margin}; n = {effect.n}"
    interval = f"{effect.low:+.1f} to {effect.high:+.1f}"
    return f"{effect.mean:+.1f} ({interval}); {margin}; n = {effect.n}"


def _dress(ax: Axes, rows: Sequence[tuple[int, Measured]]) -> None:
    ax.axvline(0, color="0.2", linewidth=0.8, zorder=1)
    ax.set_xscale("symlog", linthresh=LINEAR)
    far = [end for _, one in rows for end in _extent(one.worst)]
    low, high = (LINEAR + 1.3 * max([0.0, *(sign * end for end in far)]) for sign in (-1, 1))
    ax.set_xlim(-low, high)
    ticks = [sign * tick for tick in (1.0, 3.0, 10.0, 30.0, 100.0) for sign in (-1, 1)]
    ticks = [0.0, *(tick for tick in ticks if -low < tick < high)]
    ax.set_xticks(ticks, [f"{tick:+g}" if tick else "margin" for tick in ticks], fontsize=8)
    ax.minorticks_off()
    ax.grid(False, axis="y")
    ax.set_xlabel("worst comparison: points above (right) or below (left) the claim's margin", fontsize=8)
    ax.set_ylim(rows[-1][0] + 0.7, -0.7)
    ax.set_yticks([place for place, _ in rows], _labels([one for _, one in rows]), fontsize=7)
    ax.tick_params(axis="y", length=0)
    before, beside = "", blended_transform_factory(ax.transAxes, ax.transData)
    for tick, (place, one) in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_color(COLORS[one.verdict])
        if one.verdict != before:
            ax.text(
                -0.01, place - 1, one.verdict, transform=beside, ha="right", va="center",
                fontsize=8, fontweight="bold", color=COLORS[one.verdict],
            )  # fmt: skip
            if before:
                ax.axhline(place - 1.5, color="0.85", linewidth=0.8)
        before = one.verdict


def _labels(shown: Sequence[Measured]) -> list[str]:
    """Claim and setting of each, with what only it lacks if another claim has the same name and setting."""
    labels = []
    for one in shown:
        alike = [other for other in shown if (other.claim, other.setting) == (one.claim, one.setting)]
        shared = set.intersection(*(set(other.lacks) for other in alike))
        apart = [lack.replace(" instead of ", ", has ") for lack in one.lacks if lack not in shared]
        labels.append(f"{one.claim.name}  ({one.setting}{''.join(f'; lacks {lack}' for lack in apart)})")
    return labels


def _extent(effect: Effect) -> list[float]:
    ends = effect.values if effect.n < FEW else (effect.low, effect.high)
    return [end - effect.margin for end in ends if not math.isnan(end)]


def _note(shown: Sequence[Measured], absent: int) -> str:
    words = "95% t intervals; filled: on the paper, hollow: on another setting; ticks: other comparisons"
    if any(one.worst.n < FEW for one in shown):
        words += f", crosses: single values (n < {FEW})"
    if any(one.anytime for one in shown):
        words += "; of settled claims the intervals are anytime-valid"
    return words + (f"; {absent} claims are out of scope of these runs" if absent else "")
