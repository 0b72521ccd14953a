"""Run cells on Ray Tune. This is the only module of the driver that imports Ray."""

import contextlib
import json
import logging
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from hiddenweights.cells.cell import STOPPED_EARLY, failure_record
from hiddenweights.cells.store import Json, Store, StoreAway
from hiddenweights.errors import UserError, shown
from hiddenweights.sweeps import capacity
from hiddenweights.sweeps.progress import Progress
from hiddenweights.sweeps.ray_work import failed_since
from hiddenweights.sweeps.trial import REPORT_EVERY, CellTrial, job_of

MIB = 2**20
QUIET = 5.0  # seconds without a training cell until that is reported


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start one on this machine for the block."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `_Watch` reports the death of a worker
    quiet: Json = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            _without_the_needless()
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=80 * MIB,  # nothing large goes through it
                **quiet,
            )
    except Exception as error:
        raise UserError(_why_not(error, address)) from None
    signal.signal(signal.SIGTERM, on_stop)  # Ray has replaced the handler
    try:
        yield
    finally:
        ray.shutdown()


def _why_not(error: Exception, address: str | None) -> str:
    """Why there is no Ray, as one line."""
    text = shown(str(error).strip())
    if address:
        hint = "" if os.environ.get("RAY_AUTH_MODE") else " (one that asks for a token: RAY_AUTH_MODE=token)"
        return f"--address {address!r}: no Ray cluster answers: {text}{hint}"
    hint = "; set RAY_TMPDIR to a folder with a short path" if "AF_UNIX" in text else ""
    return f"Ray does not start on this machine: {text}{hint}"


def _without_the_needless() -> None:
    """Let the next Ray start without three processes that a launch on one machine does not need.

    They are the autoscaler, the log monitor and the dashboard: 2 s of a processor and 250 MB. No option of
    `ray.init` leaves them out. If a version of Ray has no such methods, it starts with these processes, and
    `tests/test_faults.py` finds them.
    """
    with contextlib.suppress(ImportError):
        from ray._private.node import Node

        for name in ("start_monitor", "start_log_monitor", "start_api_server"):
            setattr(Node, name, lambda self, *args, **options: None)


def place() -> tuple[str, str]:
    """``host:port`` of the central service of the Ray that this process has joined, and its node's id."""
    context = ray.get_runtime_context()
    return str(context.gcs_address), str(context.get_node_id())


def run(
    jobs: Sequence[Json],
    store: Store,
    progress: Progress,
    *,
    folder: str,
    code: Mapping[str, Any],
    wandb_mode: str,
    retries: int,
    patience: float,
    search: bool,
) -> None:
    """Give every job to a worker (again if its worker dies), and return when all have ended.

    Tune keeps its records, which we do not use, in `folder`. `code` is the user's own code (`own.carried`),
    which goes to every worker. So does `wandb_mode`; "": each worker chooses its own.

    Raises `StoreAway` if the store has been unreachable for `patience` seconds. Raises `UserError` if the
    first workers that report have no access to the store, or to the GPU that Ray gave them.
    In a `search` ASHA compares the jobs' validation accuracy after every epoch and stops the worse ones.
    """

    def request(trial: Json) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([job_of(trial)["resources"]])

    watch = _Watch(store, progress, patience)
    stopper = _Stopper(store, progress, patience, watch, _wait_words(jobs))
    # As text, because Tune makes a deep copy of all values of an axis for every trial.
    grid = tune.grid_search([json.dumps(job) for job in jobs])
    with tempfile.TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        tuner = tune.Tuner(
            tune.with_resources(CellTrial, request),
            param_space={
                "job": grid,
                "report_every": 0.0 if search else REPORT_EVERY,
                "code": json.dumps(code),
                "wandb_mode": wandb_mode,
            },
            tune_config=tune.TuneConfig(reuse_actors=True, scheduler=_asha(jobs) if search else None),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[watch],
                stop=stopper,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # cells have their own
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        )
        tuner.fit()
    if watch.unfit:
        raise UserError(watch.unfit)
    if stopper.stop_all():
        raise StoreAway(watch.away or f"the store {store.uri} cannot be used")


