"""The store: results by cell in a local folder or an object store. Writes are atomic, and hosts can share it.

Layout::

    store.json                  {"format": 1}
    cells/<id>/result.json      the cell is finished; written last, with a checksum
    cells/<id>/ticket.ticket    the found subnetwork, if the method has a ticket
    cells/<id>/failure.json     the last failure
    cells/<id>/checkpoint/      the folder of the trainer, removed at the end
    cells/<id>/lock             the lease: who trains the cell, and its last heartbeat
    sweeps/<name>.json          the last launched plan of this name

Every file is complete or absent. No code in a store is ever executed: its files are JSON, and the trainer
reads the checkpoints.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import fsspec

from hiddenweights.cells.format import (
    CELL,
    STORE_FORMAT,
    Damaged,
    open_failure,
    open_plan,
    open_result,
    read_json,
    seal,
)
from hiddenweights.cells.format import Json as Json  # every user of a store imports it from here
from hiddenweights.errors import StoreAway as StoreAway
from hiddenweights.errors import Unreachable as Unreachable
from hiddenweights.errors import UserError, shown

# A lease is renewed every HEARTBEAT seconds. After STALE seconds without a renewal anyone may take it. The
# clocks of hosts that share a store must agree to much less than the difference.
HEARTBEAT = 15.0
STALE = 90.0
# Seconds that a cell or a launch waits for a store that is unreachable, read-only or full.
PATIENCE = 300.0
POLL = 1.0  # seconds between checks
TIDY = 10.0  # seconds to try to remove what a finished cell needs no more

Answer = TypeVar("Answer")
State = Literal["finished", "failed", "running", "stopped", "missing"]


def default_store() -> str:
    """The default store: ``$HIDDENWEIGHTS_STORE``, else ``runs``."""
    return os.environ.get("HIDDENWEIGHTS_STORE", "runs")


class Busy(RuntimeError):
    """Another live process trains this cell."""


class LeaseLost(RuntimeError):
    """Another process has taken the cell, because this one did not renew its lease in time."""


class Store:
    """The results of cells at `uri`: a local path, or a URL for fsspec (``s3://bucket/runs``).

    The constructor reads and writes nothing. Raises `UserError` for a URL whose protocol is unknown or whose
    package is not installed.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        if "://" not in text:
            text = str(Path(text).expanduser().absolute())
        try:
            self._fs, self._root = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise UserError(f"store: {text!r} cannot be opened: {error}") from None
        self.uri = text
        self.local: Path | None = Path(self._root) if "file" in self._protocols() else None
        self.seen = False
        """Whether this process has seen the store. If it is missing afterwards, it is unreachable."""
        self._said = ""  # the trouble that was last reported

    def _protocols(self) -> tuple[str, ...]:
        protocol = self._fs.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    # --- the store itself ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `UserError` if a newer version wrote this store, or if `uri` cannot be a store."""
        if self.local:
            there = next(path for path in (self.local, *self.local.parents) if path.exists())
            if not there.is_dir():
                raise UserError(f"store: {self.uri!r} cannot be a folder: {there} is a file")
        try:
            header = self._read("store.json")
        except OSError as error:
            raise UserError(f"store: {self.uri!r} cannot be read: {_reason(error)}") from None
        found = STORE_FORMAT if header is None else header.get("format")
        if type(found) is not int or found > STORE_FORMAT:
            raise UserError(
                f"store: {self.uri!r} has format {found!r:.40}; this version reads up to {STORE_FORMAT}"
            )

    def prepare(self) -> None:
        """Create the store. Raises `UserError` if it cannot be written."""
        self.check()
        try:
            self._write("store.json", {"format": STORE_FORMAT})
        except OSError as error:
            raise UserError(f"store: {self.uri!r} cannot be written: {_reason(error)}") from None
        self.seen = True

    def present(self) -> bool:
        """Whether the store exists and is visible from this host."""
        found = self._read("store.json") is not None
        self.seen |= found
        return found

    def trouble(self, room: int = 2**16) -> str | None:
        """The reason why a store that existed cannot be used now; None if it can.

        `room` is the number of bytes that must fit into it.
        """
        try:
            if not self.present() and self.seen:
                return "it is not there"
            if self.local and self.seen:
                with tempfile.TemporaryFile(dir=self.local) as probe:
                    probe.write(bytes(room))
        except OSError as error:
            return _reason(error)
        return None

    def wait(self, deadline: float, room: int = 2**16) -> None:
        """Return as soon as the store can be used. Raises `StoreAway` at `deadline` (of `time.monotonic`)."""
        while trouble := self.trouble(room):
            self.pause(trouble, deadline)

    def pause(self, trouble: str, deadline: float) -> None:
        """Wait a moment because of `trouble`. Raises `StoreAway` at `deadline`."""
        trouble = f"the store {self.uri} cannot be used ({trouble})"
        if time.monotonic() >= deadline:
            raise StoreAway(trouble)
        if trouble != self._said:
            logging.getLogger(__name__).warning("%s; waiting for it", trouble)
            self._said = trouble
        time.sleep(POLL)

    def insist(self, ask: Callable[[], Answer], patience: float) -> Answer:
        """What `ask` returns, asked again while the store is `Unreachable`, for `patience` seconds at most.

        Raises `StoreAway` then, and whatever else `ask` raises.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return ask()
            except Unreachable as error:
                self.pause(str(error), deadline)

    # --- results -------------------------------------------------------------------------------------

    def result(self, cell: str) -> Json | None:
        """The result of a finished cell, or None. Raises `Damaged` if its file has changed."""
        name = self._of(cell, "result.json")
        content = self._read_bytes(name)
        return None if content is None else open_result(content, self._path(name), cell)

    def failure(self, cell: str) -> Json | None:
        """The last failure of the cell, with all keys, or None."""
        name = self._of(cell, "failure.json")
        content = self._read_bytes(name)
        return None if content is None else open_failure(content, self._path(name))

    def results(
        self, cells: Iterable[str], damaged: dict[str, str] | None = None
    ) -> Iterator[tuple[str, Json]]:
        """The results of the finished cells among `cells`, one at a time, because all may not fit in memory.

        Damaged results are left out. `damaged` gets their reasons by cell.
        """

        def read(cell: str) -> Json | Damaged | None:
            try:
                return self.result(cell)
            except Damaged as error:
                return error

        cells = list(cells)
        with ThreadPoolExecutor(8) as pool:  # a local store spends most of the time parsing
            found = map(read, cells) if self.local else pool.map(read, cells)
            for cell, result in zip(cells, found, strict=True):
                if isinstance(result, Damaged):
                    if damaged is not None:
                        damaged[cell] = str(result)
                elif result is not None:
                    yield cell, result

    def discard_damaged(self, cell: str) -> None:
        """Remove the result of the cell if it is damaged, so that the cell can be trained again."""
        try:
            self.result(cell)
        except Damaged:
            self._remove(self._of(cell, "result.json"))

    def ticket(self, cell: str) -> bytes | None:
        """The content of the ticket of a finished cell, or None."""
        return self._read_bytes(self._of(cell, "ticket.ticket"))

    def has_ticket(self, cell: str) -> bool:
        """Whether the cell has a ticket."""
        self._fs.invalidate_cache()
        with _store_errors():
            return bool(self._fs.exists(self._path(self._of(cell, "ticket.ticket"))))

    def add_ticket(self, cell: str, content: bytes) -> None:
        """Store the ticket of a cell that was trained elsewhere."""
        self._write_bytes(self._of(cell, "ticket.ticket"), content)

    def local_ticket(self, cell: str) -> Path | None:
        """The ticket of a finished cell as a local file, or None."""
        path = self.local / self._of(cell, "ticket.ticket") if self.local else None
        return path if path and path.exists() else None

    def finish(self, cell: str, result: Mapping[str, Any], ticket: bytes | None = None) -> None:
        """Store ticket and result, in this order, and remove all files that are no longer needed."""
        if ticket is not None:
            self.add_ticket(cell, ticket)
        self._write_bytes(self._of(cell, "result.json"), seal(result))
        with contextlib.suppress(StoreAway):  # the cell is finished whether or not this can be cleared away
            for name in ("failure.json", "checkpoint"):
                self.insist(lambda name=name: self._remove(self._of(cell, name)), TIDY)  # type: ignore[misc]
        if self.local:
            for torn in (self.local / "cells" / cell).glob(".*.tmp"):  # leftovers of a killed writer
                torn.unlink(missing_ok=True)

    def fail(self, cell: str, failure: Mapping[str, Any]) -> None:
        """Store the failure of the cell. Its checkpoint remains."""
        self._write(self._of(cell, "failure.json"), failure)

    def finished(self) -> set[str]:
        """All finished cells."""
        names = self._names().items()
        return {cell for cell, files in names if "result.json" in files and CELL.fullmatch(cell)}

    def states(self, cells: Iterable[str]) -> dict[str, State]:
        """The state of each of `cells`. ``stopped`` cells were started and are not being trained."""
        names = self._names()
        return {cell: self._state(cell, names.get(cell, set())) for cell in cells}

    def waiting(self, cells: Iterable[str]) -> str | None:
        """What the trainer of one of `cells` waits for: it knows of trouble that is not everybody's."""
        for cell in cells:
            with contextlib.suppress(OSError):
                lock = self._read_lock(self._of(cell, "lock"))
                if lock and lock.get("waiting") and _alive(lock):
                    return shown(lock["waiting"])
        return None

    def _state(self, cell: str, names: set[str]) -> State:
        if "result.json" in names:
            return "finished"
        if "lock" in names and _alive(self._read_lock(self._of(cell, "lock"))):
            return "running"
        if "failure.json" in names:
            return "failed"
        return "stopped" if names else "missing"

    def _names(self) -> dict[str, set[str]]:
        """The file names of each cell with a folder, from one listing for all cells."""
        names: dict[str, set[str]] = {}
        if self.local:
            nothing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
            with nothing, os.scandir(self.local / "cells") as cells:
                for cell in cells:
                    with nothing:
                        names[cell.name] = set(os.listdir(cell.path))
            return names
        start = len(self._path("cells")) + 1
        for path in self._find("cells"):
            cell_, _, rest = path[start:].partition("/")
            names.setdefault(cell_, set()).add(rest.partition("/")[0])
        return names

    # --- plans ---------------------------------------------------------------------------------------

    def plan(self, name: str) -> Json | None:
        """The last launched plan of the sweep `name`, or None. Raises `Damaged` if it is not a plan."""
        content = self._read_bytes(_plan_file(name))
        return None if content is None else open_plan(content, self._path(_plan_file(name)))

    def write_plan(self, name: str, plan: Mapping[str, Any]) -> None:
        """Store `plan` as the last launched plan of the sweep `name`."""
        self._write(_plan_file(name), plan)

    def plans(self) -> list[str]:
        """The names of all sweeps that were launched with this store."""
        with contextlib.suppress(FileNotFoundError), _store_errors():
            files = self._fs.ls(self._path("sweeps"), detail=False, refresh=True)
            return sorted(Path(file).stem for file in files if file.endswith(".json"))
        return []

    # --- leases --------------------------------------------------------------------------------------

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
        """Write the cell's lock, in the name of `owner`, and return what it says."""
        lock = self._of(cell, "lock")
        with self._guard():
            held = self._read_lock(lock)
            if held and held["owner"] == owner:  # written before, and only the answer was lost
                return held
            if _alive(held, launch):
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
            if claim and claim["owner"] == mine["owner"]:  # only the answer was lost
                break
            if claim is None or _alive(claim, mine["launch"]):
                raise Busy(f"cell {cell} is being claimed by another process")
            attempt += 1
        if _alive(self._read_lock(lock), mine["launch"]):  # by one that came, and whose claim has gone
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

    # --- checkpoints ---------------------------------------------------------------------------------

    def checkpoint_bytes(self, cell: str) -> int:
        """How much room the checkpoints of a local store's cell take; 0 where there are none."""
        if not self.local:
            return 0
        with contextlib.suppress(FileNotFoundError):
            return sum(path.stat().st_size for path in (self.local / self._of(cell, "checkpoint")).glob("*"))
        return 0

    @contextlib.contextmanager
    def checkpoint(self, cell: str) -> "Iterator[Checkpoint]":
        """The checkpoint of the cell as a local folder: the original, or a copy during the block."""
        folder = self._of(cell, "checkpoint")
        if self.local:
            self._make_folder(self.local / folder)
            yield Checkpoint(self.local / folder, upload=None)
            return
        remote = self._path(folder)
        with tempfile.TemporaryDirectory(prefix="hiddenweights-") as temporary:
            here = Path(temporary)
            for path in self._find(folder):
                target = here / path[len(remote) + 1 :]
                target.parent.mkdir(parents=True, exist_ok=True)
                with _store_errors():
                    self._fs.get_file(path, str(target))

            def upload() -> None:
                with _store_errors():
                    _mirror(self._fs, here, remote)

            try:
                yield Checkpoint(here, upload)
            except BaseException:  # after a stop or failure, keep the epochs since the last upload
                with contextlib.suppress(OSError):
                    upload()
                raise

    # --- files ---------------------------------------------------------------------------------------

    def _of(self, cell: str, name: str) -> str:
        if not CELL.fullmatch(cell):  # so that no path can leave the store
            raise UserError(f"cell: {cell!r} is not a cell's id (16 hex digits)")
        return f"cells/{cell}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _find(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()  # other processes write here, too
        with _store_errors():
            return list(self._fs.find(self._path(folder)))

    def _make_folder(self, folder: Path) -> None:
        """Create a folder inside a local store.

        Refuses if the store itself has disappeared: an unmounted share leaves an empty mount point that must
        not be mistaken for a new store.
        """
        if self.seen and not self.present():
            raise FileNotFoundError(errno.ENOENT, "the store is unreachable", self.uri)
        folder.mkdir(parents=True, exist_ok=True)

    def _read_bytes(self, name: str) -> bytes | None:
        try:
            with _store_errors():
                content: bytes = self._fs.cat_file(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content

    def _read(self, name: str) -> Json | None:
        content = self._read_bytes(name)
        return None if content is None else read_json(content, f"store: {self._path(name)}")

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

    def _write(self, name: str, data: Mapping[str, Any], *, durable: bool = True) -> None:
        self._write_bytes(name, (json.dumps(data) + "\n").encode(), durable=durable)

    def _write_bytes(self, name: str, content: bytes, *, durable: bool = True) -> None:
        if not self.local:
            with _store_errors():
                self._fs.pipe_file(self._path(name), content)  # a put is atomic in an object store
            return
        path = self.local / name
        self._make_folder(path.parent)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _create(self, name: str, data: Mapping[str, Any]) -> bool:
        """Write a file to an object store unless it exists. Returns whether it was written."""
        try:
            with _store_errors():
                self._fs.pipe_file(self._path(name), (json.dumps(data) + "\n").encode(), mode="create")
        except FileExistsError:
            return False
        return True

    def _remove(self, name: str) -> None:
        if self.local:
            path = self.local / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError), _store_errors():
            self._fs.rm(self._path(name), recursive=True)


class Lease:
    """The lease of a cell. A thread renews it; `check` raises if it is lost."""

    def __init__(self, store: Store, cell: str, mine: Json) -> None:
        self.attempt: int = mine["attempt"]
        self._store, self._cell, self._mine = store, cell, mine
        self._lock = store._of(cell, "lock")
        self._renewed = time.time()
        self._lost = self._finished = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLost` if another process has taken the cell, or could have by now."""
        if self._lost or time.time() - self._renewed > STALE:
            raise LeaseLost("another process took this cell over")

    def renew(self, waiting: str = "") -> None:
        """Say now that the cell is held, and what its trainer is `waiting` for, if for anything.

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
                pass  # a store may be unreachable for a while
            except LeaseLost:
                return


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """An object store's client has error types of its own for a server that does not answer as it should."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError):
        raise
    except Exception as error:
        raise Unreachable(f"{type(error).__name__}: {shown(error)}") from error


class Checkpoint:
    """A local folder for the checkpoints of a trainer. `save` uploads it if the store is remote."""

    INTERVAL = 60.0  # seconds between uploads, because an epoch may be shorter

    def __init__(self, folder: Path, upload: Any) -> None:
        self.folder = folder
        self._upload = upload
        self._saved = time.monotonic()

    def save(self) -> None:
        """Upload the changes, unless the last upload was a short while ago."""
        if self._upload and time.monotonic() - self._saved > self.INTERVAL:
            self._upload()
            self._saved = time.monotonic()


def _mirror(fs: Any, here: Path, remote: str) -> None:
    """Make `remote` contain exactly the files of `here`, new ones first, so that one is always complete."""
    mine = {path.relative_to(here).as_posix(): path for path in here.rglob("*") if path.is_file()}
    for name, path in sorted(mine.items(), key=lambda item: item[1].stat().st_mtime):
        fs.put_file(str(path), f"{remote}/{name}")
    for path_ in fs.find(remote):
        if path_[len(remote) + 1 :] not in mine:
            fs.rm_file(path_)


def _plan_file(name: str) -> str:
    if not re.fullmatch("[a-z0-9_-]+", name):
        raise UserError(f"sweep: {name!r} must be of a-z, 0-9, - and _")
    return f"sweeps/{name}.json"


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


# --- processes -----------------------------------------------------------------------------------------


def _this_process() -> Json:
    return {"host": _host(), "pid": os.getpid(), "born": _birth(os.getpid())}


def _alive(lock: Json | None, launch: str = "") -> bool:
    """Whether a lease is still held: its heartbeat is recent and, on this host, its process exists.

    Leases of the same `launch` on other hosts count as dead: Ray only hands out a cell again after losing the
    host that had it.
    """
    if lock is None or time.time() - lock["heartbeat"] > STALE:
        return False
    if lock["host"] == _host():
        return bool(_birth(lock["pid"]) == lock["born"])
    return not launch or lock.get("launch") != launch


def _host() -> str:
    """The namespace of process ids: two containers on one machine have different ones."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{os.readlink(space) if space.exists() else ''}"


def _birth(pid: int) -> str | None:
    """The start time of process `pid`, so that a reused pid is not mistaken for the old process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
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
