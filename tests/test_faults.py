"""Sweeps on Ray under real faults: real processes, real signals, real files cut in half.

After each of them every cell is finished, its masks are those of an undisturbed run, no half-written file
is left, and W&B holds one run a cell with one record an epoch. `HIDDENWEIGHTS_KILLS` adds kills of workers
and of the launch. Most of a test's time is Ray's start, so that a test has several faults.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_sweeps import DRIVER, SWEEPS, fragile, uneven

from hiddenweights.analysis.sources.offline import read_run
from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.grid import Arm

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
PAUSE = 0.4  # seconds an epoch
# For Ray on this machine: it trains one cell after another.
ONE_CPU = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 1})}


def calm(sweep: list[Arm], folder: Path) -> dict[str, list[str]]:
    """The masks of the cells, epoch by epoch, of an undisturbed run."""
    folder.mkdir()
    results = [run_cell(config, Store(folder)) for arm_ in sweep for config in arm_.cells()]
    return {result["cell"]: masks(result) for result in results}


def masks(result: dict[str, Any]) -> list[str]:
    return [record["mask_checksum"] for record in result["history"]]


def trainers(parent: psutil.Process) -> list[psutil.Process]:
    """The processes below `parent` that train."""
    found = []
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("CellTrial" in word or "ray::ResourceTr" in word for word in process.cmdline()):
                found.append(process)
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it runs; not every machine's first process sees to the dead at once."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def environment(folder: Path, pause: float) -> dict[str, str]:
    """That of processes which train cells of this module and, by a tracker, pause after each epoch."""
    info = folder / "site" / "pauses-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pauses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hiddenweights.trackers]\npauses = pauses:Pauses\n")
    path = os.pathsep.join(map(str, (HERE.parent, HERE, info.parent)))
    return {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": path, "HIDDENWEIGHTS_TEST_PAUSE": str(pause)}


class Launch:
    """`hiddenweights sweeps launch NAME` on Ray, in a process of its own."""

    def __init__(self, name: str, store: Path, *args: str, pause: float = PAUSE, **variables: str) -> None:
        folder = store.parents[1]
        script = folder / "driver.py"
        script.write_text(DRIVER)
        self.log = folder / f"launch-{time.time_ns()}.log"
        with open(self.log, "w") as log:
            self.process = psutil.Popen(
                [sys.executable, str(script), "launch", name, "--store", str(store), *args],
                env=environment(folder, pause) | ONE_CPU | variables,
                stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            )  # fmt: skip

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return trainers(self.process)

    def end(self, timeout: float = 300) -> int:
        """Wait for the exit status."""
        return int(self.process.wait(timeout))

    def stop(self, number: int) -> None:
        """Signal the driver and wait until it and the workers are gone.

        Two of Ray's processes may need a minute more, and hurt nobody.
        """
        workers = self.workers()
        self.process.send_signal(number)
        self.process.wait(60)
        deadline = time.monotonic() + 120
        while any(map(lives, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield tmp_path / "disk" / "runs"
    for process in psutil.Process().children(recursive=True):  # what a failed test left
        if process.pid not in before:
            process.kill()


@pytest.fixture
def disk(store: Path) -> Iterator[bool]:
    """Whether the store is alone on a disk of 16 MB. It takes root."""
    store.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(store.parent)]
    mounted = not subprocess.run(mount, check=False).returncode
    yield mounted
    if mounted:
        subprocess.run(["umount", "--lazy", str(store.parent)], check=True)


def wait_until(true: Callable[[], Any], launch: Launch) -> None:
    """Until something is so; meanwhile the launch must not end."""
    deadline = time.monotonic() + 240
    while not true():
        assert launch.process.poll() is None, launch.log.read_text()
        assert time.monotonic() < deadline, launch.log.read_text()
        time.sleep(0.25)  # each look costs the processor some milliseconds


def trained_by(parent: psutil.Process, store: Path, begun: bool = True) -> dict[str, float]:
    """The cells that processes below `parent` train, and since when these run; `begun`: an epoch is over."""
    found = {}
    for lock in store.glob("cells/*/lock"):
        with contextlib.suppress(FileNotFoundError, psutil.Error):  # finished just now
            process = psutil.Process(json.loads(lock.read_text())["pid"])
            below = parent.pid in [other.pid for other in process.parents()]
            if below and (not begun or any(lock.parent.glob("checkpoint/*.pt"))):
                found[lock.parent.name] = process.create_time()
    return found


def wait_for_training(store: Path, launch: Launch) -> None:
    """Until the short cell of `uneven` is finished and the long one in the middle."""
    wait_until(lambda: trained_by(launch.process, store) and any(store.glob("cells/*/result.json")), launch)


def wait_for_followers(store: Path, launch: Launch) -> None:
    """Until W&B has its folder for every cell that is trained: it would make it without a store."""

    def followed() -> bool:
        cells = trained_by(launch.process, store, begun=False)
        return bool(cells) and all(
            any(
                path.stat().st_mtime > since and path.stat().st_size
                for path in store.glob(f"wandb/offline-run-*-{cell}*/run-*.wandb")
            )
            for cell, since in cells.items()
        )

    wait_until(followed, launch)


def finish(launch: Launch) -> None:
    """Wait for the end of a launch that trains what is left."""
    status, printed = launch.end(), launch.log.read_text()
    assert status == 0, printed
    printed = printed.replace(str(launch.log.parent), "")  # the folder has the test's name
    assert "deprecat" not in printed.lower()
    assert "Traceback" not in printed


def assert_undisturbed(store: Path, sweep: list[Arm]) -> None:
    expected = calm(sweep, store.with_name("calm"))
    results = {cell: Store(store).result(cell) for cell in expected}
    for cell, result in results.items():
        assert result is not None
        assert masks(result) == expected[cell]
        assert epochs(result["history"]) == [*range(1, len(expected[cell]) + 1)]
    assert {path.name for path in store.glob("cells/*/*")} == {"result.json", "ticket.ticket"}
    assert not list(store.rglob("*.tmp"))
    # One W&B run a cell, one record an epoch.
    runs = [read_run(path) for path in sorted(store.glob("wandb/offline-run-*/run-*.wandb"))]
    assert sorted(str(run.cell) for run in runs) == sorted(expected)
    for run in runs:
        assert epochs(run.history) == [*range(1, len(expected[str(run.cell)]) + 1)]


def epochs(history: Sequence[Mapping[str, Any]]) -> list[int]:
    return [record["epoch"] for record in history]


NEEDLESS = ("log_monitor.py", "monitor.py", "dashboard.py")  # a launch has none of its own
NEEDED = (
    "raylet",
    "gcs_server",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)  # the raylet ends with its agents


def of_ray(parent: psutil.Process, part: str) -> list[psutil.Process]:
    """The processes below `parent` that `part` names: by name, or by a word of the command."""
    found = []
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() == part or any(word.endswith(part) for word in process.cmdline()[:4]):
                found.append(process)
    return found


@pytest.mark.slow(seconds=115)
def test_any_process_may_die_at_any_moment(store: Path) -> None:
    """A worker, each of Ray's own processes, the launch (with checkpoints cut in half), in any order."""
    seed, more = time.time_ns(), int(os.environ.get("HIDDENWEIGHTS_KILLS", "0"))
    chance = random.Random(seed)
    deaths = [*NEEDED, "worker", "worker", "launch", *chance.choices(["worker", "launch"], k=more)]
    chance.shuffle(deaths)
    print("seed", seed, deaths)

    def begun() -> Launch:
        return Launch("uneven", store, "--retries", str(3 + more), pause=4 * PAUSE)

    launch = begun()
    wait_for_training(store, launch)
    assert not [process for part in NEEDLESS for process in of_ray(launch.process, part)]
    for death in deaths:
        wait_for_training(store, launch)
        if death == "launch":
            launch.stop(signal.SIGKILL)
            cut_checkpoints(store)
            launch = begun()
            continue
        time.sleep(chance.uniform(0, 1))
        if death == "worker":
            wait_until(launch.workers, launch)
            chance.choice(launch.workers()).kill()
        else:
            lose_ray(launch, death)
    finish(launch)
    assert_undisturbed(store, uneven())


