"""Hosts on one machine: each with an address, processes, a home and temporary files of its own, and sshd.

A host is a set of Linux namespaces behind a bridge; all of them see one folder, as if over NFS. It can be
lost (its processes die at once, its cable is pulled) and come back: without processes and temporary files,
its home as it was.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDS = ("sshd", "ssh", "ssh-keygen", "ip", "rsync", "unshare", "mount")
SHARED = Path("/mnt")  # where every host sees the shared folder
CHECKOUT = Path(__file__).parents[1]  # which every host sees where it is, even in /tmp
SSHD = """
HostKey /srv/host_key
AuthorizedKeysFile /srv/key.pub
PidFile none
StrictModes no
PasswordAuthentication no
UsePAM no
MaxStartups 100
MaxSessions 100
"""
USERS = """\
root:x:0:0:root:/tmp/home:/bin/bash
sshd:x:100:65534::/run/sshd:/bin/false
"""
# The first process of a host: when it dies, all others do. The host runs on this machine's files, but for
# what is mounted here; its user is the machine's, with another home.
BOOT = """
set -e
hostname "$0"
mount --bind "$2" /mnt
mount --bind "$1" /srv
mount --bind /srv/passwd /etc/passwd
mount --bind "$4" /media
mount -t tmpfs tmpfs /tmp
mkdir -p "$4"
mount --bind /media "$4"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd /tmp/home "/srv/homes/$0"
mount --bind "/srv/homes/$0" /tmp/home
exec "$3" -D -e -f /srv/sshd_config
"""


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    if os.geteuid():
        return "hosts in network namespaces take root"
    absent = [name for name in NEEDS if not which(name)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    return "no namespaces here" if subprocess.run(probe, check=False).returncode else None


class Host:
    """One of them. `address` is what the others call it, `name` what it calls itself."""

    def __init__(self, net: "Net", number: int) -> None:
        self.address = f"{net.prefix}.{number}"
        self._net, self.name, self._cable = net, f"{net.name}h{number}", f"{net.name}v{number}"
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "link", "set", self._cable, "master", net.name)
        _run("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", self.name, "link", "set", device, "up")
        _run("ip", "-n", self.name, "route", "add", "default", "via", f"{net.prefix}.254")
        self.start()

    def start(self) -> None:
        """Boot; returns when sshd answers."""
        _run("ip", "link", "set", self._cable, "up")
        with open(self._net.folder / f"{self.name}.log", "a") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child",
                 "--mount", "--mount-proc", "--uts", "bash", "-c", BOOT, self.name,
                 str(self._net.folder), str(self._net.shared), str(which("sshd")), str(CHECKOUT)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
                return
            assert time.monotonic() < deadline, f"no sshd at {self.address}"
            time.sleep(0.1)

    def lose(self) -> None:
        """All processes die and the cable is pulled."""
        self._process.kill()
        self._process.wait()
        _run("ip", "link", "set", self._cable, "down")

    def remove(self) -> None:
        self.lose()
        _run("ip", "link", "del", self._cable)
        _run("ip", "netns", "del", self.name)


class Net:
    """A bridge with hosts that `folder` configures and that share `shared`."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared
        self.name = f"hw{os.getpid()}"
        self.prefix = f"10.{100 + os.getpid() // 250 % 100}.{os.getpid() % 250}"
        self.key = folder / "key"
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        (folder / "sshd_config").write_text(SSHD)
        (folder / "passwd").write_text(USERS)


@contextlib.contextmanager
def hosts(number: int, folder: Path, shared: Path) -> Iterator[tuple[list[Host], Path]]:
    """`number` hosts that see `shared` as `SHARED`, and the file of the ssh key that root there knows."""
    net = Net(folder, shared)
    with contextlib.ExitStack() as stack:
        _run("ip", "link", "add", net.name, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", net.name)
        _run("ip", "addr", "add", f"{net.prefix}.254/24", "dev", net.name)
        _run("ip", "link", "set", net.name, "up")
        found = []
        for i in range(1, number + 1):
            found.append(Host(net, i))
            stack.callback(found[-1].remove)
        yield found, net.key


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _run(*command: str) -> None:
    subprocess.run([which(command[0]) or command[0], *command[1:]], check=True)
