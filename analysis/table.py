"""The table behind every figure and claim, and its construction from raw runs.

`Table.cells` has one row per cell:

========================  ==================================================================
``cell``, ``name``        id, and a readable name
``state``                 finished, failed, crashed, running or missing
``sweeps``                names of the sweeps it belongs to, space-separated
``model.arch`` ...        the resolved config under the names of `hiddenweights.config.flatten`
``test_accuracy`` ...     the record of the last epoch, `best_validation_accuracy`, `best_epoch`,
                          `initial_weights_checksum`, total training `seconds`, `device`,
                          `data_digest` (of the images and labels; empty in old results),
                          `weights` of the masked layers and `weights_kept` of them
``processor.model`` ...   what computed it: also ``.instructions``, ``.precision`` and
                          ``.threads``; empty for results that do not say
``source``, ``key``       the source, and the name of the run there
``version``, ``started``  changes whenever the run does; ISO time
========================  ==================================================================

`Table.epochs` has one row per cell and epoch: `cell`, `epoch` and the columns of the record. Accuracies and
kept fractions are fractions in [0, 1]. `Table.left_out` lists the runs that were not used, with reasons.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from hiddenweights.errors import UserError, shown
from hiddenweights.flat import flatten, from_dict
from hiddenweights.identity import Resolved, id_of, resolve, short_name

RawRecord = Mapping[str, Any]
FINISHED = "finished"
METRIC = "test_accuracy"
FROZEN = ("edge_popup", "sampled", "random", "biprop")  # not iterand, which redraws weights by design
# Summary columns that the analysis uses. Every table has them, empty if the source lacks them.
NUMBERS = (METRIC, "validation_accuracy", "kept", "weights", "seconds", "processor.threads")
PROCESSOR = ("processor.model", "processor.instructions", "processor.precision")
TEXTS = ("weights_checksum", "initial_weights_checksum", "data_digest", "device", *PROCESSOR)
SWEEP = re.compile("[a-z0-9_-]{1,100}")  # other tags of a W&B run are no names of sweeps, and may be anything
LEFT_OUT = ("cell", "name", "sweeps", "key", "source", "reason")


@dataclass(frozen=True, slots=True)
class RawRun:
    """A run as its source has it. `history` has a record per epoch; later attempts may repeat epochs."""

    key: str
    """The name of the run in its source: a cell id, a file, or a W&B run id."""
    cell: str | None
    """Id of the cell; None if the run is not a cell of this project."""
    name: str = ""
    state: str = FINISHED
    reason: str = ""
    """Why the run is not finished, if known."""
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[RawRecord] = ()
    sweeps: frozenset[str] = frozenset()
    started: str = ""
    version: str = ""


class Source(Protocol):
    """A source of runs. `listing` is cheap and `read` is not, so a cache reads only changed runs."""

    name: str
    identity: str
    """The key of the cache: the same for the same source, however it is named."""

    def listing(self) -> dict[str, str]:
        """The key of every run, and a version that changes whenever the run does."""

    def read(self, wanted: Mapping[str, str]) -> Iterator[RawRun]:
        """The runs of these keys and versions, in any order; their `version` is filled in."""

    def plans(self) -> dict[str, tuple[str, ...]]:
        """The planned cells by sweep, if the source stores plans."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Runs as read. `runs` has a row per run, `epochs` a row per logged epoch; both have the run's `key`."""

    runs: pd.DataFrame
    epochs: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Table:
    """The cells, their epochs, and the runs left out (see the docstring of the module)."""

    cells: pd.DataFrame
    epochs: pd.DataFrame
    left_out: pd.DataFrame

    def sweep(self, name: str) -> pd.DataFrame:
        """The finished cells of the sweep `name`."""
        member = self.cells["sweeps"].map(lambda sweeps: name in sweeps.split())
        return self.cells[member & (self.cells["state"] == FINISHED)]

    def finished_sweeps(self) -> set[str]:
        """The names of the sweeps with a finished cell."""
        return {*" ".join(self.cells.loc[self.cells["state"] == FINISHED, "sweeps"]).split()}

    def unchanged(self) -> "pd.Series[bool]":
        """For each cell: whether the checksum of the weights is the initial one after every epoch."""
        last = self.cells["weights_checksum"] == self.cells["initial_weights_checksum"]
        if "weights_checksum" not in self.epochs:
            return last
        logged = self.epochs[["cell", "weights_checksum"]].dropna().drop_duplicates()
        return last & (self.cells["cell"].map(logged.groupby("cell").size()).fillna(1) == 1)


def processors(cells: pd.DataFrame) -> "pd.Series[str]":
    """The kind of processor behind each cell, in words; empty for a cell whose result does not say.

    Results of two kinds may differ in their last digits.
    """
    model, instructions, precision = (cells[name].fillna("").astype("str") for name in PROCESSOR)
    threads = cells["processor.threads"].map(lambda n: f"{n:g} thread" + ("s" if n > 1 else ""))
    words = model + ", " + instructions + ", " + precision + ", " + threads
    return words.where(model != "", "")


