"""The process that runs Ray for a launch: it starts or joins Ray, runs Tune and reports (see `supervise`).

Messages to the launch: ``("ready", host:port of Ray's head, id of its own node)``; ``("pulse", number of live
nodes, whether its own node lives)``; ``("event", name, *arguments)``, a call of `Progress`; ``("done",)`` per
request; ``("raised", error)`` and ``("lost", why)``, which end it. Requests: ``(cells, measured, alone)``.
"""

import os
import queue
import shutil
import sys
import threading
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

from hiddenweights.cells.store import Json, Store, StoreAway
from hiddenweights.errors import UserError, shown
from hiddenweights.flat import to_dict
from hiddenweights.garbage import collect_rarely
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.progress import Progress
from hiddenweights.sweeps.ray_work import MARK, PULSE, Work, kill_all

# Turn off parts of Ray that we do not need: loggers that import torch into the driver, a report format that
# cannot be silenced, a SIGINT handler that returns as if the work were done, snapshots for a restore that we
# do not use, usage statistics, changes of the directory and of the devices that a worker sees, workers that
# start in advance (Tune's get another environment, which is why those would never train), and the rule that
# every report of a search has an accuracy (a cell that failed, or that another launch trains, has none).
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # the live view shows it
}


MESSAGES = "messages.log"  # in the folder of this process: all that it and its Ray print


class _Launch:
    """The launch at the other end of the pipe. If it dies, this process and all of its Ray end, too."""

    def __init__(self, pipe: Connection, mark: str, folder: str) -> None:
        self._pipe, self._mark, self._folder = pipe, mark, folder
        self._sending = threading.Lock()
        self.requests: queue.SimpleQueue[tuple[list[str], Measured, bool]] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, *message: Any) -> None:
        """One message, from any thread."""
        with self._sending:
            self._pipe.send(message)

    def _receive(self) -> None:
        try:
            while True:
                self.requests.put(self._pipe.recv())
        except (EOFError, OSError):
            kill_all(os.getpid(), self._mark)
            shutil.rmtree(self._folder, ignore_errors=True)
            os._exit(1)


class _Reports:
    """A `Progress` whose calls are messages to the launch."""

    def __init__(self, launch: _Launch) -> None:
        self._launch = launch

    def __getattr__(self, name: str) -> Any:
        return partial(self._launch.send, "event", name)


def main(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    """Serve the launch at the other end of `pipe` until it interrupts or leaves.

    `folder` is for the messages of this process and for Tune's records. The launch removes it.
    """
    collect_rarely()
    os.setsid()  # Ctrl-C goes to the launch, which passes it on
    with open(os.path.join(folder, MESSAGES), "w") as file:
        for stream in (1, 2):  # also for Ray, which writes pages of text when it dies
            os.dup2(file.fileno(), stream)
    os.environ[MARK] = mark
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if not work.options.address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on loopback only, also on Linux
        # Waiting trials. Ray's default of 200 is for growing clusters; each one costs the driver time.
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(max(16, 2 * (os.cpu_count() or 1))))
    launch = _Launch(pipe, mark, folder)
    try:
        from hiddenweights.sweeps import (
            ray_executor,
        )  # Ray reads its environment at import

        with ray_executor.cluster(work.options.address):
            _serve(work, launch, folder)
    except KeyboardInterrupt:
        sys.exit(0)
    except UserError as error:
        launch.send("raised", error)


def _serve(work: Work, launch: _Launch, folder: str) -> None:
    """Train the cells of one request after another. Errors are reported before Ray itself is stopped."""
    from hiddenweights.sweeps import capacity, ray_executor

    threading.Thread(target=_pulse, args=(launch,), daemon=True).start()
    try:
        progress, options = cast(Progress, _Reports(launch)), work.options
        nodes = capacity.survey(work.cells.values(), options, progress.note)
        store = Store(work.store)
        store.seen = True  # the launch has prepared the store
        launch.send("ready", *ray_executor.place())
        while True:
            cells, measured, alone = launch.requests.get()
            wanted = {
                cell: capacity.wanted_by(work.cells[cell], options, measured, nodes.largest) for cell in cells
            }
            capacity.check(wanted.values(), options, nodes)
            jobs = [
                _job(work, cell, one, capacity.alone(one, nodes.largest) if alone else one)
                for cell, one in wanted.items()
            ]
            ray_executor.run(
                jobs,
                store,
                progress,
                folder=folder,
                code=work.code,
                wandb_mode=work.wandb_mode,
                retries=options.retries,
                patience=options.patience,
                search=options.search,
            )
            launch.send("done")
    except (UserError, StoreAway) as error:
        launch.send("raised", error)
    except Exception as error:
        traceback.print_exc()
        # The last line, because the message of Tune's error is a whole traceback.
        launch.send("lost", f"{type(error).__name__}: {shown((str(error).splitlines() or [''])[-1])}")


def _job(work: Work, cell: str, wanted: dict[str, float], reserved: dict[str, float]) -> Json:
    """The job of a cell that uses the resources `wanted`. It may reserve more, to run alone."""
    from hiddenweights.sweeps import capacity

    return {
        "cell": cell,
        "config": to_dict(work.cells[cell]),
        "resources": reserved,
        "store": work.store,
        "sweep": work.name,
        "launched": work.launched,
        "time_limit": work.options.time_limit,
        "patience": work.options.patience,
        "ranks": work.options.processes(),
        "loaders": capacity.loaders(work.cells[cell], work.options, wanted),
    }


def _pulse(launch: _Launch) -> None:
    """Report the number of live nodes to the launch regularly. Reports nothing if Ray does not answer."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    while ray.is_initialized():
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        launch.send("pulse", len(alive), own in alive)
        time.sleep(PULSE)
