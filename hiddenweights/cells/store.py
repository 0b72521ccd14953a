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
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from hiddenweights.cells.files import PATIENCE as PATIENCE
from hiddenweights.cells.files import mirror, store_errors
from hiddenweights.cells.format import CELL, Damaged, open_plan, open_result, seal
from hiddenweights.cells.format import Json as Json  # every user of a store imports it from here
from hiddenweights.cells.lease import Busy as Busy
from hiddenweights.cells.lease import Lease as Lease
from hiddenweights.cells.lease import LeaseLost as LeaseLost
from hiddenweights.cells.lease import Leases, alive
from hiddenweights.errors import StoreAway as StoreAway
from hiddenweights.errors import Unreachable as Unreachable
from hiddenweights.errors import UserError, shown

TIDY = 10.0  # time limit in seconds for removing files that a finished cell no longer needs

State = Literal["finished", "failed", "running", "stopped", "missing"]


def default_store() -> str:
    """The default store: ``$HIDDENWEIGHTS_STORE``, else ``runs``."""
    return os.environ.get("HIDDENWEIGHTS_STORE") or "runs"


class Store(Leases):
    """The results of cells at `uri`: a local path, or a URL for fsspec (``s3://bucket/runs``).

    The constructor reads and writes nothing. Raises `UserError` for a URL whose protocol is unknown or whose
    package is not installed.
    """

    # --- results -------------------------------------------------------------------------------------

    def result(self, cell: str) -> Json | None:
        """The result of a finished cell, or None. Raises `Damaged` if its file has changed."""
        name = self._of(cell, "result.json")
        content = self._read_bytes(name)
        return None if content is None else open_result(content, self._path(name), cell)

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
        with store_errors():
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
        with contextlib.suppress(StoreAway):  # the cell is finished even if these files cannot be removed
            for name in ("failure.json", "checkpoint"):
                self.insist(lambda name=name: self._remove(self._of(cell, name)), TIDY)  # type: ignore[misc]
        if self.local:
            for torn in (self.local / "cells" / cell).glob(".*.tmp"):  # leftovers of a killed writer
                torn.unlink(missing_ok=True)

    def fail(self, cell: str, failure: Mapping[str, Any]) -> None:
        """Store the failure of the cell. Its checkpoint remains."""
        self._write(self._of(cell, "failure.json"), failure)

    def listing(self) -> dict[str, tuple[str, str]]:
        """The started cells: the most informative file of each, and a text that changes with this file.

        The file is ``result.json``, else ``failure.json``, else ``lock``.
        """
        rank = {"lock": 0, "failure.json": 1, "result.json": 2}
        best: dict[str, tuple[int, str, str]] = {}
        for cell, name, version in self._files():
            if name in rank and CELL.fullmatch(cell) and rank[name] >= best.get(cell, (-1,))[0]:
                best[cell] = (rank[name], name, version)
        return {cell: (name, version) for cell, (_, name, version) in sorted(best.items())}

    def contents(self, files: Mapping[str, str]) -> Iterator[tuple[str, str, bytes]]:
        """Cell, path and content of one file per cell: `files` names it. Missing files are left out."""
        names = {cell: self._of(cell, name) for cell, name in files.items()}
        if self.local:
            for cell, name in names.items():
                if (content := self._read_bytes(name)) is not None:
                    yield cell, self._path(name), content
            return
        paths = {self._path(name): cell for cell, name in names.items()}
        for start in range(0, len(paths), 100):  # many per request
            with store_errors():
                found = self._fs.cat([*paths][start : start + 100], on_error="omit")
            for path, content in found.items():
                yield paths[path], path, content

    def finished(self) -> set[str]:
        """All finished cells."""
        names = self._names().items()
        return {cell for cell, files in names if "result.json" in files and CELL.fullmatch(cell)}

    def states(self, cells: Iterable[str]) -> dict[str, State]:
        """The state of each of `cells`. ``stopped`` cells were started and are not being trained."""
        names = self._names()
        return {cell: self._state(cell, names.get(cell, set())) for cell in cells}

    def waiting(self, cells: Iterable[str]) -> str | None:
        """The reason why the trainer of one of `cells` waits. It may be a problem of its host alone."""
        for cell in cells:
            with contextlib.suppress(OSError):
                lock = self._read_lock(self._of(cell, "lock"))
                if lock and lock.get("waiting") and alive(lock):
                    return shown(lock["waiting"])
        return None

    def _state(self, cell: str, names: set[str]) -> State:
        if "result.json" in names:
            return "finished"
        if "lock" in names and alive(self._read_lock(self._of(cell, "lock"))):
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

    def _files(self) -> Iterator[tuple[str, str, str]]:
        """Cell, name and version of each file of a cell. An object store lists them in one request."""
        if self.local:
            nothing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
            with nothing, os.scandir(self.local / "cells") as cells:
                for cell in cells:
                    with nothing, os.scandir(cell.path) as files:
                        for file in files:
                            with nothing:  # a lock may go meanwhile; the result beside it counts
                                if file.is_file():
                                    stat = file.stat()
                                    yield cell.name, file.name, f"{stat.st_mtime_ns} {stat.st_size}"
            return
        start = len(self._path("cells")) + 1
        self._fs.invalidate_cache()  # other processes write here, too
        with store_errors():
            found = self._fs.find(self._path("cells"), detail=True)
        for path, info in found.items():
            cell_, _, name = path[start:].partition("/")
            times = (info.get(key) for key in ("ETag", "etag", "LastModified", "updated", "created"))
            yield cell_, name, f"{next(filter(None, times), '')} {info.get('size')}"

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
        with contextlib.suppress(FileNotFoundError), store_errors():
            files = self._fs.ls(self._path("sweeps"), detail=False, refresh=True)
            return sorted(Path(file).stem for file in files if file.endswith(".json"))
        return []

    # --- checkpoints ---------------------------------------------------------------------------------

    def checkpoint_bytes(self, cell: str) -> int:
        """The size in bytes of the cell's checkpoints in a local store; 0 if there are none."""
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
                with store_errors():
                    self._fs.get_file(path, str(target))

            def upload() -> None:
                with store_errors():
                    mirror(self._fs, here, remote)

            try:
                yield Checkpoint(here, upload)
            except LeaseLost:  # another process has the cell, and its checkpoint may be newer
                raise
            except BaseException:  # after a stop or failure, keep the epochs since the last upload
                with contextlib.suppress(OSError):
                    upload()
                raise


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


def _plan_file(name: str) -> str:
    if not re.fullmatch("[a-z0-9_-]+", name):
        raise UserError(f"sweep: {name!r} must be of a-z, 0-9, - and _")
    return f"sweeps/{name}.json"
