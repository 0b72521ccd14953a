"""deploy/slurm.sh with a Slurm made of shell scripts: what it asks of Slurm, of Ray and of the launch.

The real thing takes minutes, most of which Slurm waits: docs/cluster.md says what was tried by hand.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "deploy" / "slurm.sh"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes; every command called is noted in `calls`."""
    commands = {
        "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "n1\\nn2\\n"; true',
        "getent": 'echo "10.0.0.1 STREAM n1"',
        "ray": 'mkdir -p "$HOME/.ray" && echo secret > "$HOME/.ray/auth_token"',
        "srun": 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $HIDDENWEIGHTS_STORE" >> calls; '
        'echo "srun $*" >> calls; sleep "${HANG:-0}"; exit "${STATUS:-0}"',
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
    assert "srun --wait=30 ray symmetric-run --address 10.0.0.1:23456 --min-nodes 2 --num-cpus 8" in calls
    assert "-- hiddenweights sweeps launch depth --set data.root=my data --address 10.0.0.1:23456" in calls
    assert (tmp_path / "home/.ray/auth_token").stat().st_mode & 0o077 == 0


def test_failed_cells_are_the_jobs_status_and_no_reason_to_queue_it_again(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    assert job(tmp_path, slurm | {"STATUS": "1"}, "depth").wait(20) == 1
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
