"""One download of a data set at a time, also by several processes and hosts that share its folder."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def mark_of(root: Path, name: str) -> Path:
    """The file that is there while the data set `name` is downloaded into `root`."""
    return root / f".{name}.download"


def read_or_download(folder: Path, mark: Path, read: Callable[[bool], T]) -> T:
    """``read(False)`` if the `folder` of a data set is there, else ``read(True)``, which downloads it.

    Whatever a failed or interrupted download leaves is removed. Raises OSError if `mark` cannot be written.
    """
    if folder.is_dir() and not mark.exists():
        return read(False)
    with downloading(mark) as interrupted:
        if interrupted:
            shutil.rmtree(folder, ignore_errors=True)
        if folder.is_dir():  # another process has just downloaded it
            return read(False)
        # What the download makes, from the first folder that is not there.
        made = next(path for path in (*reversed(folder.parents), folder) if not path.exists())
        try:
            return read(True)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


@contextlib.contextmanager
def downloading(mark: Path) -> Iterator[bool]:
    """Hold the lock of a download in the block: the file `mark`, which is there only meanwhile.

    Waits for the process that holds it. Yields whether the one before was killed during its download.
    Missing folders are made, and removed again if nothing is in them afterwards. Raises OSError if `mark`
    cannot be written.
    """
    made = [folder for folder in mark.parents if not folder.exists()]
    held = _hold(mark)
    try:
        interrupted = os.fstat(held).st_size > 0
        os.write(held, b"downloading\n")
        yield interrupted
    finally:
        mark.unlink(missing_ok=True)  # while it is held: who waits for it then looks again
        os.close(held)
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _hold(mark: Path) -> int:
    """Open and lock the file, and make sure that it is still the one at this path."""
    while True:
        mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            opened = os.open(mark, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder has been removed meanwhile
            continue
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(opened, fcntl.LOCK_EX)  # released by the system if the process dies
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened), mark.stat()):
                return opened
        os.close(opened)
