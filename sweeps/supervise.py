"""Run Ray in a separate process that the launch watches and replaces.

Ray's client does not notice when Ray dies: without its raylet `Tuner.fit` waits for ever, and the workers
continue to train. The launch therefore never calls Ray. It starts a process that does (`ray_process`),
receives its reports, and ends it and all its children when Ray is lost. The loop of the launch then trains
the missing cells on a new Ray; the store knows which they are.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

from hiddenweights.errors import UserError
from hiddenweights.sweeps import ray_process
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.progress import Progress
from hiddenweights.sweeps.ray_work import STOP, Work, kill_all, lives

RAY_PROCESSES = ("raylet", "gcs_server")  # Ray needs both of them, and none of the others
SILENCE = 15.0  # seconds without a sign of life, or without a live node, until Ray counts as lost
START = 180.0  # time limit in seconds for the start of Ray
STILL = 300.0  # seconds without a report of any cell, until the launch reports that
LOSSES = 5  # how often Ray may be lost in a row before a cell finishes


class RayLost(RuntimeError):
    """Ray has died or does not answer. The message is one line."""


class Supervisor:
    """Trains groups of cells on Ray. Starts Ray when it is first needed, and again if it is lost."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._ray: _RayProcess | None = None
        self._losses = 0

    def __call__(
        self, cells: Iterable[str], measured: Measured, progress: Progress, alone: bool = False
    ) -> None:
        """Train `cells`, next to others unless `alone`. Returns when all have ended, or when Ray is lost.

        `measured` says how much of a GPU a cell needs.

        Raises `RayLost` if Ray was lost too often or cannot be reached again, `UserError` if Ray cannot
        train a cell, and `StoreAway`.
        """
        before = len(progress.accuracies)
        try:
            if not self._ray:
                self._ray = _RayProcess(self._work)
                self._ray.wait_until_ready(progress)
            self._ray.train([*cells], measured, alone, progress)
            self._losses = 0
        except RayLost as lost:
            ray = self._ray
            self.close(politely=False)
            self._losses = 1 if len(progress.accuracies) > before else self._losses + 1
            if self._losses > LOSSES:
                raise RayLost(f"{lost}, {self._losses} times in a row") from None
            if ray and ray.head and self._work.options.address:
                _check_cluster(ray, lost)
            progress.lost(f"{lost}; trying again with the cells that are not finished")
        except UserError as error:
            if not self._losses:
                raise
            raise RayLost(f"Ray was lost, and the next one failed: {error}") from None

    def close(self, politely: bool = True) -> None:
        """Stop Ray, if it runs, and every process that it has started on this machine."""
        if self._ray:
            self._ray.close(politely)
            self._ray = None


class _RayProcess:
    """The process that runs Ray, as seen by the launch."""

    def __init__(self, work: Work) -> None:
        self._local = work.options.address is None
        self._mark = uuid.uuid4().hex
        self._folder = Path(tempfile.mkdtemp(prefix="hiddenweights-ray-"))
        self.messages = self._folder / ray_process.MESSAGES
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        arguments = (theirs, work, self._mark, str(self._folder))
        self._process = spawn.Process(target=ray_process.main, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._own: dict[psutil.Process, str] = {}  # with its name, because a dead process has none
        self._alive = self._reported = time.monotonic()
        self._nodes = 0
        self.head = ""
        """``host:port`` of Ray's central service, once Ray has started."""
        self._node = ""
        self._still = False

    def wait_until_ready(self, progress: Progress) -> None:
        """Return when Ray has started. Raises `RayLost`, `UserError`."""
        self._receive_until("ready", progress)
        near = psutil.Process(self._process.pid).children() if self._local else psutil.process_iter()
        for process in near:
            name = _name(process)
            if name in RAY_PROCESSES and (self._local or f"--node_id={self._node}" in _command(process)):
                self._own[process] = name

    def train(self, cells: list[str], measured: Measured, alone: bool, progress: Progress) -> None:
        """Train `cells`. Raises `RayLost`, `StoreAway`, `UserError`."""
        self._reported = time.monotonic()
        with contextlib.suppress(OSError):  # it has died; reported below
            self._pipe.send((cells, measured, alone))
        self._receive_until("done", progress)

    def _receive_until(self, end: str, progress: Progress) -> None:
        while True:
            try:
                message = self._pipe.recv() if self._pipe.poll(1.0) else ("nothing",)
            except (EOFError, OSError):
                self._process.join(STOP)
                why = f"the process that runs Ray ended with status {self._process.exitcode}"
                raise RayLost(f"{why} (its messages: {self.messages})") from None
            match message:
                case ("event", name, *arguments):
                    if name != "note":
                        self._reported, self._still = time.monotonic(), False
                    getattr(progress, name)(*arguments)
                case ("pulse", nodes, own):
                    self._nodes = nodes
                    if nodes and own:
                        self._alive = time.monotonic()
                case ("raised", error):
                    raise error
                case ("lost", why):
                    raise RayLost(f"Ray failed: {why} (its messages: {self.messages})")
                case ("ready", head, node):
                    self.head, self._node = head, node
            if message[0] == end:
                return
            if not self._pipe.poll():  # or after Ctrl-Z and `fg` Ray would seem silent, and its pulses wait
                self._check(progress, SILENCE if self._own or end == "done" else START)

    def _check(self, progress: Progress, silence: float) -> None:
        """Raise `RayLost` if Ray is lost. Report if no cell has reported for a long time."""
        for process, name in self._own.items():
            if not lives(process):
                raise RayLost(f"Ray's {name} died")
        now = time.monotonic()
        if now - self._alive > silence:
            raise RayLost(f"Ray has not answered for {silence:.0f} s")
        if now - self._reported > STILL and not self._still:
            self._still = True
            nodes = f"Ray has {self._nodes} live node{'s' * (self._nodes != 1)}"
            progress.say(f"no cell has reported for {STILL / 60:.0f} minutes; {nodes}; {progress.counts()}")

    def healthy(self) -> bool:
        """Whether the processes of Ray that are needed on this machine are alive."""
        return all(map(lives, self._own))

    def close(self, politely: bool) -> None:
        """Stop the process, Ray's processes and the workers by force, unless they end by themselves.

        A second Ctrl-C only ends the wait for that: nothing may be left of Ray.
        """
        if politely and self.head and self._process.is_alive() and self.healthy():
            with contextlib.suppress(ProcessLookupError, KeyboardInterrupt):
                os.kill(self._process.pid or 0, signal.SIGINT)  # which ends it whatever it does
                self._process.join(STOP)
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, signal.SIG_IGN) for number in stops}
        try:
            self._process.kill()
            self._process.join()
            kill_all(self._process.pid or 0, self._mark)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._pipe.close()
        if politely:  # else a message has named a file in it
            shutil.rmtree(self._folder, ignore_errors=True)


def _check_cluster(ray: _RayProcess, lost: RayLost) -> None:
    """Raise `RayLost` if this machine cannot join the cluster again after `ray` was `lost`."""
    if not _answers(ray.head):
        raise RayLost(f"{lost}, and the cluster's head {ray.head} does not answer") from None
    if not ray.healthy():  # nothing starts it again, and without it Ray would wait for minutes
        raise RayLost(f"{lost}; start Ray on this machine again, with `ray up` or `ray start`") from None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
