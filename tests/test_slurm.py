"""deploy/slurm.sh: what it asks of a Slurm made of shell scripts, and Slurm itself, which loses a node."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import hosts
import pytest
import slurm_hosts
import unhurried

SCRIPT = Path(__file__).parents[1] / "deploy" / "slurm.sh"
EPOCHS = 12
# Three cells that take some seconds and little of the processor.
SWEEP = f"""
from hiddenweights.sweeps.grid import arm

def few():
    network = {{"model.arch": "unhurried:network", "model.k": 0.5}}
    return [arm({{"data.name": "digits", "train.epochs": {EPOCHS}, **network}}, {{"seed": range(3)}})]
"""
ENVIRONMENT = f"{unhurried.PAUSE}=0.02 PYTHONPATH={hosts.SHARED}/hidden-weights/tests WANDB_MODE=disabled"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes; every command called is noted in `calls`."""
    commands = {
        "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "n1\\nn2\\n"; true',
        "getent": 'echo "10.0.0.1 STREAM n1"',
        "ray": 'mkdir -p "$HOME/.ray" && echo secret > "$HOME/.ray/auth_token"',
        "srun": 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $HIDDENWEIGHTS_STORE" >> calls; '
        'echo "srun $*" >> calls; sleep "${HANG:-0}"; while [ "$1" != -- ]; do shift; done; shift; "$@"; '
        "exit 137",  # as if it had killed Ray's other nodes
        "hiddenweights": 'echo "hiddenweights $*" >> calls; exit "${STATUS:-0}"',
    }
    (tmp_path / "bin").mkdir()
    for name, body in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "8",
    }


def job(tmp_path: Path, environment: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    (tmp_path / "home").mkdir(exist_ok=True)
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], cwd=tmp_path, env=environment)


def test_ray_runs_on_every_node_and_the_launch_on_the_first(tmp_path: Path, slurm: dict[str, str]) -> None:
    assert job(tmp_path, slurm, "depth", "--set", "data.root=my data").wait(20) == 0
    calls = (tmp_path / "calls").read_text()
    assert f"token secret {tmp_path}/runs" in calls
    assert "ray symmetric-run --address 10.0.0.1:23456 --min-nodes 2 --num-cpus 8" in calls
    assert "\nhiddenweights sweeps launch depth --set data.root=my data --address 10.0.0.1:23456\n" in calls
    assert (tmp_path / "home/.ray/auth_token").stat().st_mode & 0o077 == 0


def test_failed_cells_are_the_jobs_status_and_no_reason_to_queue_it_again(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    assert job(tmp_path, slurm | {"STATUS": "3"}, "depth").wait(20) == 3
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_before_the_time_is_up_the_job_is_queued_again(tmp_path: Path, slurm: dict[str, str]) -> None:
    process = job(tmp_path, slurm | {"HANG": "5"}, "depth")
    for _ in range(100):
        if (tmp_path / "calls").exists() and "srun" in (tmp_path / "calls").read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    process.wait(20)
    assert "scontrol requeue 123456" in (tmp_path / "calls").read_text()


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_a_job_that_loses_a_node_is_queued_again_and_does_every_cell_once(tmp_path: Path) -> None:
    """With Slurm itself, on two hosts that are namespaces of this machine."""
    if why := slurm_hosts.missing():
        pytest.skip(why)
    shared = tmp_path / "shared"
    for folder in (shared, tmp_path / "net"):
        folder.mkdir()
    (shared / "hidden-weights").symlink_to(SCRIPT.parents[1])
    (shared / "sweep.py").write_text(SWEEP)
    runs, log = shared / "runs", shared / "job.log"
    with slurm_hosts.slurm(2, tmp_path / "net", shared) as cluster:
        first, second = cluster.hosts
        cluster.on(
            first,
            f"cd {hosts.SHARED}/hidden-weights; HIDDENWEIGHTS_STORE={hosts.SHARED}/runs {ENVIRONMENT} "
            f"sbatch --output={hosts.SHARED}/job.log deploy/slurm.sh {hosts.SHARED}/sweep.py:few",
        )
        cluster.wait_until(lambda _: len(training(runs)) == 2, log)
        second.lose()
        cluster.wait_until(lambda job: job["JobState"] == "PENDING", log)
        lost = training(runs)
        for path in runs.glob("cells/*/lock"):  # as if the minute and a half had passed that a lease lives
            lock = json.loads(path.read_text())
            path.write_text(json.dumps(lock | {"heartbeat": 0.0}))
        cluster.back(second)
        cluster.wait_until(lambda job: job["JobState"] == "COMPLETED", log)
        assert cluster.job()["Restarts"] == "1"
    results = {path.parent.name: json.loads(path.read_text()) for path in runs.glob("cells/*/result.json")}
    assert len(results) == 3
    assert lost
    for cell, result in results.items():
        assert result["attempts"] == 1 + (cell in lost)
        assert [record["epoch"] for record in result["history"]] == list(range(1, EPOCHS + 1))


def training(runs: Path) -> set[str]:
    """The cells that are in the middle of training, or were when it was interrupted."""
    return {path.parents[1].name for path in runs.glob("cells/*/checkpoint/checkpoint.pt")}
