"""Sweeps on Ray under real faults: real processes, real signals, real files cut in half.

After each of them every cell is finished, its masks are those of an undisturbed run, no half-written file
is left, and W&B holds one run a cell with one record an epoch. `HIDDENWEIGHTS_KILLS` sets how often the
chaos test kills.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hiddenweights.analysis.sources.offline import read_run
from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.grid import Arm, arm

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
EPOCHS = 12
FIELDS = {"model.arch": "conv2", "model.width": 0.25, "train.epochs": EPOCHS}


def fragile() -> list[Arm]:
    """Six cells of a second or so."""
    return [arm(FIELDS, {"model.k": (0.3, 0.5, 0.7), "seed": (0, 1)})]


def faulty() -> list[Arm]:
    """A healthy cell, one that raises and one that hangs."""
    here = f"{__name__.rpartition('.')[2]}"
    names = ("fc", f"{here}:raises", f"{here}:hangs")
    fields = {**FIELDS, "model.width": 1.0, "train.epochs": 2, "data.subset": 200}
    return [arm(fields, {"model.arch": names})]


def _network(then: Any, num_classes: int) -> Any:
    import torch
    from torch import nn

    class Faulty(nn.Sequential):
        def forward(self, x: Any) -> Any:
            if torch.is_grad_enabled():  # in training, and not where the network is only looked at
                then()
            return super().forward(x)

    return Faulty(nn.Flatten(), nn.Linear(64, num_classes, bias=False))


def _unlucky() -> None:
    raise ArithmeticError("an unlucky number")


def raises(num_classes: int) -> Any:
    """A network that cannot be trained."""
    return _network(_unlucky, num_classes)


def hangs(num_classes: int) -> Any:
    """A network whose training never ends."""
    return _network(lambda: time.sleep(3600), num_classes)


SWEEPS = {"fragile": fragile, "faulty": faulty}
DRIVER = f"""
import sys
if __name__ == "__main__":  # the process that runs Ray imports this, too
    sys.path.insert(0, {str(HERE)!r})
    from hiddenweights import cli
    from hiddenweights.sweeps import commands as main, experiments
    import test_faults
    experiments.SWEEPS = {{**experiments.SWEEPS, **test_faults.SWEEPS}}
    sys.exit(cli.run(main.COMMANDS, "sweeps", sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The masks of the fragile cells, epoch by epoch, of an undisturbed run."""
    store = Store(tmp_path_factory.mktemp("calm"))
    masks = {}
    for arm_ in fragile():
        for config in arm_.cells():
            result = run_cell(config, store)
            masks[result["cell"]] = [record["mask_checksum"] for record in result["history"]]
    return masks


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


class Launch:
    """`hiddenweights sweeps launch NAME` on Ray, in a process of its own."""

    def __init__(self, name: str, store: Path, *args: str) -> None:
        folder = store.parent
        script = folder / "driver.py"
        script.write_text(DRIVER)
        self.log = folder / f"launch-{time.time_ns()}.log"
        environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
        with open(self.log, "w") as log:
            self.process = psutil.Popen(
                [sys.executable, str(script), "launch", name, "--store", str(store), *args],
                env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
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
        deadline = time.monotonic() + 60
        while any(map(lives, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield tmp_path / "runs"
    for process in psutil.Process().children(recursive=True):  # what a failed test left
        if process.pid not in before:
            process.kill()


def wait_until(true: Callable[[], Any], launch: Launch) -> None:
    """Until something is so, or the launch has ended."""
    deadline = time.monotonic() + 120
    while not true() and launch.process.poll() is None:
        assert time.monotonic() < deadline, launch.log.read_text()
        time.sleep(0.05)


def trained_by(workers: list[psutil.Process], store: Path) -> bool:
    """Whether one of them is in the middle of a cell."""
    pids = {worker.pid for worker in workers}
    for lock in store.glob("cells/*/lock"):
        with contextlib.suppress(FileNotFoundError):  # finished just now
            if json.loads(lock.read_text())["pid"] in pids and any(lock.parent.glob("checkpoint/*.pt")):
                return True
    return False


def wait_for_training(store: Path, launch: Launch) -> None:
    """Until some cell of this launch is in the middle."""
    wait_until(lambda: trained_by(launch.workers(), store), launch)


def finish(launch: Launch) -> None:
    """Wait for the end of a launch that trains what is left."""
    status, printed = launch.end(), launch.log.read_text()
    assert status == 0, printed
    printed = printed.replace(str(launch.log.parent), "")  # the folder has the test's name
    assert "deprecat" not in printed.lower()
    assert "Traceback" not in printed


def assert_undisturbed(store: Path, calm: dict[str, list[str]]) -> None:
    results = {cell: Store(store).result(cell) for cell in calm}
    for cell, result in results.items():
        assert result is not None
        assert [record["mask_checksum"] for record in result["history"]] == calm[cell]
        assert [record["epoch"] for record in result["history"]] == list(range(1, EPOCHS + 1))
    assert {path.name for path in store.glob("cells/*/*")} == {"result.json", "ticket.ticket"}
    assert not list(store.rglob("*.tmp"))
    assert_tracked(store, set(calm))


def assert_tracked(store: Path, cells: set[str]) -> None:
    """One W&B run a cell, one record an epoch."""
    runs = [read_run(path) for path in sorted(store.glob("wandb/offline-run-*/run-*.wandb"))]
    assert sorted(str(run.cell) for run in runs) == sorted(cells)
    for run in runs:
        assert [record["epoch"] for record in run.history] == list(range(1, EPOCHS + 1))


@pytest.mark.slow(seconds=33)
def test_a_killed_worker_is_replaced_within_the_launch(store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    launch.workers()[0].kill()
    finish(launch)
    assert_undisturbed(store, calm)


@pytest.mark.slow(seconds=66)
def test_a_stop_is_clean_and_says_how_to_go_on(store: Path, calm: dict[str, list[str]]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        launch = Launch("fragile", store)
        wait_for_training(store, launch)
        launch.stop(number)
        assert launch.process.returncode == 130
        assert "same command" in launch.log.read_text()
        assert "Traceback" not in launch.log.read_text()
        assert "running" not in Store(store).states(calm).values()
    finish(Launch("fragile", store))
    assert_undisturbed(store, calm)


@pytest.mark.slow(seconds=37)
def test_after_a_killed_driver_and_checkpoints_cut_in_half_the_same_command_goes_on(
    store: Path, calm: dict[str, list[str]]
) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    launch.stop(signal.SIGKILL)
    files = [path for path in store.glob("cells/*/checkpoint/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    finish(Launch("fragile", store))
    assert_undisturbed(store, calm)


def of_ray(launch: Launch, part: str) -> list[psutil.Process]:
    """The launch's processes that `part` names: by name, or by a word of the command."""
    found = []
    for process in launch.process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() == part or any(word.endswith(part) for word in process.cmdline()[:4]):
                found.append(process)
    return found


@pytest.mark.slow(seconds=84)
def test_rays_own_processes_may_die_one_after_the_other(store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    for part in ("log_monitor.py", "monitor.py", "dashboard.py"):  # without which Ray goes on
        for process in of_ray(launch, part):
            process.kill()
    # Ray's raylet ends with its agents.
    for part in ("raylet", "gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent"):
        wait_for_training(store, launch)
        lost = [*launch.workers(), *of_ray(launch, "raylet")]
        before, killed = launch.log.read_text().count("trying again"), time.monotonic()
        for process in of_ray(launch, part):
            process.kill()
        wait_until(lambda before=before: launch.log.read_text().count("trying again") > before, launch)
        assert time.monotonic() - killed < 30
        assert [process for process in lost if lives(process)] == []
    finish(launch)
    assert_undisturbed(store, calm)


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
def cluster() -> Iterator[psutil.Popen]:
    """A process that runs `CLUSTER`."""
    fast = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}  # not 15 s
    fast["RAY_gcs_rpc_server_reconnect_timeout_s"] = "2"  # not 60 s
    with psutil.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **fast, "PYTHONPATH": f"{HERE.parent}:{HERE}", "WANDB_MODE": "offline"},
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()
        process.wait(60)


@pytest.mark.slow(seconds=35)
def test_the_cells_of_a_lost_node_move_to_another(
    store: Path, calm: dict[str, list[str]], cluster: psutil.Popen
) -> None:
    address, *raylets = cluster.stdout.readline().split()
    nodes = [psutil.Process(int(raylet)) for raylet in raylets]
    launch = Launch("fragile", store, "--address", address)

    wait_until(lambda: all(trained_by(trainers(node), store) for node in nodes), launch)
    cluster.stdin.write("0\n")
    cluster.stdin.flush()
    finish(launch)
    assert_undisturbed(store, calm)
    assert max(result["attempts"] for _, result in Store(store).results(calm)) == 2


@pytest.mark.slow(seconds=63)
def test_a_cluster_that_has_gone_ends_the_launch(store: Path, cluster: psutil.Popen) -> None:
    address, *_ = cluster.stdout.readline().split()
    launch = Launch("fragile", store, "--address", address)
    wait_until(lambda: trained_by(trainers(cluster), store), launch)
    workers, everything = trainers(cluster), launch.process.children(recursive=True)
    (gcs,) = (process for process in cluster.children() if process.name() == "gcs_server")
    gcs.kill()
    assert launch.end(60) == 1
    printed = launch.log.read_text()
    assert "same command" in printed.strip().splitlines()[-1]
    assert "Traceback" not in printed
    assert psutil.wait_procs([*everything, *workers], timeout=20)[1] == []


@pytest.mark.slow(seconds=55)
def test_a_store_that_goes_away_is_waited_for_but_not_for_ever(
    store: Path, calm: dict[str, list[str]]
) -> None:
    gone = store.with_name("gone")

    def in_later_epochs() -> bool:  # when W&B has its folders: it would make them without a store
        checkpoints = [len(list(folder.glob("*.pt"))) for folder in store.glob("cells/*/checkpoint")]
        return trained_by(launch.workers(), store) and min(checkpoints, default=0) > 1

    launch = Launch("fragile", store, "--patience", "1")
    wait_until(in_later_epochs, launch)
    store.rename(gone)
    assert launch.end() == 1
    last = launch.log.read_text().strip().splitlines()[-1]
    assert "cannot be used" in last
    assert "same command" in last
    assert not store.exists()
    gone.rename(store)
    launch = Launch("fragile", store)
    wait_until(in_later_epochs, launch)
    store.rename(gone)
    wait_until(lambda: "waiting for it" in launch.log.read_text(), launch)
    assert not store.exists()
    gone.rename(store)
    finish(launch)
    assert_undisturbed(store, calm)


@pytest.mark.slow(seconds=32)
def test_a_full_disk_is_waited_for(store: Path, calm: dict[str, list[str]]) -> None:
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(store)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("file systems cannot be mounted here: that takes root")
    try:
        launch = Launch("fragile", store)
        for left, said in (
            (0, "waiting for it"),
            (2**17, "a cell waits for"),
        ):  # for the second one, no checkpoint
            wait_for_training(store, launch)
            with open(store / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
                while shutil.disk_usage(store).free > left:
                    filler.write(bytes(4096))
            wait_until(lambda said=said: said in launch.log.read_text(), launch)
            (store / "filler").unlink()
        finish(launch)
        assert_undisturbed(store, calm)
    finally:
        subprocess.run(["umount", "--lazy", str(store)], check=True)


@pytest.mark.slow(seconds=47)
def test_a_cell_that_raises_and_one_that_hangs_do_not_stop_the_rest(store: Path) -> None:
    launch = Launch("faulty", store, "--time-limit", "20", "--retries", "3")
    assert launch.end() == 1
    printed = launch.log.read_text()
    assert "1/3 cells" in printed
    assert "ArithmeticError: an unlucky number" in printed
    assert "TimeLimit" in printed
    failures = [json.loads(path.read_text()) for path in store.glob("cells/*/failure.json")]
    assert sorted(failure["error"] for failure in failures) == ["ArithmeticError", "TimeLimit"]
    assert len(list(store.glob("cells/*/result.json"))) == 1


@pytest.mark.slow(seconds=12)
def test_wanting_more_than_there_is_is_refused_at_the_start(store: Path) -> None:
    launch = Launch("fragile", store, "--gpus", "64")
    assert launch.end(60) == 2
    last = launch.log.read_text().strip().splitlines()[-1]
    assert "--gpus" in last
    assert not list(store.glob("cells/*"))


@pytest.mark.slow(seconds=74)
def test_chaos(store: Path, calm: dict[str, list[str]]) -> None:
    seed = time.time_ns()
    chance = random.Random(seed)
    kills = int(os.environ.get("HIDDENWEIGHTS_KILLS", "4"))
    launch = Launch("fragile", store)
    while kills:
        wait_for_training(store, launch)
        time.sleep(chance.uniform(0, 2))
        workers = launch.workers() if launch.process.is_running() else []
        if launch.process.poll() is not None:
            break  # all done before we killed as often as we wanted
        if workers and chance.random() < 0.6:
            chance.choice(workers).kill()
        else:
            launch.stop(signal.SIGKILL)
            launch = Launch("fragile", store)
        kills -= 1
    print(f"{kills} kills were left when the sweep ended")
    status = launch.end()
    if status:  # a cell's worker was killed more often than the launch retries
        launch = Launch("fragile", store)
        status = launch.end()
    assert status == 0, f"seed {seed}: {launch.log.read_text()}"
    assert_undisturbed(store, calm)


def test_the_sweeps_here_are_not_registered() -> None:
    assert not SWEEPS.keys() & experiments.SWEEPS.keys()
