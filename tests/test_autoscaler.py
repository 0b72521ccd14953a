"""A launch on a cluster that starts from nothing: Ray's own autoscaler, whose nodes are processes here."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import unhurried
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.sweeps import experiments

pytestmark = [pytest.mark.slow(seconds=90), pytest.mark.timeout(900)]

HERE = Path(__file__).parent
MOST = 2  # workers
SETTINGS = {"train.epochs": 8, "model.width": 1.0}
COMMANDS = ["initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"]
# For those who connect, too: listen on loopback, to those who have the token.
CLOSED = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
AXES = {"model.arch": ["unhurried:network"], "model.k": [0.5], "seed": [0]}
# The launch's first look at a cluster whose autoscaler runs on another machine.
ELSEWHERE = """
import ray, sys
from hiddenweights.config import CellConfig
from hiddenweights.sweeps import capacity
from hiddenweights.sweeps.options import Options
capacity.startable = lambda: ()
ray.init(address=sys.argv[1], log_to_driver=False)
notes = []
nodes = capacity.survey([CellConfig()], Options(first_worker=60), notes.append)
print(nodes.largest, notes)
"""


class Cluster:
    """A head of no CPUs whose autoscaler may start `MOST` workers of one CPU each, all on this machine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        kinds = {"ray.head.default": {"CPU": 0}, "worker": {"CPU": 1, "object_store_memory": 80 * 2**20}}
        config = {
            "cluster_name": "fake",
            "max_workers": MOST,
            "idle_timeout_minutes": 3 / 60,
            "provider": {
                # By its class: the type of that name wants a file that Ray's wheel lacks.
                "type": "external",
                "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,
            },
            "available_node_types": {
                name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": MOST}
                for name, resources in kinds.items()
            },
            "head_node_type": "ray.head.default",
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            **{f"{name}_commands": [] for name in COMMANDS},
        }
        file = folder / "autoscaler.yaml"
        file.write_text(yaml.safe_dump(config))
        environment = {
            **os.environ,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "PYTHONPATH": f"{HERE.parent}:{HERE}",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            **CLOSED,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_enable_autoscaler_v2": "1",
            "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_period_ms": "500",
            "WANDB_MODE": "disabled",
            unhurried.PAUSE: "0.05",
        }
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0",
            "--node-ip-address=127.0.0.1", f"--port={self.address.rpartition(':')[2]}",
            "--include-dashboard=false", f"--object-store-memory={80 * 2**20}",
            f"--autoscaling-config={file}",
        ]  # fmt: skip
        self.launches: list[subprocess.Popen[str]] = []
        self.log = folder / "head.log"
        with open(self.log, "w") as log:
            self.head = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def workers(self) -> list[psutil.Process]:
        """The raylets of the nodes that the autoscaler has started."""
        raylets = []
        for monitor in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):  # which a zombie counts as, too
                if "monitor.py" in " ".join(monitor.cmdline()):
                    raylets += [child for child in monitor.children() if is_raylet(child)]
        return raylets

    def stop(self) -> None:
        for started in self.launches:
            started.kill()  # what a failed test left
            started.communicate()
        processes = [self.head, *self._children()]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, 10)

    def _children(self) -> list[psutil.Process]:
        return list(self.head.children(recursive=True))


def is_raylet(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.stop()


def launch(cluster: Cluster, store: Path, *arguments: str) -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-m", "hiddenweights", "sweeps", "launch", "quickstart", "--store", str(store),
         "--address", cluster.address, *arguments],
        env={**os.environ, **CLOSED, "WANDB_MODE": "disabled", "PYTHONPATH": f"{HERE.parent}:{HERE}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    cluster.launches.append(started)
    return started


def wait_until(
    true: Callable[[], Any], cluster: Cluster, running: subprocess.Popen[str] | None = None
) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert cluster.head.poll() is None, cluster.log.read_text()
        if running and running.poll() is not None:
            pytest.fail(running.communicate()[0])
        assert time.monotonic() < deadline, cluster.log.read_text()
        time.sleep(0.1)


def in_training(store: Path) -> set[int]:
    """The processes that are in the middle of a cell."""
    locks = [path for path in store.glob("cells/*/lock") if any(path.parent.glob("checkpoint/*.pt"))]
    return {json.loads(lock.read_text())["pid"] for lock in locks}


def test_a_launch_starts_the_workers_that_it_needs_and_they_go_when_idle(
    cluster: Cluster, tmp_path: Path
) -> None:
    wait_until(lambda: b"--block" in cluster.log.read_bytes(), cluster)
    store = tmp_path / "runs"

    refused = launch(cluster, store, "--set", "train.threads=64")
    assert "train.threads" in refused.communicate(timeout=180)[0].splitlines()[-1]
    assert refused.returncode == 2
    assert not cluster.workers()

    arguments = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    arguments += [f"--axis={name}={','.join(map(str, values))}" for name, values in AXES.items()]
    running = launch(cluster, store, *arguments)
    wait_until(lambda: len(in_training(store)) == MOST, cluster, running)
    before = cluster.workers()
    assert len(before) == MOST
    before[0].kill()
    printed = running.communicate(timeout=300)[0]
    assert running.returncode == 0, printed
    cells = experiments.sweep("quickstart").override(SETTINGS, AXES).cells()
    results, calm = dict(Store(store).results(cells)), Store(tmp_path / "calm")
    assert results.keys() == cells.keys()
    lost = [cell for cell, result in results.items() if result["attempts"] > 1]
    assert lost
    assert masks(results[lost[0]]) == masks(run_cell(cells[lost[0]], calm))
    wait_until(lambda: not cluster.workers(), cluster)

    asked = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, cluster.address],
        env={**os.environ, **CLOSED}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert "'CPU': 1.0, 'GPU': 0.0" in asked.stdout
    assert "first worker" in asked.stdout


def masks(result: dict[str, Any]) -> list[str]:
    return [record["mask_checksum"] for record in result["history"]]
