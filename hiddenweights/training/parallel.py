"""Data parallel training of one cell by several processes of one machine.

The calling process has rank 0: it holds the lease of the cell, saves the checkpoints and yields the records.
It starts the others. Each runs the same `Trainer` on its share of every batch (`ranks`).

We start the processes ourselves instead of using Ray Train. Its controller decides about checkpoints,
attempts and failures, which here the store and the lease do. It needs two more actors per cell. And a cell
could not be trained this way by hand, without Ray. All processes of a cell are on one machine, because they
belong to one Ray actor, which has all GPUs of the cell.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hiddenweights import own
from hiddenweights.config import CellConfig
from hiddenweights.errors import RankDied, UserError
from hiddenweights.garbage import collect_rarely
from hiddenweights.training.ranks import Ranks
from hiddenweights.training.train import Diverged, Trainer

if TYPE_CHECKING:
    from hiddenweights.tickets.ticket import Ticket

# Seconds that the processes have to end by themselves after training.
END = 10.0
# Seconds within which this process must notice the death of another. Gloo reports it at once; NCCL may wait.
NOTICE = 30.0

# The processes of one machine communicate over the loopback interface only.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@contextlib.contextmanager
def trainer_of(
    config: CellConfig, folder: Path, ticket: "Ticket | None", ranks: int = 1, loaders: int | None = None
) -> Iterator[Trainer]:
    """The `Trainer` of the cell, run by `ranks` processes together for the duration of the block.

    `loaders`: processes per rank that decode the images of a folder; None: as many as the cores allow.

    Raises `RankDied` if one of the processes is killed, and any exception that one of them raises.
    """
    if ranks == 1:
        with contextlib.closing(Trainer(config, folder, ticket, loaders=loaders)) as trainer:
            yield trainer
        return
    cuda = on_cuda(config, ranks)
    with tempfile.TemporaryDirectory(prefix="hiddenweights-ranks-", ignore_cleanup_errors=True) as place:
        meeting = Path(place)
        others = _Others(config, folder, ticket, ranks, loaders, meeting)
        try:
            os.environ.update({name: os.environ.get(name, value) for name, value in LOOPBACK.items()})
            together = Ranks(0, ranks, meeting / "store", cuda)
            with contextlib.closing(Trainer(config, folder, ticket, together, loaders)) as trainer:
                yield trainer
            dist.destroy_process_group()
            others.end(END)
        except BaseException as error:
            others.end(0.0)
            _abandon()
            if isinstance(error, RankDied) and others.failed():
                raise others.failure() from error  # it says which process died, and why
            raise


def on_cuda(config: CellConfig, ranks: int) -> bool:
    """Whether `ranks` processes train the cell on GPUs. Raises `UserError` if this machine has too few."""
    name = config.train.device
    if ":" in name:
        raise UserError(f"train.device: {name!r} is one device, but {ranks} processes train the cell")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.device_count() < ranks:
        raise UserError(f"train.device: {torch.cuda.device_count()} GPUs for the {ranks} processes of a cell")
    return cuda


def _abandon() -> None:
    """Leave the process group after the other processes have died."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "gloo":
        dist.destroy_process_group()
    else:  # with NCCL, leaving would wait for the others
        with contextlib.suppress(RuntimeError):  # the error that led here is the one to report
            dist.distributed_c10d._abort_process_group()


class _Others:
    """The other processes. If one of them fails, this process notices within `NOTICE` seconds or exits."""

    def __init__(
        self,
        config: CellConfig,
        folder: Path,
        ticket: "Ticket | None",
        ranks: int,
        loaders: int | None,
        meeting: Path,
    ) -> None:
        self._meeting, self._ending = meeting, threading.Event()
        self._failures: list[Exception] = []
        self._failed = threading.Event()
        environment = os.environ | LOOPBACK | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, ranks):
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=2, env=environment
                )
                self._processes.append(process)
                threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
                assert process.stdin is not None
                # It stays open: the other process sees it close if this one dies.
                job = (own.carried(), rank, ranks, meeting, config, folder, ticket, loaders)
                pickle.dump(job, process.stdin)
                process.stdin.flush()
        except BaseException as error:
            self.end(0.0)
            if isinstance(error, BrokenPipeError) and self.failed():
                raise self.failure() from error
            raise

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if self._ending.is_set() or code == 0:
            return
        try:
            error: Exception = pickle.loads((self._meeting / f"error.{rank}").read_bytes())
            error.add_note(f"in process {rank} of the cell")
        except Exception:
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            error = RankDied(f"process {rank} of this cell died: {how}")
        self._failures.append(error)
        self._failed.set()
        if not self._ending.wait(NOTICE):  # stuck in a wait for a GPU; the store has what a resume needs
            sys.stderr.write(f"{error}; ending this process, too\n")
            sys.stderr.flush()
            os._exit(1)

    def failed(self) -> bool:
        """Whether a process has failed."""
        return bool(self._failures)

    def failure(self) -> Exception:
        """The error of the process that failed first, once. (Kept here, it would keep all that its traceback
        sees, such as the process group, until the next garbage collection: perhaps in a fork.)"""
        return self._failures.pop(0)

    def end(self, patience: float) -> None:
        """End the processes. Those that are still alive after `patience` seconds are killed."""
        if not patience:  # one may have died; its watcher reports it
            self._failed.wait(0.5)
        self._ending.set()
        deadline = time.monotonic() + patience
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]  # it has one


# --- in the other processes --------------------------------------------------------------------------------


def main() -> int:
    """Train the cell that standard input describes, as one of several processes."""
    collect_rarely()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: process 0 ends this one
    code, rank, count, meeting, config, folder, ticket, loaders = pickle.load(sys.stdin.buffer)
    own.receive(code)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    torch.set_num_threads(config.train.threads)
    try:
        ranks = Ranks(rank, count, meeting / "store", on_cuda(config, count))
        for _ in Trainer(config, folder, ticket, ranks, loaders).epochs():
            pass
        dist.destroy_process_group()
    except (Diverged, RankDied):  # process 0 reports it
        return 0
    except Exception as error:
        (meeting / f"error.{rank}").write_bytes(_pickled(error))
        raise
    return 0


def _pickled(error: Exception) -> bytes:
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:
        content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content


def _end_with_the_first() -> None:
    while os.read(0, 1):  # not `sys.stdin`, which the interpreter locks at exit
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
