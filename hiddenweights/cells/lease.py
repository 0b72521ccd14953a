"""Leases: which process trains a cell, and whether it is still alive."""

import contextlib
import fcntl
import functools
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from hiddenweights.cells.files import Files
from hiddenweights.cells.format import Damaged, Json, open_failure

# A lease is renewed every HEARTBEAT seconds. After STALE seconds without a renewal anyone may take it. The
# clocks of hosts that share a store must agree to much less than the difference.
HEARTBEAT = 15.0
STALE = 90.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Busy(RuntimeError):
    """Another live process trains this cell."""


class LeaseLost(RuntimeError):
    """Another process has taken the cell, because this one did not renew its lease in time."""


class Leases(Files):
    """The leases of cells, beside the files that they protect."""

    def failure(self, cell: str) -> Json | None:
        """The last failure of the cell, with all keys, or None."""
        name = self._of(cell, "failure.json")
        content = self._read_bytes(name)
        return None if content is None else open_failure(content, self._path(name))

    @contextlib.contextmanager
    def lease(self, cell: str, launch: str = "", patience: float = 0.0) -> "Iterator[Lease]":
        """Hold the lease of the cell during the block. Raises `Busy` if another live process holds it.

        A lease of another host for the same `launch` is free: Ray only hands out a cell again after losing
        its host. A store that is `Unreachable` is asked again for `patience` seconds.
        """
        owner = uuid.uuid4().hex
        mine = self.insist(lambda: self._acquire(cell, launch, owner), patience)
        lease = Lease(self, cell, mine)
        try:
            yield lease
        finally:
            lease.release()

    def _acquire(self, cell: str, launch: str, owner: str) -> Json:
        """Write the cell's lock for `owner`, and return its content."""
        lock = self._of(cell, "lock")
        with self._guard():
            held = self._read_lock(lock)
            if held and held["owner"] == owner:  # an earlier request succeeded, and only its answer was lost
                return held
            if alive(held, launch):
                raise Busy(f"cell {cell} is being trained by another process")
            failure = self.failure(cell) or {}
            attempt = 1 + max((held or {}).get("attempt", 0), failure.get("attempt", 0))
            mine = {"owner": owner, **_this_process(), "launch": launch, "attempt": attempt}
            if not self.local:
                mine["attempt"] = self._claim(cell, mine)
            self._write(lock, mine | {"heartbeat": time.time()}, durable=False)
        return mine

    def _claim(self, cell: str, mine: Json) -> int:
        """On an object store, make `mine` the only one to write the cell's lock; returns its attempt.

        Of all that find the cell free at once, one creates the claim of the next attempt. A claimant that
        died before it wrote the lock is passed over when it has been silent for long. Raises `Busy`.
        """
        lock = self._of(cell, "lock")
        attempt: int = mine["attempt"]
        while not self._create(self._claim_of(cell, attempt), mine | {"heartbeat": time.time()}):
            claim = self._read_lock(self._claim_of(cell, attempt))
            if claim and claim["owner"] == mine["owner"]:  # only the answer to an earlier request was lost
                break
            if claim is None or alive(claim, mine["launch"]):
                raise Busy(f"cell {cell} is being claimed by another process")
            attempt += 1
        if alive(self._read_lock(lock), mine["launch"]):  # it took the cell and has removed its claim
            raise Busy(f"cell {cell} is being trained by another process")
        for earlier in range(mine["attempt"] - 1, attempt):
            self._remove(self._claim_of(cell, earlier))
        return attempt

    def _claim_of(self, cell: str, attempt: int) -> str:
        return self._of(cell, f"claim-{attempt}")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Serialise changes of leases among hosts that share a folder; an object store has `_claim`."""
        if not self.local:
            yield
            return
        self._make_folder(self.local / "cells")
        with open(self.local / "cells" / ".guard", "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # released by the system if the process dies
            yield

    def _read_lock(self, name: str) -> Json | None:
        """The lease in a file; None if there is no valid one."""
        try:
            lock = self._read(name)
        except Damaged:
            return None
        kinds: dict[str, tuple[type, ...]] = {
            "owner": (str,),
            "host": (str,),
            "pid": (int,),
            "born": (str, type(None)),
            "heartbeat": (int, float),
            "attempt": (int,),
        }
        fine = lock and all(type(lock.get(key)) in types for key, types in kinds.items())
        return lock if fine else None


class Lease:
    """The lease of a cell. A thread renews it; `check` raises if it is lost."""

    def __init__(self, store: Leases, cell: str, mine: Json) -> None:
        self.attempt: int = mine["attempt"]
        self._store, self._cell, self._mine = store, cell, mine
        self._lock = store._of(cell, "lock")
        self._renewed = time.time()
        self._lost = self._finished = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLost` if another process has taken the cell.

        Asks the store if the lease was not renewed in time, as after a computer has slept.
        """
        if self._lost:
            raise LeaseLost("another process took this cell over")
        if time.time() - self._renewed > STALE:
            self.renew(self._mine.get("waiting", ""))

    def renew(self, waiting: str = "") -> None:
        """Renew the lease now, with the reason why the trainer is `waiting`, if it is.

        Raises `LeaseLost` when another process took it over.
        """
        self._mine["waiting"] = waiting
        with self._store._guard():
            if not self._held():
                self._lost = True
                raise LeaseLost("another process took this cell over")
            now = time.time()
            self._store._write(self._lock, self._mine | {"heartbeat": now}, durable=False)
            self._renewed = now

    def finished(self) -> None:
        """The cell is finished, so `release` will delete the lock file instead of only freeing it."""
        self._finished = True

    def release(self) -> None:
        """Release the lease. The number of attempts is kept until the cell is finished."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError), self._store._guard():
            if not self._held():
                return
            if not self._store.local:
                self._store._remove(self._store._claim_of(self._cell, self.attempt))
            if self._finished:
                self._store._remove(self._lock)
            else:
                self._store._write(self._lock, self._mine | {"heartbeat": 0.0}, durable=False)

    def _held(self) -> bool:
        held = self._store._read_lock(self._lock)
        return held is not None and held["owner"] == self._mine["owner"]

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self.renew(self._mine.get("waiting", ""))
            except OSError:
                pass  # the store may be unreachable for a while
            except LeaseLost:
                return


def _this_process() -> Json:
    return {"host": _host(), "pid": os.getpid(), "born": _birth(os.getpid())}


def alive(lock: Json | None, launch: str = "") -> bool:
    """Whether a lease is still held: its heartbeat is recent and, on this host, its process exists.

    Leases of the same `launch` on other hosts count as dead: Ray only hands out a cell again after losing the
    host that had it.
    """
    if lock is None or time.time() - lock["heartbeat"] > STALE:
        return False
    if lock["host"] == _host():
        return bool(_birth(lock["pid"]) == lock["born"])
    return not launch or lock.get("launch") != launch


@functools.cache
def _host() -> str:
    """The namespace of process ids.

    Two containers on one machine have different ones. Two machines may have the same name, and the number of
    the namespace is then the same, too: only the boot tells them apart.
    """
    space = Path("/proc/self/ns/pid")
    number = os.readlink(space) if space.exists() else ""
    return f"{platform.node()}/{number}/{BOOT.read_text().strip() if BOOT.exists() else ''}"


def _birth(pid: int) -> str | None:
    """The start time of process `pid`, so that a reused pid is not mistaken for the old process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while its file is read
        if Path("/proc/self/stat").exists():
            return None
        try:  # systems without /proc
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    return None if fields[0] == "Z" else fields[19]  # a zombie counts as dead
