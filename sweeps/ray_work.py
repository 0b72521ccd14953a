"""Definitions shared by a launch and the process that runs Ray for it."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from hiddenweights.cells.store import Json
from hiddenweights.identity import Resolved
from hiddenweights.sweeps.options import Options

MARK = "HIDDENWEIGHTS_LAUNCH"  # environment variable that marks all processes of the Ray of a launch
PULSE = 2.0  # seconds between two signs of life of the process that runs Ray
STOP = 20.0  # time limit in seconds for processes to end


@dataclass(frozen=True, kw_only=True)
class Work:
    """The settings of the process that runs Ray."""

    name: str
    cells: Mapping[str, Resolved]
    """All cells that may be asked for."""
    store: str
    launched: str
    options: Options
    wandb_mode: str = ""
    """The mode of W&B for all workers; "": each chooses its own."""
    code: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The user's own code (`own.carried`)."""


def failed_since(failure: Json | None, began: str) -> bool:
    """Whether `failure` is one of the launch that `began` then (in ISO format), and not of an earlier one."""
    return failure is not None and str(failure.get("time", "")) >= began


def kill_all(session: int, mark: str) -> None:
    """Kill all other processes of the `session`, and those whose environment has `MARK` set to `mark`.

    Both are needed, because W&B's service has a separate session, and Ray's workers overwrite their
    environment. Returns when all have ended, or after `STOP` seconds.
    """
    deadline = time.monotonic() + STOP
    while (found := [*_started(session, mark)]) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _started(session: int, mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = os.getsid(process.pid) == session or process.environ().get(MARK) == mark
            if ours and process.pid != os.getpid() and lives(process):
                yield process


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
