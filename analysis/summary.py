"""The main results of a figure as lines of text for the terminal."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hiddenweights.analysis.aggregate import FEW, cut, in_band
from hiddenweights.analysis.claims import OUT_OF_SCOPE
from hiddenweights.analysis.specs import BASELINE, EPOCH, PUBLISHED, SUBNETWORK, TRAINED, Spec
from hiddenweights.analysis.table import FROZEN, Table
from hiddenweights.claims.registry import CLAIMS
from hiddenweights.claims.verdict import CONTRADICTED, HERE, OPEN, SUPPORTED
from hiddenweights.errors import UserError
from hiddenweights.flat import parse_conditions


def where(table: Table, conditions: Sequence[str]) -> Table:
    """The table with the cells that match every ``field=value,value`` (a value that a field may have).

    Raises `UserError` for bad conditions, and for a value that no cell has.
    """
    cells = table.cells
    for name, values in parse_conditions(conditions).items():
        column = cells[name]
        chosen = pd.Series(False, cells.index)
        for value in values:
            alike = column.isna() if value is None else column == value
            if not alike.any():
                has = ", ".join(sorted({*map(_as_condition, column)}))
                raise UserError(f"--where: no cell has {name}={value}; {name} is one of: {has}")
            chosen |= alike
        cells = cells[chosen]
    return Table(cells, table.epochs, table.left_out)


def _as_condition(value: Any) -> str:
    """A value as ``--where`` takes it."""
    if pd.isna(value):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def lines(points: pd.DataFrame, drawn: pd.DataFrame, table: Table, spec: Spec) -> list[str]:
    """One line per panel (the best subnetwork and dense), and those of `remarks`."""
    return [*map(str, best(points, drawn, spec)), *remarks(points, table)]


def remarks(points: pd.DataFrame, table: Table) -> list[str]:
    """One line about kept and unchanged weights, one per data set in several versions, and one per curve
    whose cells were computed by several kinds of processor."""
    said = [unchanged(points, table), *mixed_data(points), *mixed_processors(points)]
    return [line for line in said if line]


def mixed_data(cells: pd.DataFrame) -> list[str]:
    """A line for each data set of which the cells read different images or labels under one name.

    `cells` has the columns `cell`, `data.name` and `data_digest` (empty if unknown).
    """
    cells, found = cells.drop_duplicates("cell"), []
    for name, digests in cells["data_digest"].replace("", pd.NA).dropna().groupby(cells["data.name"]):
        counts = digests.value_counts()
        if len(counts) > 1:
            versions = "; ".join(f"{count} cells read {str(digest)[:8]}" for digest, count in counts.items())
            found.append(f"data: {len(counts)} versions of {name} are compared: {versions}")
    return found


def mixed_processors(points: pd.DataFrame) -> list[str]:
    """A line for each curve whose cells come from several kinds of processor: last digits may differ."""
    known = points[points["processor"] != ""]
    found = []
    for (panel, curve), group in known.groupby(["panel", "curve"], sort=False, observed=True):
        counts = group["processor"].value_counts()
        if len(counts) > 1:
            where_ = f"{panel}, {curve}" if panel else str(curve)
            kinds = "; ".join(f"{count} on {kind}" for kind, count in counts.items())
            found.append(f"processors: {where_}: cells of {len(counts)} kinds of processor: {kinds}")
    return found


@dataclass(frozen=True)
class Best:
    """The best subnetwork of a panel, and the trained networks beside it. Accuracies are per cent."""

    panel: str
    curve: str
    place: str
    """Its place on the x axis, in words."""
    accuracy: float
    interval: str
    chosen_by: str
    """"validation" or "test" accuracy; "" if it is the only one."""
    trained: dict[str, float]
    """The accuracy of each trained network, by the name of its curve."""

    @property
    def chosen(self) -> str:
        """How it was chosen, in parentheses."""
        return f" (chosen by {self.chosen_by} accuracy)" if self.chosen_by else ""

    def __str__(self) -> str:
        others = "; ".join(f"{name}: {mean:.1f}%" for name, mean in self.trained.items())
        return (
            f"{self.panel}: {self.accuracy:.1f}% ({self.interval}) with random weights, {self.curve}, "
            f"{self.place}{self.chosen}" + (f"; {others}" if others else "")
        )


def best(points: pd.DataFrame, drawn: pd.DataFrame, spec: Spec) -> list[Best]:
    """The best subnetwork of each panel that has one."""
    panels = drawn.groupby("panel", sort=False)
    found = [_best(points[points["panel"] == panel], group, spec) for panel, group in panels]
    return [one for one in found if one]


def _best(points: pd.DataFrame, drawn: pd.DataFrame, spec: Spec) -> Best | None:
    """The best point of the best curve, chosen by validation accuracy if there is a validation split."""
    ours = drawn[drawn["kind"] == SUBNETWORK]
    if ours.empty:
        return None
    subnetworks = points[points["kind"] == SUBNETWORK]
    if spec.x == EPOCH:
        last = subnetworks.groupby("curve")["x"].transform("max")
        subnetworks = subnetworks[subnetworks["x"] == last]
    held_out = subnetworks["validation"].notna().all()
    means = subnetworks.groupby(["curve", "x"])["validation" if held_out else "y"].mean()
    curve, x = means.index[int(means.argmax())]
    row = ours[(ours["curve"] == curve) & (ours["x"] == x)].iloc[0]
    dense = drawn[drawn["kind"] == BASELINE]
    alike = dense[dense["x"].isna() | (dense["x"] == x)]
    levels = (dense if alike.empty else alike).groupby("curve", sort=False)["mean"].max()
    trained = drawn[(drawn["kind"] == TRAINED) & (drawn["x"] == x)].set_index("curve")["mean"]
    return Best(
        panel=str(points["panel"].iloc[0] or spec.name),
        curve=str(curve),
        place=spec.x_words.format(x),
        accuracy=float(row["mean"]),
        interval=_interval(row),
        chosen_by="" if len(means) == 1 else "validation" if held_out else "test",
        trained={str(name): float(mean) for name, mean in [*levels.items(), *trained.items()]},
    )


def _interval(row: "pd.Series[float]") -> str:
    if pd.isna(row["low"]):
        return f"n = {row['n']:g}: no interval"
    return f"{row['low']:.1f} to {row['high']:.1f}, n = {row['n']:g}"


def unchanged(points: pd.DataFrame, table: Table) -> str:
    """How many cells left their weights unchanged (by checksums), and the fraction kept; "" for none."""
    frozen = set(points.loc[points["model.method"].isin(FROZEN), "cell"])
    chosen = table.cells["cell"].isin(frozen)
    rows = table.cells[chosen]
    if rows.empty:
        return ""
    if rows["initial_weights_checksum"].isna().all():
        return "weights: no checksums logged"
    steady = table.unchanged()[chosen]
    kept = 100 * rows["kept"]
    words = f"{int(steady.sum())} of {len(rows)} cells kept every weight unchanged (checksums)"
    return f"weights: {words}; share kept: {kept.min():.1f} to {kept.max():.1f}%"


def claim_lines(verdicts: pd.DataFrame) -> list[str]:
    """Per claim: its verdicts, each with the comparison that decides; what the nearest run still lacks."""
    found = []
    wide = int(verdicts["verdict"].str.len().max())
    below = " " * wide
    for _, rows in verdicts.groupby("claim", sort=False):
        for row in rows.to_dict("records"):
            found.append(f"{row['verdict']:<{wide}} {row['claim']}: {row['says']}")
            if row["n"]:
                found.append(f"{below} {row['setting']}; {_comparison(row)}")
        if rows["lacks"].all():
            nearest = min(rows["lacks"], key=lambda lacks: lacks.count(";"))
            found.append(f"{below} for a verdict on the paper it lacks: {nearest}")
        elif not rows["n"].any():
            found.append(f"{below} needs: hiddenweights sweeps launch {rows['sweep'].iloc[0]}")
    return found


def verdict_counts(verdicts: pd.DataFrame) -> str:
    """How many verdicts of each kind: on the paper, on other settings, and on claims that are no paper's.

    A claim about any data, such as `unchanged`, is one about the method.
    """
    facts = [claim.name for claim in CLAIMS if claim.data is None]
    of_method = verdicts["claim"].isin(facts)
    of_paper = verdicts["claim"].isin([claim.name for claim in CLAIMS]) & ~of_method
    on_paper, others = verdicts.loc[of_paper, "verdict"], verdicts.loc[~of_paper & ~of_method, "verdict"]
    decided = (SUPPORTED, CONTRADICTED, OPEN)
    groups = (
        ("on the paper", on_paper, decided),
        ("on the method", verdicts.loc[of_method, "verdict"], decided),
        ("on other settings", on_paper, tuple(HERE.values())),
        ("on claims of your own", others, (*decided, *HERE.values())),
    )
    parts = []
    for lead, found, words in groups:
        counts = [(int((found == word).sum()), word) for word in words]
        if any(n for n, _ in counts):
            parts.append(f"{lead}: " + ", ".join(f"{n} {word}" for n, word in counts if n))
    absent = int((verdicts["verdict"] == OUT_OF_SCOPE).sum())
    return "; ".join([*parts, *([f"{absent} {OUT_OF_SCOPE}"] if absent else [])])


def _comparison(row: Mapping[Hashable, Any]) -> str:
    which = f"worst of {row['comparisons']}: " if row["comparisons"] > 1 else ""
    if pd.isna(row["margin"]):  # a fact
        return f"{row['mean']:.1f}{row['effect']} (n = {row['n']})"
    interval = "no interval" if pd.isna(row["low"]) else f"{row['low']:+.1f} to {row['high']:+.1f}"
    numbers = f"{row['mean']:+.1f} ({interval}, n = {row['n']}; must be above {row['margin']:+g})"
    again = "; anytime-valid, since it was looked at again and again" if row["anytime"] else ""
    return f"{which}{row['effect']}: {numbers}{again}"


def note(points: pd.DataFrame, drawn: pd.DataFrame, spec: Spec) -> str:
    """The note under a figure: data, width, epochs, protocol, n, and the meaning of bands and bars."""

    def values(column: str) -> str:
        found = dict.fromkeys("all" if pd.isna(value) else value for value in points[column])
        return ", ".join(value if isinstance(value, str) else f"{value:g}" for value in found)

    protocol = {"validation": "validation split held out", "paper": "all training images (paper's protocol)"}
    protocols = ", ".join(protocol[name] for name in dict.fromkeys(points["data.protocol"]))
    most, joined = drawn["n"].max(), in_band(drawn)
    seeds = "one seed" if most == 1 else f"mean of {most:g} seeds"
    seeds += "" if drawn["full"].all() else " (hollow: fewer)"
    shapes = {"band": joined, "bar": drawn["low"].notna() & ~joined}
    shown = " or ".join(shape for shape, where in shapes.items() if where.any())
    spread = f", {shown}: 95% t interval" if shown else ""
    spread += ", cut at 0 and 100%" if shown and not cut(drawn, spec.y_scale).equals(drawn) else ""
    spread += ", ticks: single values (n < 3: no interval)" if drawn["n"].between(2, FEW - 1).any() else ""
    paper = "; hollow, without a line: published" if (drawn["kind"] == PUBLISHED).any() else ""
    data = "; ".join(["", *mixed_data(points)])
    subset = f", {values('data.subset')} images" if points["data.subset"].notna().any() else ""
    own_width = spec.x != "model.width" and (points["model.width"] != 1).any()
    width = f", width {values('model.width')}" if own_width else ""
    run = f"{values('data.name')}{subset}{width}, {values('train.epochs')} epochs, {protocols}"
    return f"{run}; {seeds}{spread}{paper}{data}"


def left_out(table: Table, sweep: str) -> str:
    """How many runs of the sweep (or without a sweep) were left out, by reason. Empty for none."""
    concerned = table.left_out["sweeps"].map(lambda sweeps: not sweeps or sweep in sweeps.split())
    reasons = table.left_out.loc[concerned, "reason"].str.slice(0, 90).value_counts()
    words = [f"{count} x {reason}" for reason, count in reasons.head(4).items()]
    return "; ".join(words + [f"{len(reasons) - 4} further reasons"] * (len(reasons) > 4))