def cut_checkpoints(store: Path) -> None:
    files = [path for path in store.glob("cells/*/checkpoint/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_ray(launch: Launch, part: str) -> None:
    """Kill a part that Ray needs: the launch notices, ends the rest, and starts Ray again."""
    lost = [*launch.workers(), *of_ray(launch.process, "raylet")]
    before, killed = launch.log.read_text().count("trying again"), time.monotonic()
    for process in of_ray(launch.process, part):
        process.kill()
    wait_until(lambda: launch.log.read_text().count("trying again") > before, launch)
    assert time.monotonic() - killed < 30
    assert [process for process in lost if lives(process)] == []


@pytest.mark.slow(seconds=95)
def test_a_launch_is_stopped_loses_its_store_and_goes_on_with_the_same_command(
    store: Path, disk: bool
) -> None:
    gone = store.with_name("gone")
    for number in (signal.SIGINT, signal.SIGTERM):
        launch = Launch("uneven", store, pause=4 * PAUSE)
        wait_for_training(store, launch)
        launch.stop(number)
        assert launch.process.returncode == 130
        assert "same command" in launch.log.read_text()
        assert "Traceback" not in launch.log.read_text()
        assert "running" not in Store(store).states(path.name for path in store.glob("cells/*")).values()

    # The store goes away for good.
    launch = Launch("uneven", store, "--patience", "1")
    wait_for_followers(store, launch)
    store.rename(gone)
    assert launch.end() == 1
    last = launch.log.read_text().strip().splitlines()[-1]
    assert "the store" in last
    assert "same command" in last
    assert not store.exists()
    gone.rename(store)

    # It goes away for a while.
    launch = Launch("uneven", store, pause=2 * PAUSE)
    wait_for_followers(store, launch)
    store.rename(gone)
    wait_until(lambda: "waiting for it" in launch.log.read_text(), launch)
    assert not store.exists()
    gone.rename(store)
    if disk:
        fill(store, launch, 0, "waiting for it")
        fill(store, launch, 2**17, "a cell waits for")  # for small files there is room, for no checkpoint
    finish(launch)
    assert_undisturbed(store, uneven())
    if not disk:
        pytest.skip("file systems cannot be mounted here, which takes root: the full disk was left out")


def fill(store: Path, launch: Launch, left: int, said: str) -> None:
    """Fill the disk up to `left` bytes until the launch says so once more, and free it."""
    wait_for_training(store, launch)
    before = launch.log.read_text().count(said)
    with open(store / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while shutil.disk_usage(store).free > left:
            filler.write(bytes(4096))
    wait_until(lambda: launch.log.read_text().count(said) > before, launch)
    (store / "filler").unlink()


# A cluster of a head that trains nothing and two nodes. It kills the nodes whose numbers it reads.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 * 2**20}
cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
raylets = [node.all_processes["raylet"][0].process for node in nodes]
print(cluster.address, *(raylet.pid for raylet in raylets), flush=True)
for number in sys.stdin:
    raylets[int(number)].kill()
    raylets[int(number)].wait()  # or its workers would take it for alive
cluster.shutdown()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[psutil.Popen]:
    """A process that runs `CLUSTER`."""
    fast = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}  # not 15 s
    fast["RAY_gcs_rpc_server_reconnect_timeout_s"] = "2"  # not 60 s
    with psutil.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(tmp_path, PAUSE) | fast,
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()
        process.wait(60)


@pytest.mark.slow(seconds=105)
def test_on_a_cluster_a_node_is_lost_and_then_the_head(store: Path, cluster: psutil.Popen) -> None:
    address, *raylets = cluster.stdout.readline().split()
    nodes = [psutil.Process(int(raylet)) for raylet in raylets]

    # More than there is, is refused at the start.
    launch = Launch("fragile", store, "--address", address, "--gpus", "64")
    assert launch.end(60) == 2
    assert "--gpus" in launch.log.read_text().strip().splitlines()[-1]
    assert not list(store.glob("cells/*"))

    # A cell that diverges does not end a search. No worker uses W&B if the launch does not.
    rates = store.with_name("rates")
    launch = Launch("search", rates, "--address", address, WANDB_MODE="disabled")
    assert launch.end() == 1
    printed = launch.log.read_text()
    assert "1/2 cells · 0 running · 1 failed" in printed
    assert "best for fc edge_popup sgd digits: optim.lr=0.1" in printed
    assert "trying again" not in printed
    assert not (rates / "wandb").exists()

    # The cells of a lost node move to another. The head does without some of its processes.
    launch = Launch("fragile", store, "--address", address)
    wait_until(lambda: all(trained_by(node, store) for node in nodes), launch)
    for part in NEEDLESS:
        (process,) = of_ray(cluster, part)
        process.kill()
    cluster.stdin.write("0\n")
    cluster.stdin.flush()
    finish(launch)
    assert_undisturbed(store, fragile())
    assert max(result["attempts"] for _, result in Store(store).results(Store(store).finished())) == 2

    # Without the head the launch ends.
    other = store.with_name("other")
    launch = Launch("fragile", other, "--address", address)
    wait_until(lambda: trained_by(cluster, other), launch)
    workers, everything = trainers(cluster), launch.process.children(recursive=True)
    (gcs,) = (process for process in cluster.children() if process.name() == "gcs_server")
    gcs.kill()
    assert launch.end(60) == 1
    printed = launch.log.read_text()
    assert "same command" in printed.strip().splitlines()[-1]
    assert "Traceback" not in printed
    assert psutil.wait_procs([*everything, *workers], timeout=20)[1] == []


def test_the_sweeps_here_are_not_registered() -> None:
    assert not SWEEPS.keys() & experiments.SWEEPS.keys()
