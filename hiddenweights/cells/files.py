"""The files of a store, on a local disk or in an object store. A file is written completely or not at all."""

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from hiddenweights.cells.format import CELL, STORE_FORMAT, Json, read_json
from hiddenweights.errors import StoreAway, Unreachable, UserError, shown

# Seconds that a cell or a launch waits for a store that is unreachable, read-only or full.
PATIENCE = 300.0
POLL = 1.0  # seconds between checks

Answer = TypeVar("Answer")


class Files:
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
        self._said = ""  # the last trouble that was reported

    def _protocols(self) -> tuple[str, ...]:
        protocol = self._fs.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    @property
    def location(self) -> str:
        """The store as a URL, the same for every way to write its path."""
        return str(self._fs.unstrip_protocol(self._root))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def check(self) -> None:
        """Raise `UserError` if a newer version wrote this store, or if `uri` cannot be a store."""
        try:
            if self.local:
                there = next(path for path in (self.local, *self.local.parents) if path.exists())
                if not there.is_dir():
                    raise UserError(f"store: {self.uri!r} cannot be a folder: {there} is a file")
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
        """Wait for a moment, because of `trouble`. Raises `StoreAway` at `deadline`."""
        trouble = f"the store {self.uri} cannot be used ({trouble})"
        if time.monotonic() >= deadline:
            raise StoreAway(trouble)
        if trouble != self._said:
            logging.getLogger(__name__).warning("%s; waiting for it", trouble)
            self._said = trouble
        time.sleep(POLL)

    def insist(self, ask: Callable[[], Answer], patience: float) -> Answer:
        """The result of `ask`, which is repeated for `patience` seconds while the store is `Unreachable`.

        Raises `StoreAway` after that time, and any other exception of `ask`.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return ask()
            except Unreachable as error:
                self.pause(str(error), deadline)

    def _of(self, cell: str, name: str) -> str:
        if not CELL.fullmatch(cell):  # so that no path can leave the store
            raise UserError(f"cell: {cell!r} is not a cell's id (16 hex digits)")
        return f"cells/{cell}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _find(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()  # other processes write here, too
        with store_errors():
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
            with store_errors():
                content: bytes = self._fs.cat_file(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content

    def _read(self, name: str) -> Json | None:
        content = self._read_bytes(name)
        return None if content is None else read_json(content, f"store: {self._path(name)}")

    def _write(self, name: str, data: Mapping[str, Any], *, durable: bool = True) -> None:
        self._write_bytes(name, (json.dumps(data) + "\n").encode(), durable=durable)

    def _write_bytes(self, name: str, content: bytes, *, durable: bool = True) -> None:
        if not self.local:
            with store_errors():
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
            with store_errors():
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
        with contextlib.suppress(FileNotFoundError), store_errors():
            self._fs.rm(self._path(name), recursive=True)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn the errors that an object store's client raises for a failing server into `Unreachable`."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError):
        raise
    except Exception as error:
        raise Unreachable(f"{type(error).__name__}: {shown(error)}") from error


def mirror(fs: Any, here: Path, remote: str) -> None:
    """Make `remote` contain exactly the files of `here`, new ones first, so that one is always complete."""
    mine = {path.relative_to(here).as_posix(): path for path in here.rglob("*") if path.is_file()}
    for name, path in sorted(mine.items(), key=lambda item: item[1].stat().st_mtime):
        fs.put_file(str(path), f"{remote}/{name}")
    for path_ in fs.find(remote):
        if path_[len(remote) + 1 :] not in mine:
            fs.rm_file(path_)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
