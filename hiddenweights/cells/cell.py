"""One cell, from claim to result: the same for `train`, for the inline executor and for a Ray worker."""

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
from hiddenweights.config import NETWORKS, CellConfig
from hiddenweights.errors import UserError, shown
from hiddenweights.flat import to_dict
from hiddenweights.identity import cell_id, resolve, short_name
from hiddenweights.records import Record
from hiddenweights.versions import versions

if TYPE_CHECKING:
    from hiddenweights.tickets.ticket import Ticket
    from hiddenweights.training.train import Trainer

# The errors of a failure that are no exception of its cell: a search gave the cell up, or it took too long.
STOPPED_EARLY, TIME_LIMIT = "StoppedEarly", "TimeLimit"

TRACKING = "hiddenweights.tracking"  # logger of what trackers have to say; a launch prints each line once
# The fields of a subnetwork that its ticket has settled.
SUBNETWORK = ("arch", "width", "k", "selection", "distribution", "scaled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a tracker is told of the attempt it follows."""

    cell: str
    config: CellConfig
    store: Store
    sweep: str
    """Name of the sweep on whose behalf the cell is trained; "" for none."""
    attempt: int
    """Counts from 1."""
    ranks: int = 1
    """How many processes train it together."""
    loaders: int | None = None
    """Processes per rank that decode the images of a folder; None: what the machine's cores allow."""


class Tracker(Protocol):
    """Follows one attempt at one cell; entry points of ``hiddenweights.trackers`` make one from a `Run`."""

    def log(self, record: Record) -> None:
        """A finished epoch. A resumed attempt begins with the records of the earlier ones."""

    def finish(self, result: Json | None) -> None:
        """The attempt has ended: with the cell's result, or with None when it stopped or failed."""


TrackerFactory = Callable[[Run], Tracker]


def installed_trackers() -> list[TrackerFactory]:
    """The trackers whose packages are installed. Raises `UserError` for one that is broken."""
    found = []
    for point in entry_points(group="hiddenweights.trackers"):
        try:
            found.append(point.load())
        except ImportError as error:
            if error.name != "wandb":  # which is optional; anything else is a broken installation
                raise UserError(
                    f"tracker {point.name} ({point.value}) cannot be imported: {error}"
                ) from error
    return found


class _Guarded:
    """A tracker whose errors never reach the cell: the first is reported and ends this attempt's tracking."""

    def __init__(self, make: TrackerFactory, run: Run) -> None:
        self._run = run
        self._tracker: Tracker | None = None
        with self._guard():
            self._tracker = make(run)

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
            if trouble := self._run.store.trouble():  # it is what failed, and the cell waits for it
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
    """Train the cell, yield its records and return its result; a finished cell is only returned.

    The records start at epoch 1 also where the cell was resumed. Closing the generator stops cleanly:
    the same call goes on from the last epoch. A store that goes away, or is full, is waited for up to
    `patience` seconds; then the cell is resumed, and its records start at epoch 1 once more.

    `ranks` processes train it together, one per GPU where there are any; `loaders` more per rank decode the
    images of a folder (None: as many as the machine's cores allow).

    `launch` identifies the launch on whose behalf the cell is trained: it may take its cells back from
    hosts that it has lost.

    Raises `Busy` or `LeaseLost` when another process has the cell, and `StoreAway`; any other exception
    has been recorded in the store as the cell's failure.
    """
    config = resolve(config)
    cell = cell_id(config)
    store.wait(time.monotonic() + patience)
    if result := store.insist(lambda: store.result(cell), patience):
        return result
    with store.lease(cell, launch, patience) as lease:
        if result := store.insist(lambda: store.result(cell), patience):  # finished while we came in
            lease.finished()
            return result
        reached, deadline = -1, 0.0
        while True:
            run = Run(
                cell=cell, config=config, store=store, sweep=sweep, attempt=lease.attempt,
                ranks=ranks, loaders=loaders,
            )  # fmt: skip
            history: list[Record] = []
            try:
                return (yield from _attempt(run, lease, trackers, history))
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                passing = full or isinstance(error, Unreachable)  # seen here, and maybe not by `trouble`
                if not passing and not store.trouble():
                    if not isinstance(error, (Busy, LeaseLost)):
                        _record_failure(store, cell, error, history, lease.attempt)
                    raise
                if len(history) > reached:  # it had gone on since the last time
                    reached, deadline = len(history), time.monotonic() + patience
                try:
                    if passing:  # the disk is full for a checkpoint, and not for a small file
                        with contextlib.suppress(OSError):
                            lease.renew(waiting=str(error))
                        store.pause(str(error), deadline)
                    store.wait(deadline, 2**16 + (store.checkpoint_bytes(cell) if full else 0))
                except StoreAway:
                    _record_failure(store, cell, error, history, lease.attempt)  # if it can be
                    raise
                store.insist(lambda why=str(error): lease.renew(waiting=why), patience)  # type: ignore[misc]


def _attempt(
    run: Run, lease: Lease, trackers: Sequence[TrackerFactory], history: list[Record]
) -> Generator[Record, None, Json]:
    """The cell from its checkpoint, if it has one, to its result. Appends every record to `history`."""
    cell, config, store = run.cell, run.config, run.store
    started = datetime.now(UTC)
    followers: list[_Guarded] = []
    result = None
    try:
        with (
            store.checkpoint(cell) as checkpoint,
            _trainer(run, checkpoint.folder, parent_ticket(config, store)) as trainer,
        ):
            for record in trainer.epochs():
                lease.check()
                checkpoint.save()
                if not history:
                    followers += [_Guarded(make, run) for make in trackers]
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
            "seconds": sum(float(record["seconds"]) for record in history),
            "attempts": lease.attempt,
            "started": started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "versions": versions("hiddenweights", "torch", "ray", "wandb"),
            "device": _device(trainer),
            "processor": _processor(trainer),
            "gpu_memory": _gpu_memory(trainer),
            "ranks": run.ranks,
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
    """Train the cell to its end, or find it finished, and return its result (see `cell_epochs`)."""
    epochs = cell_epochs(config, store, sweep=sweep, trackers=trackers, patience=patience, ranks=ranks)
    while True:
        try:
            record = next(epochs)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        on_record(record)


def parent_ticket(config: CellConfig, store: Store) -> "Ticket | None":
    """The ticket of the cell whose subnetwork this one trains; None for a config without `model.init_from`.

    Imports torch. Raises `UserError` where the store has no such ticket, or the config names another
    network than the ticket.
    """
    model = resolve(config).model
    if model.init_from is None:
        return None
    ticket = stored_ticket(model.init_from, store)
    for name in SUBNETWORK:
        own, parents = getattr(model, name), getattr(ticket.config.model, name)
        if own != parents:
            raise UserError(f"model.{name}: {own!r}, but cell {model.init_from} has {parents!r}")
    return ticket


def stored_ticket(cell: str, store: Store) -> "Ticket":
    """The ticket of `cell`. Raises `UserError` where the store has none."""
    from hiddenweights.tickets.ticket import Ticket

    content = store.ticket(cell)
    if content is None:
        raise UserError(f"model.init_from: cell {cell} has no ticket in {store.uri}")
    return Ticket.from_bytes(content, f"the ticket of cell {cell}")


def check_inputs(config: CellConfig, ticket: "Ticket | None" = None) -> str:
    """Raise `UserError` for data that do not load and networks that do not build. Imports torch.

    Returns what an image folder holds, for people; "" for other data.
    """
    from hiddenweights.images.dataset import load_dataset, split
    from hiddenweights.training.build import build_cell_network

    dataset = load_dataset(config.data)
    split(dataset, config.data, config.seed_of("data"))
    resolved = resolve(config)
    finetune = resolved.model.method == "finetune"
    # torchvision's, or a module of the user's; and a ticket's
    if ticket or (config.model.arch not in NETWORKS and not finetune):
        build_cell_network(resolved, dataset, ticket)
    if not config.data.name.startswith("folder:"):
        return ""
    return (
        f"{config.data.name}: {dataset.classes} classes, {len(dataset.train):,} training and"
        f" {len(dataset.test):,} test images in {config.data.root}"
    )


def summary(history: Sequence[Record]) -> Record:
    """The last record without its per-layer values, and the best epoch where there is a validation split."""
    final = {name: value for name, value in history[-1].items() if "/" not in name}
    if "validation_accuracy" in final:
        best = max(history, key=lambda record: record["validation_accuracy"])
        final["best_validation_accuracy"] = best["validation_accuracy"]
        final["best_epoch"] = best["epoch"]
    return final


def _trainer(run: Run, folder: Path, ticket: "Ticket | None") -> contextlib.AbstractContextManager["Trainer"]:
    import torch  # here, because planning a sweep needs no torch (3 s, 500 MB)

    from hiddenweights.training.parallel import trainer_of

    # Results repeat bit for bit only between equal thread counts, and Ray sets its own.
    torch.set_num_threads(run.config.train.threads)
    if torch.cuda.is_initialized():  # by this process's last cell, whose memory is not this one's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return trainer_of(run.config, folder, ticket, run.ranks, run.loaders)


def _ticket(trainer: "Trainer", record: Record) -> bytes | None:
    """The content of the trained network's ticket; None where it has none."""
    try:
        return trainer.ticket(record).to_bytes()
    except UserError:  # a method that changes the weights
        return None


def _processor(trainer: "Trainer") -> Json:
    from hiddenweights.cells.processor import describe

    return dict(describe(trainer.device, trainer.precision))


def _device(trainer: "Trainer") -> str:
    import torch

    device = next(trainer.network.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _gpu_memory(trainer: "Trainer") -> float | None:
    """The part of the card's memory that this process took at its fullest; None where it used no card."""
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
        # The host's fault and not the cell's: the next launch tries again.
        transient=isinstance(error, (OSError, MemoryError, UserError))
        or type(error).__name__ == "OutOfMemoryError",  # of the GPU, which others may have shared
    )
    try:
        store.fail(cell, failure)
    except OSError as unwritable:  # the store itself is what failed
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
    """A failure as the store keeps it. `epoch` and `record` are the last finished ones."""
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
