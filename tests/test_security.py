"""One launch on Ray, watched from outside: what listens, where the W&B key is, what the log says.

In it a worker is killed, a cell runs out of memory beside another one, one raises and one hangs.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
import unhurried
from fault_sweeps import DRIVER, watched
from faulty import MARK

from hiddenweights.cells.store import Store
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.grid import Sweep

pytestmark = pytest.mark.slow(seconds=85)

KEY = "f00dfeed" * 5


@dataclass
class Seen:
    """What was seen of the launch's processes."""

    store: Path
    session: Path
    status: int = 0
    printed: str = ""
    commands: set[str] = field(default_factory=set)
    listening: set[tuple[str, str]] = field(default_factory=set)
    """(address, name of the process)"""

    def look(self, driver: psutil.Process) -> None:
        """Add what there is to see now."""
        with contextlib.suppress(psutil.Error):
            for process in (driver, *driver.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    self.commands.add(" ".join(process.cmdline()))
                    self.listening |= {
                        (socket.laddr.ip, process.name())
                        for socket in process.net_connections("inet")
                        if socket.status == psutil.CONN_LISTEN
                    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("launch")
    session = Path(tempfile.mkdtemp(prefix="hw"))  # short: a socket's path has no room for more
    seen = Seen(store=folder / "runs", session=session)
    (folder / "driver.py").write_text(DRIVER)
    environment = os.environ | {
        "WANDB_API_KEY": KEY,
        "WANDB_MODE": "offline",
        "RAY_TMPDIR": str(session),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        MARK: str(folder / "mark"),
        unhurried.PAUSE: "0.02",
        "RAY_memory_monitor_refresh_ms": "0",  # kills workers when others take this machine's memory
    }
    log = folder / "log"
    command = [sys.executable, "driver.py", "launch", "watched", "--store", str(seen.store)]
    command += ["--time-limit", "45", "--retries", "3"]
    with log.open("w") as out:
        driver = psutil.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    cells = [
        id
        for id, config in Sweep(name="", arms=tuple(watched())).cells().items()
        if config.model.arch.startswith("unhurried:")
    ]
    killed = False
    try:
        while driver.poll() is None:
            seen.look(driver)  # costs 0.1 s of a processor
            for _ in range(30):
                killed = killed or kill_one(seen.store, cells)
                time.sleep(0.1)
        seen.status, seen.printed = driver.wait(), log.read_text()
        assert killed
        yield seen
    finally:
        for process in (*driver.children(recursive=True), driver) if driver.is_running() else ():
            process.kill()
        shutil.rmtree(session, ignore_errors=True)


def kill_one(store: Path, cells: Collection[str]) -> bool:
    """Kill a worker that is in the middle of one of these cells; whether there was one."""
    for cell in (store / "cells" / id for id in cells):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            lock = json.loads((cell / "lock").read_text())
            if lock["heartbeat"] and (cell / "checkpoint").exists():
                psutil.Process(lock["pid"]).kill()
                return True
    return False


def test_cells_that_fail_do_not_stop_the_rest_and_it_says_what_happened(seen: Seen) -> None:
    assert seen.status == 1, seen.printed
    assert "3/5 cells" in seen.printed
    assert seen.printed.count("a worker died") == 2  # of the kill, and of the time limit
    assert "ArithmeticError: an unlucky number" in seen.printed
    assert "TimeLimit" in seen.printed
    failures = [json.loads(path.read_text()) for path in seen.store.glob("cells/*/failure.json")]
    assert sorted(failure["error"] for failure in failures) == ["ArithmeticError", "TimeLimit"]
    assert "raylet" not in seen.printed
    assert "Traceback" not in seen.printed
    assert seen.printed.count("OutOfMemoryError") == 1
    results = dict(Store(seen.store).results(Store(seen.store).finished()))
    assert len(results) == 3
    greedy = next(r for r in results.values() if r["config"]["model"]["arch"].endswith("greedy"))
    assert greedy["attempts"] == 2


def test_nothing_listens_beyond_this_machine(seen: Seen) -> None:
    assert seen.listening  # Ray does listen
    assert {(at, name) for at, name in seen.listening if not loopback(at)} == set()


def loopback(at: str) -> bool:
    """Whether an address is of this machine only."""
    address = ip_address(at)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_the_key_is_in_no_file_and_no_command(seen: Seen) -> None:
    assert any(command.startswith("ray::") for command in seen.commands)
    assert not any(KEY in command for command in seen.commands)
    written = [path for top in (seen.store, seen.session) for path in top.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in written)
    assert any("session" in str(path) and path.suffix == ".log" for path in written)
    assert [str(path) for path in written if KEY.encode() in path.read_bytes()] == []
    assert KEY not in seen.printed


def test_the_sweep_here_is_not_registered() -> None:
    assert "watched" not in experiments.SWEEPS
