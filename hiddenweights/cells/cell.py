"""One cell from start to result, the same for `train`, the inline executor and a Ray worker."""

import contextlib
import errno
import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hiddenweights.cells.format import RESULT_FORMAT
from hiddenweights.cells.store import PATIENCE, Busy, Json, Lease, LeaseLost, Store, StoreAway, Unreachable
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError, shown
from hiddenweights.flat import to_dict
from hiddenweights.identity import Resolved, id_of, resolve, short_name
from hiddenweights.records import Record
from hiddenweights.versions import versions

if TYPE_CHECKING:
    from hiddenweights.tickets.ticket import Ticket
    from hiddenweights.training.train import Trainer

# Failures that are not exceptions of the cell: a search stopped it, or it took too long.
STOPPED_EARLY, TIME_LIMIT = "StoppedEarly", "TimeLimit"

TRACKING = "hiddenweights.tracking"  # logger of what trackers have to say; a launch prints each line once


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at training a cell, as a tracker sees it."""

    cell: str
    config: Resolved
    store: Store
    sweep: str
    """Name of the sweep that launched the cell; "" for none."""
    number: int
    """Counts from 1."""
    ranks: int = 1
    """Number of processes that train the cell together."""
    loaders: int | None = None
    """Processes per rank that decode the images of a folder; None: as many as the cores allow."""


class Tracker(Protocol):
    """Follows one attempt at a cell. The entry points of ``hiddenweights.trackers`` make them."""

    def log(self, record: Record) -> None:
        """Called after each epoch. A resumed attempt starts with the records of the earlier attempts."""

    def finish(self, result: Json | None) -> None:
        """Called at the end of the attempt, with the result of the cell, or None if it stopped or failed."""


TrackerFactory = Callable[[Attempt], Tracker]


def installed_trackers() -> list[TrackerFactory]:
    """The trackers whose packages are installed. Raises `UserError` for one that is broken."""
    found = []
    for point in entry_points(group="hiddenweights.trackers"):
        try:
            found.append(point.load())
        except ImportError as error:
            if error.name != "wandb":  # wandb is optional; any other missing module is a broken installation
                raise UserError(
                    f"tracker {point.name} ({point.value}) cannot be imported: {error}"
                ) from error
    return found


class _Guarded:
    """A tracker whose errors never reach the cell. The first is reported and ends tracking the attempt."""

    def __init__(self, make: TrackerFactory, attempt: Attempt) -> None:
        self._attempt = attempt
        self._tracker: Tracker | None = None
        with self._guard():
            self._tracker = make(attempt)

    def log(self, record: Record) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.log(record)

    def finish(self, result: Json | None) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.finish(result)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if trouble := self._attempt.store.trouble():  # it is what failed, and the cell waits for it
                raise Unreachable(trouble) from error
            self._tracker = None
            logging.getLogger(TRACKING).warning(
                "a tracker failed (%s: %s): the attempt is no longer tracked, its result goes to the store",
                type(error).__name__, shown(error),
            )  # fmt: skip


def cell_epochs(
    config: CellConfig,
    store: Store,
    *,
    sweep: str = "",
    launch: str = "",
    trackers: Sequence[TrackerFactory] = (),
    patience: float = PATIENCE,
    ranks: int = 1,
    loaders: int | None = None,
) -> Generator[Record, None, Json]:
    """Train the cell, yield its records and return its result. For a finished cell, only return the result.

    The records start at epoch 1 even if the cell is resumed. Closing the generator stops cleanly; the same
    call resumes from the last epoch. If the store becomes unreachable or full, this waits for up to
    `patience` seconds. Then the cell is resumed, and its records start at epoch 1 again.

    `ranks` processes train it together, each on its own GPU if there are any. `loaders` more processes per
    rank decode the images of a folder (None: as many as the cores allow).

    `launch` identifies the launch that trains the cell. A launch may take cells back from hosts that it has
    lost.

    Raises `Busy` or `LeaseLost` if another process has the cell, and `StoreAway`. Any other exception has
    been recorded in the store as the failure of the cell.
    """
    resolved = resolve(config)
    cell = id_of(resolved)
    store.wait(time.monotonic() + patience)
    if result := store.insist(lambda: store.result(cell), patience):
        return result
    with store.lease(cell, launch, patience) as lease:
        reached, deadline = -1, 0.0
        while True:
            if result := store.insist(lambda: store.result(cell), patience):  # finished while this waited
                lease.finished()
                return result
            attempt = Attempt(
                cell=cell, config=resolved, store=store, sweep=sweep, number=lease.attempt,
                ranks=ranks, loaders=loaders,
            )  # fmt: skip
            history: list[Record] = []
            try:
                return (yield from _train(attempt, lease, trackers, history))
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                # Seen here, and maybe not by `trouble`: a store that was away may be back.
                passing = full or isinstance(error, Unreachable) or _is_missing(error, store)
                if not passing and not store.trouble():
                    if not isinstance(error, (Busy, LeaseLost)):
                        _record_failure(store, cell, error, history, lease.attempt)
                    raise
                if len(history) > reached:  # it has made progress since the last time
                    reached, deadline = len(history), time.monotonic() + patience
                try:
                    _wait(store, lease, str(error) if passing else "", deadline, cell if full else "")
                except StoreAway:
                    _record_failure(store, cell, error, history, lease.attempt)  # if possible
                    raise
                store.insist(lambda why=str(error): lease.renew(waiting=why), patience)  # type: ignore[misc]


def _is_missing(error: Exception, store: Store) -> bool:
    """Whether `error` says that a file of the local store is not there."""
    if not (store.local and isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE)):
        return False
    return Path(str(error.filename)).is_relative_to(store.local)


def _wait(store: Store, lease: Lease, trouble: str, deadline: float, full: str) -> None:
    """Wait until the store is usable again. `full`: the cell whose checkpoint did not fit; "" for none.

    `trouble`, if not "", is a fault that the store may no longer show. Raises `StoreAway` at the deadline.
    """
    if trouble:  # the disk is full for a checkpoint, and not for a small file
        with contextlib.suppress(OSError):
            lease.renew(waiting=trouble)
        store.pause(trouble, deadline)
    store.wait(deadline, 2**16 + (store.checkpoint_bytes(full) if full else 0))


def _train(
    attempt: Attempt, lease: Lease, trackers: Sequence[TrackerFactory], history: list[Record]
) -> Generator[Record, None, Json]:
    """Train the cell to its result, from its checkpoint if it has one. Appends the records to `history`."""
    cell, config, store = attempt.cell, attempt.config, attempt.store
    started = datetime.now(UTC)
    followers: list[_Guarded] = []
    result = None
    try:
        with (
            store.checkpoint(cell) as checkpoint,
            _trainer(attempt, checkpoint.folder, parent_ticket(config, store)) as trainer,
        ):
            for record in trainer.epochs():
                lease.check()
                checkpoint.save()
                if not history:
                    followers += [_Guarded(make, attempt) for make in trackers]
                history.append(record)
                for follower in followers:
                    follower.log(record)
                yield record
        lease.check()
        result = {
            "format": RESULT_FORMAT,
            "cell": cell,
            "name": short_name(config),
            "config": to_dict(config),
            "history": history,
            "summary": summary(history),
            "initial_weights_checksum": trainer.initial_weights_checksum,
            "data_digest": trainer.data_digest,
            "seconds": sum(float(record["seconds"]) for record in history),
            "attempts": lease.attempt,
            "started": started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "versions": versions("hiddenweights", "torch", "ray", "wandb"),
            "device": _device(trainer),
            "processor": _processor(trainer),
            "gpu_memory": _gpu_memory(trainer),
            "ranks": attempt.ranks,
        }
        store.finish(cell, result, _ticket(trainer, history[-1]))
        lease.finished()
    finally:
        for follower in followers:
            follower.finish(result)
    return result


def run_cell(
    config: CellConfig,
    store: Store,
    *,
    sweep: str = "",
    trackers: Sequence[TrackerFactory] = (),
    on_record: Callable[[Record], None] = lambda record: None,
    patience: float = PATIENCE,
    ranks: int = 1,
) -> Json:
    """Train the cell unless it is finished, and return its result (see `cell_epochs`)."""
    epochs = cell_epochs(config, store, sweep=sweep, trackers=trackers, patience=patience, ranks=ranks)
    while True:
        try:
            record = next(epochs)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        on_record(record)


def parent_ticket(config: Resolved, store: Store) -> "Ticket | None":
    """The ticket of the cell whose subnetwork this one trains; None for a config without `model.init_from`.

    Imports torch. Raises `UserError` if the store has no such ticket.
    """
    parent = config.model.init_from
    return None if parent is None else stored_ticket(parent, store)


def stored_ticket(cell: str, store: Store) -> "Ticket":
    """The ticket of `cell`. Raises `UserError` if the store has none."""
    from hiddenweights.tickets.ticket import Ticket

    content = store.ticket(cell)
    if content is None:
        raise UserError(f"model.init_from: cell {cell} has no ticket in {store.uri}")
    return Ticket.from_bytes(content, f"the ticket of cell {cell}")


def summary(history: Sequence[Record]) -> Record:
    """The last record without its per-layer values, and the best epoch if there is a validation split."""
    final = {name: value for name, value in history[-1].items() if "/" not in name}
    if "validation_accuracy" in final:
        best = max(history, key=lambda record: record["validation_accuracy"])
        final["best_validation_accuracy"] = best["validation_accuracy"]
        final["best_epoch"] = best["epoch"]
    return final


def _trainer(
    attempt: Attempt, folder: Path, ticket: "Ticket | None"
) -> contextlib.AbstractContextManager["Trainer"]:
    import torch  # imported here, because planning a sweep does not need torch (3 s, 500 MB)

    from hiddenweights.training.parallel import trainer_of

    # Results repeat bit for bit only with equal numbers of threads, and Ray sets its own number.
    torch.set_num_threads(attempt.config.train.threads)
    if torch.cuda.is_initialized():  # free the memory of the previous cell of this process
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return trainer_of(attempt.config, folder, ticket, attempt.ranks, attempt.loaders)


def _ticket(trainer: "Trainer", record: Record) -> bytes | None:
    """The content of the ticket of the trained network; None if it has none."""
    try:
        return trainer.ticket(record).to_bytes()
    except UserError:  # the method changes the weights
        return None


def _processor(trainer: "Trainer") -> Json:
    from hiddenweights.cells.processor import describe

    return dict(describe(trainer.device, trainer.precision))


def _device(trainer: "Trainer") -> str:
    import torch

    device = next(trainer.network.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _gpu_memory(trainer: "Trainer") -> float | None:
    """The largest fraction of the GPU's memory that this process has used; None without a GPU."""
    import torch

    if trainer.device.type != "cuda":
        return None
    taken: int = torch.cuda.max_memory_reserved(trainer.device)
    return taken / torch.cuda.get_device_properties(trainer.device).total_memory


def _record_failure(
    store: Store, cell: str, error: Exception, history: Sequence[Record], attempt: int
) -> None:
    lines = traceback.format_exception(error)
    failure = failure_record(
        type(error).__name__,
        lines[-1].strip(),
        traceback="".join(lines),
        epoch=len(history),
        record=history[-1] if history else None,
        attempt=attempt,
        # A fault of the host and not of the cell: the next launch tries again.
        transient=isinstance(error, (OSError, MemoryError, UserError))
        or type(error).__name__ == "OutOfMemoryError",  # of the GPU, which may have been shared
    )
    try:
        store.fail(cell, failure)
    except OSError as unwritable:  # the store itself failed
        error.add_note(f"the failure could not be recorded: {unwritable}")


def failure_record(
    error: str,
    message: str,
    *,
    traceback: str = "",
    epoch: int = 0,
    record: Record | None = None,
    attempt: int = 1,
    transient: bool = False,
) -> Json:
    """A failure in the format of the store. `epoch` and `record` are the last finished ones."""
    return {
        "error": error,
        "message": message,
        "traceback": traceback,
        "epoch": epoch,
        "record": record,
        "attempt": attempt,
        "time": datetime.now(UTC).isoformat(),
        "transient": transient,
    }
