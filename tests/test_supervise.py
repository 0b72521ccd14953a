"""The launch's side of Ray, with processes in Ray's place that die, hang or say nothing."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from hiddenweights.errors import UserError
from hiddenweights.sweeps import experiments, ray_process, supervise
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.progress import Curves, Progress
from hiddenweights.sweeps.ray_work import MARK, Work, kill_all, lives
from hiddenweights.sweeps.supervise import RayLost, Supervisor

NODE = "0123abcd"
CELLS = experiments.sweep("quickstart").cells()


def ready(pipe: Connection, head: str = "127.0.0.1:1") -> None:
    pipe.send(("pulse", 1, True))
    pipe.send(("ready", head, NODE))
    pipe.recv()


def dies(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    ready(pipe)
    os._exit(3)


def ends_well(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    ready(pipe)
    pipe.send(("done",))
    pipe.recv()


def hangs(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    ready(pipe)
    time.sleep(3600)


def loses_all_nodes(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    ready(pipe)
    while True:
        pipe.send(("pulse", 0, False))
        time.sleep(0.1)


def refuses(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    pipe.send(("raised", UserError("--gpus: too many")))
    pipe.recv()


def idles(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    """Lives, and reports nothing but notes for some seconds."""
    ready(pipe)
    for _ in range(30):
        pipe.send(("pulse", 1, True))
        pipe.send(("event", "note", ""))
        time.sleep(0.1)
    pipe.send(("done",))
    pipe.recv()


def loses_its_raylet(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    """On a cluster, whose head (at the address of `work`) goes on."""
    ready(pipe, str(work.options.address))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"--node_id={NODE}" in process.cmdline():
                process.kill()
    while True:
        pipe.send(("pulse", 2, True))  # Ray itself notices it later
        time.sleep(0.1)


def waits_for_the_launch(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    """Reports, while the launch is stopped for a while."""
    ready(pipe)
    for _ in range(15):
        pipe.send(("event", "say", "a line"))
        pipe.send(("pulse", 1, True))
    time.sleep(0.2)
    pipe.send(("done",))
    pipe.recv()


def never_ends(pipe: Connection, work: Work, mark: str, folder: str) -> None:
    """Ignores the polite request to end, and has a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[MARK] = mark
    (Path(folder) / ray_process.MESSAGES).touch()
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    ready(pipe)
    pipe.send(("event", "say", f"{child.pid} {folder}"))
    pipe.send(("done",))
    time.sleep(60)


@pytest.fixture
def progress() -> Progress:
    return Progress("quickstart", CELLS, Curves(CELLS), Console(file=io.StringIO(), width=200))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(supervise, "SILENCE", 0.5)
    monkeypatch.setattr(supervise, "LOSSES", 1)
    options = Options()
    return Supervisor(Work(name="q", cells=CELLS, store="runs", launched="", options=options))


def printed(progress: Progress) -> str:
    text: str = progress._console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize(
    ("process", "says"), [(dies, "status 3"), (hangs, "answer"), (loses_all_nodes, "answer")]
)
def test_a_lost_ray_is_replaced_a_few_times(
    process: object, says: str, supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "main", process)
    progress.running(next(iter(CELLS)), 1)
    supervisor(CELLS, Measured(), progress)  # returns, for the launch to see what is missing
    assert says in printed(progress)
    assert "trying again" in printed(progress)
    assert " 0 running" in progress.counts()
    with pytest.raises(RayLost, match="2 times in a row"):
        supervisor(CELLS, Measured(), progress)
    supervisor.close()
    assert not [child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())]


def test_a_cluster_goes_on_without_the_raylet_of_this_machine(
    progress: Progress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_process, "main", loses_its_raylet)
    (tmp_path / "raylet").symlink_to(shutil.which("bash") or "")
    raylet = subprocess.Popen([tmp_path / "raylet", "-c", "read", f"--node_id={NODE}"], stdin=subprocess.PIPE)
    with raylet, socket.create_server(("127.0.0.1", 0)) as head:
        options = Options(address="{}:{}".format(*head.getsockname()))
        supervisor = Supervisor(Work(name="q", cells=CELLS, store="runs", launched="", options=options))
        with pytest.raises(RayLost, match="raylet died; start Ray"):
            supervisor(CELLS, Measured(), progress)


def test_a_cell_that_finishes_in_between_makes_a_new_start(
    supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "main", dies)
    real = supervise._RayProcess.wait_until_ready

    def and_finish(self: supervise._RayProcess, shown: Progress) -> None:
        real(self, shown)
        shown.finished([*CELLS][len(shown.accuracies)], 0.5, 1.0)

    monkeypatch.setattr(supervise._RayProcess, "wait_until_ready", and_finish)
    for _ in range(3):
        supervisor(CELLS, Measured(), progress)


def test_what_ray_cannot_do_is_bad_input_at_the_start_only(
    supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "main", refuses)
    with pytest.raises(UserError, match="gpus"):
        supervisor(CELLS, Measured(), progress)
    supervisor.close()
    monkeypatch.setattr(ray_process, "main", dies)
    supervisor(CELLS, Measured(), progress)
    monkeypatch.setattr(ray_process, "main", refuses)
    with pytest.raises(RayLost, match="gpus"):
        supervisor(CELLS, Measured(), progress)
    supervisor.close()


def test_a_launch_that_hears_of_no_cell_says_so_once(
    supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "main", idles)
    monkeypatch.setattr(supervise, "STILL", 2.0)  # of the 3 that it lives, so that a pulse has come before
    monkeypatch.setattr(supervise, "SILENCE", 20.0)
    supervisor(CELLS, Measured(), progress)
    supervisor.close()
    assert printed(progress).count("no cell has reported") == 1
    assert "1 live node" in printed(progress)


def test_a_launch_that_was_stopped_for_a_while_does_not_miss_ray(
    supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "main", waits_for_the_launch)
    said: list[str] = []

    def slowly(text: str) -> None:  # as with Ctrl-Z, and `fg` later
        time.sleep(0 if said else 0.7)
        said.append(text)

    monkeypatch.setattr(progress, "say", slowly)
    supervisor(CELLS, Measured(), progress)
    supervisor.close()
    assert said == ["a line"] * 15


def test_a_second_ctrl_c_leaves_nothing_of_ray(
    supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "main", never_ends)
    supervisor(CELLS, Measured(), progress)
    child, folder = printed(progress).split()
    main, real = threading.main_thread().ident or 0, signal.signal(signal.SIGUSR1, signal.default_int_handler)
    second = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGUSR1))
    try:
        second.start()
        supervisor.close()
    finally:
        signal.signal(signal.SIGUSR1, real)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not lives(psutil.Process(int(child)))  # the first process may not have seen to the dead yet
    assert not Path(folder).exists()


def test_all_processes_of_a_ray_are_found_and_ended() -> None:
    command = ["sleep", "60"]
    with (
        subprocess.Popen(command, start_new_session=True) as in_session,
        subprocess.Popen(command, env={**os.environ, MARK: "me"}, start_new_session=True) as marked,
        subprocess.Popen(command) as other,
    ):
        kill_all(in_session.pid, "me")
        assert not psutil.pid_exists(in_session.pid)
        assert not psutil.pid_exists(marked.pid)
        assert other.poll() is None
        other.kill()


def test_losses_in_a_row_are_counted_and_a_call_that_ends_well_is_between(
    supervisor: Supervisor, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process in (dies, ends_well, dies):  # two in a row would be too many
        monkeypatch.setattr(ray_process, "main", process)
        supervisor(CELLS, Measured(), progress)
        supervisor.close()
    assert printed(progress).count("trying again") == 2
