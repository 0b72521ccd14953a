"""Read W&B's offline log, a `.wandb` file, without a server and without an upload.

Each record (see `wandb_log`) is a `wandb.proto` message, a format private to wandb (checked with 0.31).
A test compares this reader with W&B's own command ``wandb leet inspect --json``.
"""

import datetime
import math
from pathlib import Path
from typing import Any

from hiddenweights.analysis.table import FINISHED, RawRun
from hiddenweights.cells.format import SCALARS, Damaged, read_value
from hiddenweights.cells.wandb_log import records
from hiddenweights.errors import shown


def read_run(path: Path, version: str = "") -> RawRun:
    """The run in one `.wandb` file. A file without a run record (its process died at once) is not a cell.

    The run of a damaged file has the state ``damaged``. The reason names the file.
    """
    log = _Log()
    damage = ""
    try:
        for record in records(path):
            log.add(record, path)
    except Damaged as error:
        damage = str(error)
    state, reason = wandb_state(log.summary, log.exit_code)
    if not log.named:
        reason = "its file holds no run record (killed before the first flush)"
    elif state == FINISHED and (lost := log.missing_epochs()):
        state, reason = "incomplete", f"its file lacks {lost} of the epochs that its summary counts"
    cell = log.config.pop("cell", None)
    return RawRun(
        key=str(path),
        cell=cell if isinstance(cell, str) else None,
        state="damaged" if damage else state,
        reason=damage or reason,
        config={name: value for name, value in log.config.items() if name != "_wandb"},
        summary=scalars(log.summary),
        history=log.history,
        sweeps=frozenset(log.sweeps),
        started=log.started,
        version=version,
    )


class _Log:
    """What the records of one file come to."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.sweeps: set[str] = set()
        self.started = ""
        self.exit_code: int | None = None
        self.named = False

    def add(self, content: bytes, path: Path) -> None:
        """Apply one record. Raises `Damaged` that names `path` if it is not valid."""
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        try:
            record = Record.FromString(content)
            match record.WhichOneof("record_type"):
                case "run":
                    run, self.named = record.run, True
                    _update(self.config, run.config.update)
                    self.sweeps |= {*run.tags, run.run_group} - {""}
                    self.started = run.start_time.ToDatetime(datetime.UTC).isoformat()
                case "config":
                    _update(self.config, record.config.update)
                case "history":
                    row = _update({}, record.history.item)
                    self.history.append({name: v for name, v in row.items() if type(v) in SCALARS})
                case "summary":
                    _update(self.summary, record.summary.update)
                case "exit":
                    self.exit_code = record.exit.exit_code
        except (DecodeError, ValueError, OverflowError) as error:
            raise Damaged(f"{path} is damaged: {shown(error)}") from None

    def missing_epochs(self) -> int:
        """The number of epochs that the summary counts but the history lacks."""
        last = self.summary.get("epoch")
        if not isinstance(last, int | float) or not math.isfinite(last):
            return 0
        logged = {row["epoch"] for row in self.history if type(row.get("epoch")) in (int, float)}
        return max(0, int(last) - len(logged))


def wandb_state(summary: dict[str, Any], exit_code: int | None) -> tuple[str, str]:
    """State and reason of a W&B run. It is finished only if the trainer itself recorded that."""
    if summary.get("finished") is True:
        return "finished", ""
    if exit_code is None:
        return "crashed", "its log ends without an exit record (killed, or still running)"
    return "failed", f"exit code {exit_code} before the last epoch was done"


def scalars(summary: dict[str, Any]) -> dict[str, Any]:
    """The columns of the summary, without nested values, W&B's internal values, and per-layer values."""
    return {
        name: value
        for name, value in summary.items()
        if isinstance(value, str | int | float) and "/" not in name and not name.startswith("_")
        if name != "finished"
    }


def _update(target: dict[str, Any], items: Any) -> dict[str, Any]:
    """Apply W&B's updates to `target`. Nested values become a dict of one level."""
    for item in items:
        name, *inner = item.nested_key or [item.key]
        value = read_value(item.value_json, "a value")
        if inner:
            branch = target.setdefault(name, {})
            target[name] = {**branch, ".".join(inner): value} if isinstance(branch, dict) else value
        else:
            target[name] = value
    return target
