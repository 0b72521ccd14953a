"""`ray up deploy/onprem.yaml` on three hosts, of which one is lost and comes back during a sweep."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
import unhurried
import yaml
from PIL import Image

from hiddenweights.analysis.sources.offline import read_run
from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.sweeps import experiments

pytestmark = [pytest.mark.slow(seconds=170), pytest.mark.timeout(900)]

TOP = Path(__file__).parents[1]
EPOCHS = 20
# Cells that take 20 s on a host and keep no processor from what else is under way. Network and data are a
# user's, in a file that only the head has.
CODE = "unhurried.py"
SETTINGS = {"train.epochs": EPOCHS, "model.width": 1.0}
AXES = {"model.k": [0.5], "seed": [0, 1]}
OWN = {"model.arch": f"{CODE}:network", "data.name": f"{CODE}:images"}
# W&B's server is at a port where nobody listens: no request leaves the hosts, whatever key they have.
ENVIRONMENT = f"{unhurried.PAUSE}=0.06 WANDB_BASE_URL=http://127.0.0.1:9"
for _name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):  # of `make test CAPABILITY=...`
    if _name in os.environ:
        ENVIRONMENT += f" {_name}={os.environ[_name]}"
KEY = "0123456789" * 4


class Laptop:
    """Where `ray up` is called: a home with a token, the cluster's file, Ray."""

    def __init__(self, folder: Path, found: list[hosts.Host], key: Path) -> None:
        text = (TOP / "deploy/onprem.yaml").read_text().replace("/shared", str(hosts.SHARED))
        head, worker, profile = "ray start --head", "ray start --address", "export RAY_AUTH_MODE"
        mount = "# ~/.netrc: ~/.netrc"  # the way of the key, which users uncomment
        assert all(part in text for part in (head, worker, profile, mount))
        text = text.replace(mount, mount.removeprefix("# "))
        (folder / ".netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
        (folder / ".netrc").chmod(0o600)
        # Ray looks for a host that is back after 30 s, of itself.
        text = text.replace(head, f"AUTOSCALER_HEARTBEAT_TIMEOUT_S=15 {head}")
        # One cell at a time per host: a process that trains costs 4 s of a processor to start.
        text = text.replace(worker, "ray start --num-cpus=1 --address")
        config = yaml.safe_load(text.replace(profile, f"export {ENVIRONMENT} RAY_AUTH_MODE"))
        config["provider"] |= {"head_ip": found[0].address, "worker_ips": [h.address for h in found[1:]]}
        config["auth"] |= {"ssh_user": "root", "ssh_private_key": str(key)}
        self._file = folder / "onprem.yaml"
        self._file.write_text(yaml.safe_dump(config))
        self.log = folder / "ray.log"
        bin_ = Path(sys.executable).parent
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment = inherited | {
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PATH": f"{bin_}:{os.environ['PATH']}",
        }
        self.token = self._call("get-auth-token", "--generate").stdout.strip()

    def up(self) -> None:
        self._call("up", "--yes", str(self._file))

    def exec(self, command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        with open(log or self.log, "a") as log_:
            return subprocess.Popen(
                ["ray", "exec", str(self._file), f"TERM=dumb {command}"],
                env=self._environment, stdout=log_, stderr=log_,
            )  # fmt: skip

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["ray", *command], env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder with this checkout and its environment, as the cluster's file wants it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "hidden-weights").symlink_to(TOP)
    return folder


@pytest.fixture
def cluster(tmp_path: Path, shared: Path) -> Iterator[tuple[list[hosts.Host], Laptop]]:
    if why := hosts.missing():
        pytest.skip(why)
    (tmp_path / "net").mkdir()
    (tmp_path / "laptop").mkdir()
    with hosts.hosts(3, tmp_path / "net", shared) as (found, key):
        laptop = Laptop(tmp_path / "laptop", found, key)
        laptop.up()
        yield found, laptop


def wait_until(true: Callable[[], Any], launch: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert launch.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def in_training(runs: Path) -> set[tuple[str, str]]:
    """Hosts and the cells that they are in the middle of, or were when they were lost."""
    found = set()
    for lock in runs.glob("cells/*/lock"):
        with contextlib.suppress(FileNotFoundError):  # finished just now
            host = json.loads(lock.read_text())["host"].partition("/")[0]
            if any(lock.parent.glob("checkpoint/*.pt")):
                found.add((host, lock.parent.name))
    return found


def cells_on(host: hosts.Host, runs: Path) -> set[str]:
    return {cell for name, cell in in_training(runs) if name == host.name}


def test_a_host_is_lost_and_comes_back_during_a_sweep(
    cluster: tuple[list[hosts.Host], Laptop], shared: Path, tmp_path: Path
) -> None:
    (head, *workers), laptop = cluster
    shutil.copy(TOP / "tests" / CODE, tmp_path / "net/homes" / head.name)
    here = {name: f"{TOP}/tests/{code}" for name, code in OWN.items()}
    runs, cells = shared / "runs", experiments.sweep("quickstart").override(SETTINGS | here, AXES).cells()
    arguments = [f"--set {name}={value}" for name, value in SETTINGS.items()]
    arguments += [f"--set {name}=/tmp/home/{code}" for name, code in OWN.items()]
    arguments += [f"--axis {name}={','.join(map(str, values))}" for name, values in AXES.items()]
    launch = laptop.exec(
        f"python -m hiddenweights sweeps launch quickstart --address auto {' '.join(arguments)}"
    )
    try:
        wait_until(lambda: len({host for host, _ in in_training(runs)}) == 2, launch, laptop.log)
        workers[0].lose()
        lost = cells_on(workers[0], runs)
        workers[0].start()
        wait_until(lambda: cells_on(workers[0], runs) - lost, launch, laptop.log)
        after = cells_on(workers[0], runs) - lost
        with beside_the_sweep(cluster, shared, tmp_path):
            assert launch.wait(200) == 0, laptop.log.read_text()
    finally:
        launch.kill()
        launch.wait()
    results, calm = dict(Store(runs).results(cells)), Store(tmp_path / "calm")
    assert results.keys() == cells.keys()
    assert lost
    assert all(results[cell]["attempts"] == 2 for cell in lost)
    for cell in lost | after:
        undisturbed = run_cell(cells[cell], calm)
        assert masks(results[cell]) == masks(undisturbed)
    assert {path.name for path in runs.glob("cells/*/*")} <= {"result.json", "ticket.ticket"}
    tracked = [read_run(path) for path in runs.glob("wandb/offline-run-*/run-*.wandb")]
    assert sorted(str(run.cell) for run in tracked) == sorted(cells)
    for run in tracked:
        assert [record["epoch"] for record in run.history] == list(range(1, EPOCHS + 1))
    assert laptop.token
    assert laptop.token not in laptop.log.read_text()


@contextlib.contextmanager
def beside_the_sweep(
    cluster: tuple[list[hosts.Host], Laptop], shared: Path, tmp_path: Path
) -> Iterator[None]:
    """While the sweep goes on: the doctor, and a launch into a folder that only the head has."""
    found, laptop = cluster
    for part in ("train", "test"):
        for label in ("dark", "light"):
            (shared / "data" / part / label).mkdir(parents=True)
            Image.new("L", (8, 8), 200 * (label == "light")).save(shared / "data" / part / label / "1.png")
    sweeps = "python -m hiddenweights sweeps"
    words = {
        "doctor": f"{sweeps} doctor --address auto --data folder:squares --root {hosts.SHARED}/data",
        "alone": f"{sweeps} launch quickstart --address auto --store /tmp/home/alone --patience 1",
    }
    logs = {name: tmp_path / f"{name}.log" for name in words}
    running = {name: laptop.exec(command, logs[name]) for name, command in words.items()}
    try:
        yield
        status = {name: process.wait(60) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    printed = {name: log.read_text() for name, log in logs.items()}
    assert status["doctor"] == 0, printed["doctor"]
    for host in found:
        (row,) = (line for line in printed["doctor"].splitlines() if line.startswith(f"{host.address} ("))
        assert {"writable", "folder:squares", "offline"} <= {*row.split()}
        home = tmp_path / "net/homes" / host.name
        assert KEY in (home / ".netrc").read_text()
        assert (home / ".ray/auth_token").stat().st_mode & 0o077 == 0
    # With a key W&B's server is asked, without one it is not.
    (wandb_,) = (line for line in printed["doctor"].splitlines() if line.startswith("W&B: 127.0.0.1"))
    assert all(host.address in wandb_ for host in found)
    assert status["alone"] != 0
    assert "must share it" in printed["alone"]
    head_only = tmp_path / "net/homes" / found[0].name / "alone"
    assert (head_only / "store.json").exists()
    assert not [*head_only.glob("cells/*/*")]
    assert all(KEY not in text for text in printed.values())


def masks(result: dict[str, Any]) -> list[str]:
    return [record["mask_checksum"] for record in result["history"]]
