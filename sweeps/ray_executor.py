"""Cells on Ray Tune: the only module of the driver that imports Ray."""

import contextlib
import json
import logging
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from hiddenweights.cells.cell import STOPPED_EARLY, failure_record
from hiddenweights.cells.store import Json, Store, StoreAway
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.progress import Progress
from hiddenweights.sweeps.trial import REPORT_EVERY, CellTrial, job_of

Resources = dict[str, float]
MIB = 2**20
MOST_LOADERS = 16  # processes that decode images for one GPU (docs/imagenet.md)
FIRST_WORKER = 120.0  # seconds that a cluster without any worker is given to start one


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start one on this machine for the block."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker's death is said by `_Watch`
    quiet: Json = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=80 * MIB,  # nothing of size travels through it
                **quiet,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address {address!r}: no Ray cluster answers: {error}") from None
    signal.signal(signal.SIGTERM, on_stop)  # Ray has put its own in the place
    try:
        yield
    finally:
        ray.shutdown()


def capacity() -> Resources:
    """CPUs and GPUs of the largest node that there is, or that the cluster would start when asked.

    Of a cluster that has only just come up, the head is there and the workers are on their way.
    """
    deadline = time.monotonic() + FIRST_WORKER
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # The only look inside Ray: what an autoscaling cluster may grow to has no public name.
        config = ray._private.state.state.get_cluster_config()
        nodes += [dict(group.resources) for group in config.node_group_configs] if config else []
        largest = {kind: max(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU")}
        if largest["CPU"] or time.monotonic() > deadline:
            return largest
        time.sleep(1)


def wanted_by(config: CellConfig, options: Options, measured: Measured, largest: Resources) -> Resources:
    """What a cell asks of Ray: `options.gpus` of a GPU (None: a share, where there are any), and CPUs.

    Of these one a thread, and for the images of a folder, which are decoded while the network trains, the
    CPUs of a node in proportion to its GPUs.
    """
    together = options.processes()
    share = measured.gpu_share(config) if options.gpus is None else options.gpus
    if together > 1:
        share = float(together)
    if config.train.device == "cpu" or (
        config.train.device == "auto" and options.gpus is None and not largest["GPU"]
    ):
        share = 0.0
    cpus = float(together * config.train.threads)
    if config.data.name.startswith("folder:"):
        part = largest["CPU"] * share / largest["GPU"] if share and largest["GPU"] else 2 * cpus
        most = together * (config.train.threads + MOST_LOADERS)
        cpus = max(cpus, float(int(min(part, most, largest["CPU"]))))
    return {"CPU": cpus, "GPU": share}


def loaders(config: CellConfig, options: Options, wanted: Resources) -> int:
    """How many processes decode images for each that trains."""
    return int(wanted["CPU"] / options.processes() - config.train.threads)


def alone(wanted: Resources, largest: Resources) -> Resources:
    """What a cell asks for to have no other beside it: a whole GPU, or a node's CPUs where it uses none."""
    if wanted["GPU"]:
        return wanted | {"GPU": max(1.0, wanted["GPU"])}
    return wanted | {"CPU": largest["CPU"]}


def check(wanted: Iterable[Resources], gpus: float | None, largest: Resources) -> None:
    """Raise `UserError` when a cell wants more than any node will have: it would wait for ever."""
    for resources in wanted:
        for kind, n in resources.items():
            if n > largest[kind]:
                name = "train.threads" if kind == "CPU" else "--gpus" if gpus else "train.device"
                raise UserError(f"{name}: a cell wants {n:g} {kind}; the largest node has {largest[kind]:g}")


def run(
    jobs: Sequence[Json],
    store: Store,
    progress: Progress,
    *,
    retries: int,
    patience: float,
    search: bool,
) -> None:
    """Hand every job to a worker, once (more often where workers die), and return when all have ended.

    Raises `StoreAway` when the store has been away for `patience` seconds.
    In a `search` ASHA compares the jobs' validation accuracy after every epoch and stops the worse ones.
    """
    epochs = max(job["config"]["train"]["epochs"] for job in jobs)
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="validation_accuracy",
        mode="max",
        max_t=epochs + 1,  # at its last epoch a cell has still to be written down
        grace_period=max(1, epochs // 8),
        reduction_factor=3,
    )

    def request(trial: Json) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([job_of(trial)["resources"]])

    away = _WhenAway(store, progress, patience)
    # As text, because Tune makes a deep copy of all values of an axis for every trial.
    grid = tune.grid_search([json.dumps(job) for job in jobs])
    with tempfile.TemporaryDirectory(prefix="hiddenweights-ray-") as scratch, warnings.catch_warnings():
        tuner = tune.Tuner(
            tune.with_resources(CellTrial, request),
            param_space={"job": grid, "report_every": 0.0 if search else REPORT_EVERY},
            tune_config=tune.TuneConfig(reuse_actors=True, scheduler=asha if search else None),
            run_config=tune.RunConfig(
                storage_path=scratch,  # Tune's own notes, which nobody reads
                verbose=0,
                callbacks=[_Watch(store, progress)],
                stop=away,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a cell has its own
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        )
        tuner.fit()
    if away.stop_all():
        raise StoreAway(f"the store {store.uri} cannot be used, and was waited for in vain")


class _Watch(tune.Callback):  # type: ignore[misc]
    """Tells the progress what the workers report."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store, self._progress = store, progress

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.Callback, ()  # Tune pickles its callbacks for a restore, which is not used here

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.running(job_of(trial.config)["cell"], 0)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Json, **info: Any
    ) -> None:
        cell = result["cell"]
        match result["state"]:
            case "running":
                self._progress.running(cell, result["epoch"])
            case "finished":
                self._progress.finished(cell, result["test_accuracy"], result["cell_seconds"])
            case "failed":
                self._progress.failed(cell, result["message"])
            case "busy":
                self._progress.left(cell)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune keeps statistics of every metric of every trial to the end: 30 KB a trial.
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}
        if trial.last_result["state"] != "running":
            return
        cell, epoch = trial.last_result["cell"], trial.last_result["epoch"]
        message = f"behind the others of its side after epoch {epoch}"
        self._store.fail(cell, failure_record(STOPPED_EARLY, message, epoch=epoch))
        self._progress.stopped_early(cell)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.interrupted(job_of(trial.config)["cell"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = job_of(trial.config)["cell"]
        failure = self._store.failure(cell)
        self._progress.failed(cell, failure["message"] if failure else "its worker died, again and again")


class _WhenAway(tune.Stopper):  # type: ignore[misc]
    """Ends the launch when the store has been away for as long as one waits for it."""

    LOOK = 2.0  # seconds between looks

    def __init__(self, store: Store, progress: Progress, patience: float) -> None:
        self._store, self._progress, self._patience = store, progress, patience
        self._looked = self._well = time.monotonic()

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
                self._progress.note("")
                self._well = now
        return now - self._well > self._patience + self.LOOK