def _asha(jobs: Sequence[Json]) -> ASHAScheduler:
    epochs = max(job["config"]["train"]["epochs"] for job in jobs)
    return ASHAScheduler(
        time_attr="epoch",
        metric="validation_accuracy",
        mode="max",
        max_t=epochs + 1,  # after its last epoch a cell still has to be stored
        grace_period=max(1, epochs // 8),
        reduction_factor=3,
    )


def _wait_words(jobs: Sequence[Json]) -> str:
    wanted = {capacity.describe(job["resources"]) for job in jobs}
    return " or ".join(sorted(wanted))


class _Watch(tune.Callback):  # type: ignore[misc]
    """Passes the reports of the workers on to the progress."""

    def __init__(self, store: Store, progress: Progress, patience: float) -> None:
        self._store, self._progress, self._patience = store, progress, patience
        self._trained = False
        self.running: set[str] = set()
        self.away = ""
        """Why a worker gave up waiting for the store, if one did."""
        self.unfit = ""
        """Why a worker can train no cell, if one has reported that before any other worker trained."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.Callback, ()  # Tune pickles its callbacks for a restore that is not used here

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = job_of(trial.config)["cell"]
        self.running.add(cell)
        self._progress.running(cell, 0)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Json, **info: Any
    ) -> None:
        cell = result["cell"]
        self._trained |= result["state"] in ("running", "finished")
        if result["state"] != "running":
            self.running.discard(cell)
        for line in result["said"].splitlines():
            self._progress.warn(line)
        match result["state"]:
            case "running":
                self._progress.running(cell, result["epoch"], result["epoch_seconds"])
            case "finished":
                self._progress.finished(cell, result["test_accuracy"], result["cell_seconds"])
            case "failed":
                self._progress.failed(cell, result["message"])
            case "busy":
                self._progress.left(cell)
            case "unfit":
                self._progress.left(cell)  # other workers may train it
                if self._trained:
                    self._progress.warn(result["message"])
                else:
                    self.unfit = result["message"]
            case "away":
                self._progress.left(cell)
                self.away = result["message"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune keeps statistics of every metric of every trial until the end: 30 KB per trial.
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}
        if trial.last_result["state"] != "running":
            return
        cell, epoch = trial.last_result["cell"], trial.last_result["epoch"]
        message = f"behind the others of its side after epoch {epoch}"
        failure = failure_record(STOPPED_EARLY, message, epoch=epoch)
        self.running.discard(cell)
        self._store.insist(lambda: self._store.fail(cell, failure), self._patience)
        self._progress.stopped_early(cell)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.interrupted(job_of(trial.config)["cell"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = job_of(trial.config)
        cell = job["cell"]
        self.running.discard(cell)
        failure = self._store.insist(lambda: self._store.failure(cell), self._patience)
        known = failure if failed_since(failure, job["launched"]) else None
        self._progress.failed(cell, known["message"] if known else "its worker died, again and again")


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Ends the launch if the store has been unreachable for too long, or if no worker can train.

    Reports what the launch waits for: the store, or, while no cell is trained, a worker.
    """

    LOOK = 2.0  # seconds between checks
    MOST = 8  # running cells whose locks are read

    def __init__(self, store: Store, progress: Progress, patience: float, watch: _Watch, wanted: str) -> None:
        self._store, self._progress, self._patience = store, progress, patience
        self._watch, self._wanted = watch, wanted
        self._cell_waits: str | None = None
        self._looked = self._well = self._busy = time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.stopper.NoopStopper, ()  # Tune pickles it, too

    def __call__(self, trial_id: str, result: Json) -> bool:
        return False

    def stop_all(self) -> bool:
        now = time.monotonic()
        if now - self._looked > self.LOOK:
            self._looked = now
            if trouble := self._store.trouble():
                self._progress.note(f"the store {self._store.uri} cannot be used ({trouble}); waiting for it")
            else:
                self._progress.note(self._waiting(now))
                self._well = now
                waiting = self._store.waiting(islice(self._watch.running, self.MOST))
                if waiting and waiting != self._cell_waits:
                    self._progress.say(f"a cell waits for the store {self._store.uri}: {waiting}")
                self._cell_waits = waiting
        return bool(self._watch.away or self._watch.unfit) or now - self._well > self._patience + self.LOOK

    def _waiting(self, now: float) -> str:
        if self._watch.running:
            self._busy = now
        if now - self._busy < QUIET:
            return ""
        coming = capacity.pending()
        return f"waiting for a worker with {self._wanted} free" + (f" ({coming})" if coming else "")
