"""The tidy table that every figure and claim is made of, and how raw runs become one.

`Table.cells` has one row a cell:

========================  ==================================================================
``cell``, ``name``        identity and a name for people
``state``                 finished, failed, crashed, running or missing
``sweeps``                names of the sweeps it belongs to, space-separated
``model.arch`` ...        the resolved config under the names of `hiddenweights.config.flatten`
``test_accuracy`` ...     the last epoch's record, `best_validation_accuracy`, `best_epoch`,
                          `initial_weights_checksum`, total training `seconds`, `device`,
                          `weights` of the masked layers and `weights_kept` of them
``source``, ``key``       where it was read, and the run's own name there
``version``, ``started``  changes whenever the run does; ISO time
========================  ==================================================================

`Table.epochs` has one row a (cell, epoch): `cell`, `epoch` and the columns of the record. Accuracies
and kept fractions are fractions in [0, 1]. `Table.left_out` says which runs were not used, and why.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hiddenweights.config import flatten, from_dict, resolve, short_name
from hiddenweights.errors import UserError

FINISHED = "finished"
METRIC = "test_accuracy"
# Summary columns that the analysis uses: there in every table, empty where a source lacks them.
NUMBERS = (METRIC, "validation_accuracy", "kept", "weights", "seconds")
TEXTS = ("weights_checksum", "initial_weights_checksum", "device")
LEFT_OUT = ("cell", "name", "sweeps", "key", "source", "reason")


@dataclass(frozen=True, slots=True)
class Run:
    """One run as a source holds it; `history` has one record an epoch, attempts possibly repeated."""

    key: str
    """The run's own name in its source: a cell id, a file, a W&B run id."""
    cell: str | None
    """Identity of the cell; None for a run that is no cell of this project."""
    state: str = FINISHED
    reason: str = ""
    """Why the run is not finished, where that is known."""
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    sweeps: frozenset[str] = frozenset()
    started: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One row a cell, one row a (cell, epoch), and what was left out (see the module's header)."""

    cells: pd.DataFrame
    epochs: pd.DataFrame
    left_out: pd.DataFrame

    def sweep(self, name: str) -> pd.DataFrame:
        """The finished cells of the sweep `name`."""
        member = self.cells["sweeps"].map(lambda sweeps: name in sweeps.split())
        return self.cells[member & (self.cells["state"] == FINISHED)]


def frame(runs: Iterable[Run], source: str) -> Table:
    """Raw runs as one row a run (`cells`, keyed by `key`) and one a logged epoch (`epochs`); not yet tidy."""
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    blocks: list[tuple[str, str, Sequence[Mapping[str, Any]]]] = []
    for run in runs:
        if run.cell is None:
            reason = "its config names no cell: a run of another project" if run.config else run.reason
            left_out.append(_left_out(run, source, reason))
            continue
        if not run.config:
            left_out.append(_left_out(run, source, f"{run.state}: {run.reason}"))
            continue
        try:
            config = resolve(from_dict(run.config))
        except UserError as error:
            left_out.append(_left_out(run, source, f"its config is not one of this version: {error}"))
            continue
        rows.append(
            {
                "cell": run.cell,
                "name": short_name(config),
                "state": run.state,
                "reason": run.reason,
                "sweeps": " ".join(sorted(run.sweeps)),
                **flatten(config),
                **{name: _number(value) for name, value in run.summary.items()},
                "source": source,
                "key": run.key,
                "version": run.version,
                "started": run.started,
            }
        )
        blocks.append((run.cell, run.key, run.history))
    return Table(pd.DataFrame(rows), _epoch_frame(blocks), pd.DataFrame(left_out, columns=LEFT_OUT))


def tidy(raw: Table) -> Table:
    """One row a cell and one a (cell, epoch); whatever cannot be used is moved to `left_out`.

    Of several runs of one cell the last finished one counts; where attempts overlap, the last row of
    an epoch does. Finished cells whose accuracy is not a number, and cells that are not finished,
    keep their row (state ``failed`` for the former) and are named in `left_out`.
    """
    if raw.cells.empty:
        return raw
    cells = raw.cells.assign(_done=raw.cells["state"] == FINISHED)
    cells = cells.sort_values(["cell", "_done", "started", "key"], kind="stable").drop(columns="_done")
    for name in NUMBERS:
        cells[name] = pd.to_numeric(cells[name], errors="coerce") if name in cells else np.nan
    for name in TEXTS:
        cells[name] = cells[name].astype("str") if name in cells else pd.Series(pd.NA, cells.index, "str")
    cells["weights_kept"] = cells["kept"] * cells["weights"]
    broken = (cells["state"] == FINISHED) & ~np.isfinite(cells[METRIC])
    cells.loc[broken, "reason"] = f"{METRIC} is missing or not a number"
    cells.loc[broken, "state"] = "failed"

    kept = cells.drop_duplicates("cell", keep="last")
    others = cells.drop(index=kept.index)
    accuracy = kept.set_index("cell")[METRIC]
    spare = [
        {**_names(row), "reason": _duplicate_reason(row, accuracy[row["cell"]])}
        for row in others.to_dict("records")
    ]
    unfinished = [
        {**_names(row), "reason": f"{row['state']}: {row['reason']}".removesuffix(": ")}
        for row in kept[kept["state"] != FINISHED].to_dict("records")
    ]
    epochs = raw.epochs
    if len(others) and len(epochs):
        order = pd.Series(np.arange(len(cells)), index=cells["key"])
        epochs = epochs.assign(_order=epochs["key"].map(order)).sort_values("_order", kind="stable")
        epochs = epochs.drop(columns="_order")
    if len(epochs):
        epochs = epochs.drop_duplicates(["cell", "epoch"], keep="last")
        epochs = epochs.sort_values(["cell", "epoch"], kind="stable").drop(columns="key")
    left_out = pd.concat(
        [raw.left_out, pd.DataFrame(spare, columns=LEFT_OUT), pd.DataFrame(unfinished, columns=LEFT_OUT)]
    )
    return Table(
        kept.drop(columns="reason").reset_index(drop=True),
        epochs.reset_index(drop=True),
        left_out.reset_index(drop=True),
    )


def _names(row: Mapping[Any, Any]) -> dict[str, str]:
    return {name: row[name] for name in LEFT_OUT[:-1]}


def _left_out(run: Run, source: str, reason: str) -> dict[str, str]:
    sweeps = " ".join(sorted(run.sweeps))
    return dict(zip(LEFT_OUT, (run.cell or "", "", sweeps, run.key, source, reason), strict=True))


def _duplicate_reason(row: Mapping[Any, Any], used: float) -> str:
    if row["state"] != FINISHED:
        return f"{row['state']}: an attempt that another run of the cell replaced"
    differs = "" if row[METRIC] == used else f"; they differ: {METRIC} {row[METRIC]:.4f} against {used:.4f}"
    return f"a second run of a cell already finished{differs}"


def _number(value: Any) -> Any:
    """W&B writes the floats that JSON has not as strings."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _epoch_frame(blocks: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]]) -> pd.DataFrame:
    """Histories as columns. Checksums are text, everything else is float64 (foreign text becomes NaN)."""
    lengths = [len(history) for _, _, history in blocks]
    total, start = sum(lengths), 0
    columns: dict[str, Any] = {}
    for (_, _, history), length in zip(blocks, lengths, strict=True):
        for name in dict.fromkeys(name for record in history for name in record):
            if name.startswith("_"):
                continue
            values = [record.get(name) for record in history]
            if name not in columns:
                text = name.endswith("_checksum")
                columns[name] = np.full(total, None, object) if text else np.full(total, np.nan)
            columns[name][start : start + length] = (
                values if columns[name].dtype == object else _floats(values)
            )
        start += length
    names = {
        "cell": np.repeat(np.array([cell for cell, _, _ in blocks], object), lengths),
        "key": np.repeat(np.array([key for _, key, _ in blocks], object), lengths),
        "epoch": columns.pop("epoch", np.full(total, np.nan)),
    }
    return pd.DataFrame({**names, **columns})


def _floats(values: list[Any]) -> Any:
    try:
        return np.array(values, float)
    except (TypeError, ValueError):
        return pd.to_numeric(pd.Series([_number(value) for value in values], dtype=object), errors="coerce")