def frame(runs: Iterable[RawRun], source: str) -> Raw:
    """The runs as two frames. A run that is not a cell of this version has a `reason` and no config."""
    rows: list[dict[str, Any]] = []
    histories: list[tuple[str, str, Sequence[RawRecord]]] = []
    for run in runs:
        row = {
            "key": run.key,
            "version": run.version,
            "cell": run.cell or "",
            "name": run.name,
            "state": run.state,
            "reason": run.reason,
            "sweeps": " ".join(sorted(filter(SWEEP.fullmatch, run.sweeps))),
            "source": source,
            "started": run.started,
            "usable": False,
        }
        rows.append(row)
        if run.cell is None:
            if run.config and run.state != "damaged":
                row["reason"] = "its config names no cell: a run of another project"
        elif run.config:
            try:
                config = _config(run)
            except UserError as error:
                row["reason"] = run.reason or f"its config is not one of this version: {shown(error)}"
                continue
            row |= flatten(config) | {name: _number(value) for name, value in run.summary.items()}
            row |= {"usable": True, "name": run.name or short_name(config)}
            histories.append((run.cell, run.key, run.history))
    return Raw(pd.DataFrame(rows), _epoch_frame(histories))


def _config(run: RawRun) -> Resolved:
    """The run's config, resolved. Raises `UserError` for one that is another cell's, or not to be printed."""
    config = resolve(from_dict(run.config))
    for name, value in flatten(config).items():
        if isinstance(value, str) and not value.isprintable():
            raise UserError(f"{name}: {value!r} is not printable text")
    if (own := id_of(config)) != run.cell:
        raise UserError(f"it is that of cell {own}")
    return config


def tidy(raw: Raw) -> Table:
    """The table of these runs. Runs that cannot be used are listed in `left_out`.

    If a cell has several runs, the last finished one counts. If attempts overlap, the last row of an epoch
    counts. Unfinished cells keep their row, and so do finished cells whose accuracy is not a fraction (as
    ``failed``).
    """
    # Columns that some sources lack, and finished cells without an accuracy.
    runs = raw.runs.copy()
    for name in NUMBERS:
        runs[name] = pd.to_numeric(runs[name], errors="coerce") if name in runs else np.nan
    for name in TEXTS:
        runs[name] = runs[name].astype("str") if name in runs else pd.Series(pd.NA, runs.index, "str")
    runs["weights_kept"] = (runs["kept"] * runs["weights"]).round()
    broken = runs["usable"] & (runs["state"] == FINISHED) & ~runs[METRIC].between(0, 1)
    runs.loc[broken, "reason"] = f"{METRIC} is missing or not a number in [0, 1]"
    runs.loc[broken, "state"] = "failed"

    # One run per cell: the last finished one, else the last one.
    unusable = runs[~runs["usable"]]
    runs = runs[runs["usable"]]
    runs = runs.assign(_done=runs["state"] == FINISHED)
    runs = runs.sort_values(["cell", "_done", "started", "key"], kind="stable").drop(columns="_done")
    cells = runs.drop_duplicates("cell", keep="last")
    others = runs.drop(index=cells.index)
    used = cells.set_index("cell")[METRIC]
    # All other runs, each with its reason.
    left_out = pd.concat(
        [
            unusable,
            others.assign(reason=[_replaced(row, used[row["cell"]]) for row in others.to_dict("records")]),
            cells[cells["state"] != FINISHED],
        ]
    )
    named = left_out["state"].where(~left_out["state"].isin([FINISHED]), "")
    left_out["reason"] = (named + ": " + left_out["reason"]).str.removeprefix(": ").str.removesuffix(": ")
    return Table(
        cells.drop(columns=["reason", "usable"]).reset_index(drop=True),
        _last_rows(raw.epochs, runs["key"]),
        left_out[list(LEFT_OUT)].reset_index(drop=True),
    )


def _last_rows(epochs: pd.DataFrame, order: "pd.Series[str]") -> pd.DataFrame:
    """One row per cell and epoch, in that order. Of repeated rows the last one counts."""
    # Order the rows like the runs, so that the last row of an epoch is that of the last run.
    runs, keys = pd.factorize(epochs["key"])
    place = pd.Series(np.arange(len(order)), index=order.to_numpy()).reindex(keys).to_numpy()[runs]
    if not (np.diff(place) >= 0).all():
        epochs = epochs.iloc[np.argsort(place, kind="stable")]
    # Sort and remove repeated rows only if needed, because both take long.
    codes = pd.factorize(epochs["cell"])[0]
    step = np.diff(epochs["epoch"].to_numpy(), prepend=-np.inf)
    if not ((np.diff(codes, prepend=-1) > 0) | (step > 0)).all():  # attempts overlap
        epochs = epochs.drop_duplicates(["cell", "epoch"], keep="last")
        epochs = epochs.sort_values(["cell", "epoch"], kind="stable")
    return epochs.drop(columns="key").reset_index(drop=True)


