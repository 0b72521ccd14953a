"""Slurm on hosts that are namespaces of this machine: a controller on the first, a node on each."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts

ENDS_WELL = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "COMPLETED", "NODE_FAIL")
NEEDS = ("slurmctld", "slurmd", "sbatch", "munged")
# Slurm's defaults wait minutes: for a node that does not answer, and before a requeued job starts again.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=/mnt/slurm/state
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/mnt/slurm/slurmctld.log
SlurmdLogFile=/mnt/slurm/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdTimeout=3
MessageTimeout=3
TCPTimeout=1
KillWait=1
SchedulerParameters=bf_interval=1,batch_sched_delay=1,sched_interval=1
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
MUNGE = """
mount --bind /mnt/slurm/hosts /etc/hosts
mkdir -p /run/munge
install -m 600 /mnt/slurm/munge.key /tmp/munge.key
munged --force --key-file=/tmp/munge.key --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/munged.pid \
  --log-file=/tmp/munged.log --seed-file=/tmp/munge.seed
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [name for name in NEEDS if not hosts.which(name)]
    return hosts.missing() or (f"not installed: {', '.join(absent)}" if absent else None)


class Slurm:
    def __init__(self, found: list[hosts.Host], key: Path, shared: Path) -> None:
        self.hosts, self._key, self.folder = found, key, shared / "slurm"
        (self.folder / "state").mkdir(parents=True)
        names = "".join(f"{host.address} {host.name}\n" for host in found)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        nodes = "".join(f"NodeName={host.name} NodeAddr={host.address} CPUs=1\n" for host in found)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(controller=found[0].name) + nodes)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for host in found:
            self.on(host, MUNGE)
        self.on(found[0], "slurmctld")
        for host in found:
            self.on(host, f"slurmd -N {host.name}")

    def back(self, host: hosts.Host) -> None:
        host.start()
        self.on(host, f"{MUNGE}slurmd -N {host.name}")

    def on(self, host: hosts.Host, command: str) -> str:
        """What the command printed there; it must succeed."""
        ssh = ["ssh", "-i", str(self._key), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
        ssh += ["-o", "UserKnownHostsFile=/dev/null", f"root@{host.address}"]
        full = f"set -e; export SLURM_CONF=/mnt/slurm/slurm.conf; {command}"
        done = subprocess.run([*ssh, full], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self) -> dict[str, str]:
        """What Slurm says of the first job, by name: JobState, Restarts, ..."""
        words = self.on(self.hosts[0], "scontrol --oneliner show job 1").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, true: Callable[[dict[str, str]], bool], log: Path) -> None:
        """Until it is true of the first job, which must not fail; `log` is its output."""
        deadline = time.monotonic() + 300
        while not true(job := self.job()):
            assert job["JobState"] in ENDS_WELL, f"{job['JobState']}\n{log.read_text()}"
            assert time.monotonic() < deadline, job
            time.sleep(1)


@contextlib.contextmanager
def slurm(number: int, folder: Path, shared: Path) -> Iterator[Slurm]:
    """A cluster of `number` nodes, of one processor each, that see `shared` as `hosts.SHARED`."""
    with hosts.hosts(number, folder, shared) as (found, key):
        yield Slurm(found, key, shared)
