"""The Ray worker: it trains one cell after another."""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Generator
from typing import Any

from ray import tune

from hiddenweights import own
from hiddenweights.cells.cell import TIME_LIMIT, TRACKING, cell_epochs, failure_record, installed_trackers
from hiddenweights.cells.store import Busy, Json, LeaseLost, Store, StoreAway
from hiddenweights.errors import RankDied
from hiddenweights.flat import from_dict
from hiddenweights.garbage import collect_rarely
from hiddenweights.records import Record
from hiddenweights.sweeps.host import gpu_trouble, store_trouble
from hiddenweights.sweeps.ray_work import failed_since

# Seconds between reports to the driver, because each costs it about 10 ms.
REPORT_EVERY = 2.0
# Seconds that a worker waits for a store that it has never seen.
FIRST_LOOK = 30.0
# Seconds that an unfit worker holds a cell, so that it does not take (and fail) all other cells at once.
UNFIT_PAUSE = 10.0


def job_of(config: Json) -> Json:
    """The job in the config of a trial."""
    job: Json = json.loads(config["job"])
    return job


class CellTrial(tune.Trainable):  # type: ignore[misc]
    """Trains the cell of its job (see `job_of`), and then the next one, because Tune reuses actors.

    A report has the id of the cell, its `state`, a few scalars, and `said`, lines for people. The state is
    running, finished, failed, busy (another launch trains the cell), away (the store was unreachable for
    too long), or unfit (this worker has no access to the store, or to the GPU that Ray gave it). An
    exception of the cell is reported and does not crash the worker, so that Tune tries again only if a
    worker has died, or one of the processes that train the cell with it.
    """

    def setup(self, config: Json) -> None:
        collect_rarely()  # the cell will import torch and its trackers
        # Nothing of the cell yet: Tune may give it to another, cached actor instead.
        self._epochs: Generator[Record, None, Json] | None = None
        self._watchdog: threading.Timer | None = None
        self._store: Store | None = None
        self._fit: bool | None = None  # unknown
        self._job, self._report_every = job_of(config), config["report_every"]
        own.receive(json.loads(config["code"]))
        if not self._job["resources"]["GPU"] and self._job["config"]["train"]["device"] == "auto":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides the GPUs of others, but not all of them
        if config["wandb_mode"]:
            os.environ["WANDB_MODE"] = config["wandb_mode"]
        self._said = _Said()
        logging.getLogger(TRACKING).addHandler(self._said)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def reset_config(self, new_config: Json) -> bool:
        self.cleanup()
        self._job, self._report_every = job_of(new_config), new_config["report_every"]
        return True

    def cleanup(self) -> None:
        """Stop the current cell. Its lease is released, and its checkpoint remains."""
        if self._watchdog:
            self._watchdog.cancel()
            self._watchdog = None
        if self._epochs:
            self._epochs.close()
            self._epochs = None

    def step(self) -> dict[str, Any]:
        report = self._step()
        if report.get(tune.result.DONE):
            self.cleanup()  # or the watchdog would kill the next cell, or fail one of another launch
        return report | {"said": self._said.take()}

    def _step(self) -> dict[str, Any]:
        cell = self._job["cell"]
        try:
            if not self._fit and (trouble := self._trouble()):
                return {"cell": cell, "state": "unfit", "message": trouble, tune.result.DONE: True}
            return {"cell": cell, **self._advance()}
        except (Busy, LeaseLost):
            return {"cell": cell, "state": "busy", tune.result.DONE: True}
        except RankDied:
            self.cleanup()
            raise
        except StoreAway as error:  # for the other cells, too
            return {"cell": cell, "state": "away", "message": str(error), tune.result.DONE: True}
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return {"cell": cell, "state": "failed", "message": message, tune.result.DONE: True}

    def _advance(self) -> dict[str, Any]:
        if self._epochs is None:
            store = self._opened()
            failure = store.insist(lambda: store.failure(self._job["cell"]), self._job["patience"])
            if failure and not failure["transient"] and failed_since(failure, self._job["launched"]):
                # It is not tried again in this launch.
                return {"state": "failed", "message": failure["message"], tune.result.DONE: True}
            self._epochs = cell_epochs(
                from_dict(self._job["config"]),
                store,
                sweep=self._job["sweep"],
                launch=self._job["launched"],
                patience=self._job["patience"],
                trackers=installed_trackers(),
                ranks=self._job["ranks"],
                loaders=self._job["loaders"],
            )
            self._watch(store)
        until = time.monotonic() + self._report_every
        while True:
            try:
                record = next(self._epochs)
            except StopIteration as end:
                result: Json = end.value
                return {
                    "state": "finished",
                    **_scalars(result["summary"]),
                    "cell_seconds": result["seconds"],
                    tune.result.DONE: True,
                }
            if time.monotonic() >= until:
                return {"state": "running", **_scalars(record), "epoch_seconds": record["seconds"]}

    def _opened(self) -> Store:
        self._store = self._store or Store(self._job["store"])  # all jobs of a launch share one
        return self._store

    def _trouble(self) -> str | None:
        """Why this worker can train no cell at all; None if it can. Checked before its first cell."""
        store = self._opened()
        if self._fit is False:
            time.sleep(UNFIT_PAUSE)
        deadline = time.monotonic() + min(FIRST_LOOK, self._job["patience"])
        while (trouble := store_trouble(store)) and time.monotonic() < deadline:
            time.sleep(1)  # a shared folder may show its state of some seconds ago
        if not trouble and (trouble := gpu_trouble(self._job["resources"]["GPU"])) and self._fit is None:
            with contextlib.suppress(OSError):
                store.fail(self._job["cell"], failure_record("NoGPU", trouble, attempt=0, transient=True))
        self._fit = trouble is None
        return trouble

    def _watch(self, store: Store) -> None:
        """Kill this worker if the cell exceeds its time limit, because a hanging cell cannot be stopped."""
        limit = self._job["time_limit"]
        if limit is None:
            return
        cell = self._job["cell"]

        def kill() -> None:
            failure = failure_record(TIME_LIMIT, f"TimeLimit: not finished after {limit:g} s")
            try:
                store.fail(cell, failure)
            finally:
                os._exit(1)

        self._watchdog = threading.Timer(limit, kill)
        self._watchdog.daemon = True
        self._watchdog.start()


class _Said(logging.Handler):
    """Collects log messages for the launch to print, because the output of a worker is not shown."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def take(self) -> str:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return "\n".join(lines)


def _end_with(parent: int) -> None:
    """End this worker when its raylet has ended. Ray itself would let it train on, without any use."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _scalars(record: Record) -> dict[str, float | int | str]:
    names = ("epoch", "test_accuracy", "validation_accuracy")
    return {name: record[name] for name in names if name in record}