def combine(tables: Sequence[Table]) -> Table:
    """Combine the tables of several sources. Finished results of the same cell must agree.

    Raises `UserError` that names the cells, the sources and the accuracies if they do not.
    """
    if len(tables) == 1:
        return tables[0]
    cells = pd.concat([table.cells for table in tables], ignore_index=True)
    # Finished results of one cell must agree.
    finished = cells[cells["state"] == FINISHED]
    apart = finished.groupby("cell")[METRIC].transform("nunique") > 1
    if apart.any():
        groups = [*finished[apart].groupby("cell")]
        found = "; ".join(
            f"{cell}: " + ", ".join(f"{row[METRIC]:.4f} in {row['source']}" for _, row in rows.iterrows())
            for cell, rows in groups[:3]
        )
        more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
        raise UserError(f"--from: the sources disagree on {METRIC} of cell {found}{more}; name one of them")
    # Keep one row per cell, a finished one if there is one, with the sweeps of all sources.
    cells = cells.assign(_done=cells["state"] == FINISHED).sort_values(
        "_done", ascending=False, kind="stable"
    )
    kept = cells.drop(columns="_done").drop_duplicates("cell").sort_values("cell").reset_index(drop=True)
    sweeps = cells.groupby("cell")["sweeps"].agg(lambda names: " ".join(sorted({*" ".join(names).split()})))
    # Take the epochs from the source of the row, and drop remarks on cells that are finished elsewhere.
    rows = [
        table.epochs[table.epochs["cell"].isin(kept.loc[kept["source"].isin(table.cells["source"]), "cell"])]
        for table in tables
    ]
    left_out = pd.concat([table.left_out for table in tables], ignore_index=True).drop_duplicates()
    here = left_out["cell"].isin(kept.loc[kept["state"] == FINISHED, "cell"])
    return Table(
        kept.assign(sweeps=kept["cell"].map(sweeps)),
        pd.concat(rows, ignore_index=True).drop_duplicates(["cell", "epoch"], ignore_index=True),
        left_out[~here].reset_index(drop=True),
    )


def _replaced(row: Mapping[Any, Any], used: float) -> str:
    if row["state"] != FINISHED:
        return "an attempt that another run of the cell replaced"
    differs = "" if row[METRIC] == used else f"; they differ: {METRIC} {row[METRIC]:.4f} against {used:.4f}"
    return f"a second run of a cell already finished{differs}"


def _number(value: Any) -> Any:
    """Convert strings to floats: W&B stores NaN and infinities as strings."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _epoch_frame(histories: Sequence[tuple[str, str, Sequence[RawRecord]]]) -> pd.DataFrame:
    """Histories as columns: checksums and `precision` as text, all else float64 (other text: NaN)."""
    lengths = [len(history) for _, _, history in histories]
    columns: dict[str, Any] = {"epoch": np.full(sum(lengths), np.nan)}
    start = 0
    for (_, _, history), length in zip(histories, lengths, strict=True):
        for name, values in _columns(history):
            if name not in columns:
                text = name.endswith("_checksum") or name == "precision"
                columns[name] = np.full(sum(lengths), None, object) if text else np.full(sum(lengths), np.nan)
            is_text = columns[name].dtype == object
            columns[name][start : start + length] = values if is_text else _floats(values)
        start += length
    names = {
        "cell": np.repeat(np.array([cell for cell, _, _ in histories], object), lengths),
        "key": np.repeat(np.array([key for _, key, _ in histories], object), lengths),
    }
    texts = {name: pd.Series(found, dtype="str") for name, found in columns.items() if found.dtype == object}
    return pd.DataFrame({**names, **columns, **texts}).astype(dict.fromkeys(names, "str"))


def _columns(history: Sequence[RawRecord]) -> Iterator[tuple[str, Sequence[Any]]]:
    """The columns of the records, without W&B's. Fast if all records have the same keys, as ours do."""
    names = [*history[0]] if history else []
    if all([*record] == names for record in history):
        columns: Iterable[Sequence[Any]] = zip(*(record.values() for record in history), strict=True)
        yield from ((name, values) for name, values in zip(names, columns, strict=True) if name[0] != "_")
        return
    for name in dict.fromkeys(name for record in history for name in record):
        if not name.startswith("_"):
            yield name, [record.get(name) for record in history]


def _floats(values: Sequence[Any]) -> Any:
    try:
        return np.array(values, float)
    except (TypeError, ValueError):
        return pd.to_numeric(pd.Series([_number(value) for value in values], dtype=object), errors="coerce")
