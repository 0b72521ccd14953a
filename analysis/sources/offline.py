"""Read W&B's offline log, a `.wandb` file, without a server and without an upload.

The format is private to wandb (checked with 0.31): a header of 7 bytes, then blocks of 32 KiB with records
in the format of LevelDB's log (crc32, length, type). Each record is a `wandb.proto` message and may be split
over blocks. A test compares this reader with W&B's own command ``wandb leet inspect --json``.
"""

import datetime
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hiddenweights.analysis.table import Run

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of each record in order, up to the end or to the first incomplete or damaged record.

    A killed process leaves an incomplete record at the end, so an early end is not an error. A file without
    the header has no records.
    """
    data = path.read_bytes()
    if not data.startswith(_HEADER):
        return
    position, parts = len(_HEADER), bytearray()
    while position + 7 <= len(data):
        if _BLOCK - position % _BLOCK < 7:  # no record header fits: the rest of the block is padding
            position += _BLOCK - position % _BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + 7 : position + 7 + length]
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += 7 + length
        if kind in (_FULL, _FIRST):
            parts.clear()
        parts += body
        if kind in (_FULL, _LAST):
            yield bytes(parts)


def read_run(path: Path, version: str = "") -> Run:
    """The run in one `.wandb` file. A file without a run record (its process died at once) is not a cell."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    sweeps: set[str] = set()
    started, exit_code, named = "", None, False
    for chunk in chunks(path):
        record = Record.FromString(chunk)
        match record.WhichOneof("record_type"):
            case "run":
                run, named = record.run, True
                _update(config, run.config.update)
                sweeps |= {*run.tags, run.run_group} - {""}
                started = run.start_time.ToDatetime(datetime.UTC).isoformat()
            case "config":
                _update(config, record.config.update)
            case "history":
                history.append(_update({}, record.history.item))
            case "summary":
                _update(summary, record.summary.update)
            case "exit":
                exit_code = record.exit.exit_code
    state, reason = wandb_state(summary, exit_code)
    if not named:
        reason = "its file holds no run record (killed before the first flush)"
    return Run(
        key=str(path),
        cell=config.pop("cell", None),
        state=state,
        reason=reason,
        config={name: value for name, value in config.items() if name != "_wandb"},
        summary=scalars(summary),
        history=history,
        sweeps=frozenset(sweeps),
        started=started,
        version=version,
    )


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
        value = json.loads(item.value_json)
        if inner:
            branch = target.setdefault(name, {})
            target[name] = {**branch, ".".join(inner): value} if isinstance(branch, dict) else value
        else:
            target[name] = value
    return target
