"""Sweeps on Ray under real faults: real processes, real signals, real files cut in half.

After each of them every cell is finished, its masks are those of an undisturbed run, no half-written file
is left, and W&B holds one run a cell with one record an epoch. `HIDDENWEIGHTS_KILLS` sets how often the
chaos test kills.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.offline import read_run
from hiddenweights.cell import run_cell
from hiddenweights.store import Store
from sweeps import experiments
from sweeps.grid import Arm, arm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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
sys.path.insert(0, {str(Path(__file__).parent)!r})
from hiddenweights import cli
from sweeps import __main__ as main, experiments
import test_faults
experiments.SWEEPS = {{**experiments.SWEEPS, **test_faults.SWEEPS}}
if __name__ == "__main__":
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


class Launch:
    """`python -m sweeps launch NAME` on Ray, in a process of its own."""

    def __init__(self, name: str, store: Path, *args: str) -> None:
        folder = store.parent
        script = folder / "driver.py"
        script.write_text(DRIVER)
        self.log = folder / f"launch-{time.time_ns()}.log"
        here = Path(__file__).parent
        environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": f"{here.parent}:{here}"}
        with open(self.log, "w") as log:
            self.process = psutil.Popen(
                [sys.executable, str(script), "launch", name, "--store", str(store), *args],
                env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            )  # fmt: skip

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                if any("CellTrial" in word or "ray::ResourceTr" in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def end(self, timeout: float = 300) -> int:
        """Wait for the exit status."""
        return int(self.process.wait(timeout))

    def stop(self, number: int) -> None:
        """Signal the driver and wait until it and all that it started are gone."""
        family = [self.process, *self.process.children(recursive=True)]
        self.process.send_signal(number)
        psutil.wait_procs(family, timeout=60)
        assert not self.process.is_running()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield tmp_path / "runs"
    for process in psutil.Process().children(recursive=True):  # what a failed test left
        if process.pid not in before:
            process.kill()


def wait_for_training(store: Path, launch: Launch, more_than: int = 0) -> None:
    """Until some cell of this launch is in the middle."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launch.process.is_running():
        if launch.workers() and len(list(store.glob("cells/*/checkpoint/*"))) > more_than:
            return
        time.sleep(0.05)


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


def test_a_killed_worker_is_replaced_within_the_launch(store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    launch.workers()[0].kill()
    assert launch.end() == 0, launch.log.read_text()
    assert_undisturbed(store, calm)


def test_after_the_driver_is_killed_the_same_command_goes_on(store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    launch.stop(signal.SIGKILL)
    assert Launch("fragile", store).end() == 0
    assert_undisturbed(store, calm)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_clean_and_says_how_to_go_on(number: int, store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    launch.stop(number)
    assert launch.process.returncode == 130
    assert "same command" in launch.log.read_text()
    assert "Traceback" not in launch.log.read_text()
    assert "running" not in Store(store).states(calm).values()
    again = Launch("fragile", store)
    assert again.end() == 0, again.log.read_text()
    assert_undisturbed(store, calm)


def test_a_checkpoint_cut_in_half_is_not_the_end(store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    wait_for_training(store, launch)
    launch.stop(signal.SIGKILL)
    files = [path for path in store.glob("cells/*/checkpoint/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = Launch("fragile", store)
    assert again.end() == 0, again.log.read_text()
    assert_undisturbed(store, calm)


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


def test_wanting_more_than_there_is_is_refused_at_the_start(store: Path) -> None:
    launch = Launch("fragile", store, "--gpus", "64")
    assert launch.end(60) == 2
    last = launch.log.read_text().strip().splitlines()[-1]
    assert "--gpus" in last
    assert not list(store.glob("cells/*"))


def test_no_deprecated_part_of_ray_is_used(store: Path, calm: dict[str, list[str]]) -> None:
    launch = Launch("fragile", store)
    assert launch.end() == 0
    printed = launch.log.read_text().replace(str(store), "")  # the folder has this test's name
    assert "deprecat" not in printed.lower()
    assert "Traceback" not in printed
    assert_undisturbed(store, calm)


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
    status = launch.end()
    if status:  # a cell's worker was killed more often than the launch retries
        launch = Launch("fragile", store)
        status = launch.end()
    assert status == 0, f"seed {seed}: {launch.log.read_text()}"
    assert_undisturbed(store, calm)


def test_the_sweeps_here_are_not_registered() -> None:
    assert not SWEEPS.keys() & experiments.SWEEPS.keys()
