"""W&B as a tracker: one run per cell with the id of the cell. Offline without a key."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import wandb.apis.public  # before torch, because afterwards the import takes a second longer
from rich.console import Console
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord  # type: ignore[attr-defined]

from hiddenweights.cells.cell import TRACKING, Attempt
from hiddenweights.cells.format import Damaged
from hiddenweights.cells.store import Json, Store
from hiddenweights.cells.wandb_log import records
from hiddenweights.errors import UserError, shown
from hiddenweights.flat import from_dict, to_dict
from hiddenweights.identity import resolve, short_name
from hiddenweights.records import Record
from hiddenweights.sweeps.experiments import memberships
from hiddenweights.sweeps.tracking_mode import choose_mode, tracking_mode

PROJECT = "hidden-weights"
# Seconds. W&B itself waits 90 s per run for an unreachable server.
PATIENCE = 20
AT_ONCE = 100  # runs per `wandb sync`, which takes a second to start


class WandbTracker:
    """Follows one attempt at a cell as the W&B run whose id is the cell's.

    A record is logged as step number `epoch`, so the server drops the records that a resumed attempt repeats.
    Offline, the run of an earlier attempt is replaced, because the new attempt repeats its records.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._cell, self._store = attempt, attempt.cell, attempt.store
        self._records = list[Record]()
        mode = tracking_mode()
        self._run: wandb.Run | None = None
        folder = wandb_folder(self._store)
        if mode == "disabled":
            return
        self._check_store()
        folder.mkdir(parents=True, exist_ok=True)
        # Don't use the W&B service of the parent process: if this worker is killed, it would keep the run
        # open.
        os.environ.pop("WANDB_SERVICE", None)
        try:
            self._run = _start(attempt, mode, folder) if mode == "online" else self._start_offline()
        except Exception as error:  # of any type; no error of W&B may fail a cell
            wandb.teardown()  # it still has the run that did not start
            self._go_offline(error)

    def log(self, record: Record) -> None:
        """Log a record as one step."""
        self._records.append(record)
        if self._run:
            try:
                self._log(self._run, record)
            except Exception as error:
                if self._run.offline:
                    raise
                self._go_offline(error)

    def finish(self, result: Json | None) -> None:
        """End the run. With a `result` it is marked as finished and gets the ticket of the cell."""
        if not self._run:
            return
        try:
            rows = self._end(self._run, result)
        except Exception as error:
            if self._run.offline:
                raise
            rows = self._end(self._go_offline(error), result)
        if result and rows is not None and rows != len(self._records):
            # W&B silently loses rows while the disk is full. There is room again now, so log them again.
            self._end(self._start_offline(), result)
        if result and self._run.offline:  # W&B's service may have written one again while the disk was full
            self._remove_others(Path(self._run.settings.sync_file).parent)

    def _log(self, run: wandb.Run, record: Record) -> None:
        run.log({**record, "attempt": self._attempt.number}, step=int(record["epoch"]))

    def _go_offline(self, error: Exception) -> wandb.Run:
        """Keep the run, whole, as an offline one, and all later ones of this process; say so once."""
        if tracking_mode() == "online":
            os.environ["WANDB_MODE"] = "offline"
            tracking_mode.cache_clear()
            why = shown(str(error).partition("\n")[0], 200)
            logging.getLogger(TRACKING).warning(
                "W&B: %s: %s; runs continue offline, and `hiddenweights sweeps sync` sends them later",
                type(error).__name__, why,
            )  # fmt: skip
        if self._run:
            with contextlib.suppress(Exception):  # or its id would still be in use
                self._run.finish(exit_code=1)
        return self._start_offline()

    def _check_store(self) -> None:
        """Raise OSError if the store is unreachable: W&B would create a folder in its place."""
        if trouble := self._store.trouble():
            raise OSError(f"the store {self._store.uri} cannot be used ({trouble})")

    def _start_offline(self) -> wandb.Run:
        """A new offline run with all records so far, in the place of the cell's other ones."""
        self._check_store()  # it may have disappeared at the end of the run that is replaced
        folder = wandb_folder(self._store)
        self._remove_others(None)
        try:
            self._run = _start(self._attempt, "offline", folder)
        except Exception:  # W&B's service has died, say of what a server answered
            wandb.teardown()
            os.environ.pop("WANDB_SERVICE", None)
            self._run = _start(self._attempt, "offline", folder)
        for record in self._records:
            self._log(self._run, record)
        return self._run

    def _remove_others(self, keep: Path | None) -> None:
        """Remove the folders of the cell's runs but `keep`. W&B numbers those of one second: -1, -2."""
        for folder in wandb_folder(self._store).glob(f"wandb/*run-*-{self._cell}*"):
            if keep is None or folder.resolve() != keep.resolve():
                shutil.rmtree(folder, ignore_errors=True)

    def _end(self, run: wandb.Run, result: Json | None) -> int | None:
        """Finish `run`. Returns the number of rows in its offline file, or None without such a file."""
        if result:
            run.summary.update(
                {
                    **result["summary"],
                    "initial_weights_checksum": result["initial_weights_checksum"],
                    "data_digest": result.get("data_digest", ""),
                    "seconds": result["seconds"],
                    **{f"processor.{name}": value for name, value in result.get("processor", {}).items()},
                    "finished": True,
                }
            )
        try:
            if result:
                self._log_ticket(run)
        finally:
            run.finish(exit_code=0 if result else 1)
        if result and not run.offline:
            _check_arrival(run)
        return _written(Path(run.settings.sync_file)) if run.offline else None

    def _log_ticket(self, run: wandb.Run) -> None:
        """Log the ticket of the cell, if it has one, as an artifact."""
        path = self._store.local_ticket(self._cell)
        if path is None and (content := self._store.ticket(self._cell)):
            path = Path(run.settings.sync_file).with_name("ticket.ticket")
            path.write_bytes(content)
        if path is None:
            return
        artifact = wandb.Artifact(f"ticket-{self._cell}", type="ticket")
        # Used in place: offline, W&B would otherwise keep a copy in the home folder for good.
        entry = artifact.add_file(str(path), f"{self._cell}.ticket", policy="immutable", skip_cache=True)
        # Runs get published, with this path. W&B's service reads it: its folder is that of `sync`, or ours.
        base = wandb_folder(self._store) if run.offline else Path.cwd()
        if path.is_relative_to(base):
            entry.local_path = str(path.relative_to(base))
        run.log_artifact(artifact)
        if not run.offline:
            artifact.wait(PATIENCE)  # otherwise a rejected upload would go unnoticed


def _start(attempt: Attempt, mode: Any, folder: Path) -> wandb.Run:
    config, cell, sweep = attempt.config, attempt.cell, attempt.sweep
    tags = sorted({*memberships().get(cell, ()), *([sweep] if sweep else ())})
    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=cell,
        name=short_name(config),
        group=sweep or None,
        job_type=config.model.method,
        tags=tags,
        config={**to_dict(config), "cell": cell},
        resume="allow" if mode == "online" else None,
        dir=folder,
        mode=mode,
        reinit="create_new",  # the previous one has ended, or cannot
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=PATIENCE,
            finish_timeout=PATIENCE,  # W&B itself would wait for a silent server for hours
            finish_timeout_raises=True,
            x_disable_meta=True,
            x_save_requirements=False,
            x_disable_stats=mode == "offline",
            # With W&B's default of 15 s a killed cell would lose its last epochs, a short one all of them.
            x_transaction_log_flush_interval=1.0,
            # Runs get published: neither this host's name nor the remote of the folder's repository.
            host="-",
            disable_git=True,
        ),
    )
    started.define_metric("epoch")
    started.define_metric("*", step_metric="epoch")
    return started


def _check_arrival(run: wandb.Run) -> None:
    """Raise `RuntimeError` unless the server knows that the run is finished.

    W&B's service drops a run's data without a word when the server refuses them.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        path = f"{run.entity}/{run.project}"
        found = wandb.Api(timeout=PATIENCE).runs(path, filters={"name": run.id}, lazy=False)
        if any(one.id == run.id and one.summary.get("finished") for one in found):
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the server has not taken the data of a run")
        time.sleep(0.5)


def _written(file: Path) -> int:
    """The number of rows in the file of an offline run, once it is complete.

    W&B's service writes the file and may finish after `finish` has returned. We wait for it, because Ray may
    kill a worker, and the service with it, as soon as its cell is done.
    """
    deadline = time.monotonic() + 2
    while True:
        kinds = _kinds(file)
        if kinds[-1:] == ["exit"] or time.monotonic() > deadline:
            return kinds.count("history")
        time.sleep(0.005)


def _kinds(file: Path) -> list[str]:
    """The types of the records in the file of an offline run, up to its first damage; none without a file."""
    kinds: list[str] = []
    with contextlib.suppress(Damaged, FileNotFoundError):  # without a file, the store is unreachable
        for record in records(file):
            message = WandbRecord.FromString(record)
            kinds.append(message.WhichOneof("record_type"))
    return kinds


def wandb_folder(store: Store) -> Path:
    """The parent of W&B's folder ``wandb``: $WANDB_DIR, else a local store, else the working directory."""
    return Path(os.environ.get("WANDB_DIR") or store.local or ".").absolute()


def sync(store: Store, console: Console) -> int:
    """Upload the offline runs of the store with W&B's own command. Returns 0 if all are uploaded, else 1.

    Raises `UserError` if there are no runs, or if W&B cannot be reached.
    """
    folder = wandb_folder(store)
    runs = sorted(folder.glob("wandb/offline-run-*-" + "[0-9a-f]" * 16 + "*"))  # and none of other projects
    if not runs:
        raise UserError(f"sync: no offline W&B runs in {folder / 'wandb'}")
    os.environ.pop("WANDB_MODE", None)  # it is meant for training, and W&B reads it in many places
    wandb.teardown()
    tracking_mode.cache_clear()
    mode, reason = choose_mode()
    waiting = _not_uploaded(runs)
    if waiting and mode != "online":
        raise UserError(f"sync: W&B cannot be reached: {reason}")
    known = _known(waiting)
    fresh = [run for run in waiting if _cell_of(run) not in known]
    # Not with our service: the paths of tickets in the runs are relative to the folder.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    for i in range(0, len(fresh), AT_ONCE):
        some = [str(run) for run in fresh[i : i + AT_ONCE]]
        # It writes a log to the working directory. Its status is 0 even if nothing was uploaded.
        command = [sys.executable, "-m", "wandb", "sync", *some]
        subprocess.run(command, cwd=folder, env=environment, check=False)
    for run in waiting:
        if run not in fresh:
            _resume(run, store)
    left = _not_uploaded(waiting)
    console.print(f"{len(waiting) - len(left)} runs uploaded, {len(runs) - len(waiting)} were before")
    if left:
        console.print(f"{len(left)} runs were not uploaded; the same command tries again")
    return 1 if left else 0


def _known(runs: Sequence[Path]) -> set[str]:
    """Cells of those of `runs` that the server has something of: `wandb sync` would double their rows."""
    known: set[str] = set()
    cells = sorted({_cell_of(run) for run in runs})
    settings = wandb.setup().settings
    for i in range(0, len(cells), AT_ONCE):
        api = wandb.Api(timeout=PATIENCE)
        path = f"{settings.entity or api.default_entity}/{os.environ.get('WANDB_PROJECT', PROJECT)}"
        some = {"name": {"$in": cells[i : i + AT_ONCE]}}
        try:
            known |= {run.id for run in api.runs(path, filters=some)}
        except wandb.errors.CommError as error:
            raise UserError(f"sync: W&B cannot list the runs it has: {shown(error)}") from None
        except ValueError:  # no such project yet
            break
    return known


def _resume(run: Path, store: Store) -> None:
    """Send a cell's run from its result; the server drops the rows that it has."""
    cell = _cell_of(run)
    result = store.result(cell)
    if not result or tracking_mode() != "online":  # not finished, or the server has gone again
        return
    plans = {name: store.plan(name) or {} for name in store.plans()}
    sweep = next((name for name, plan in plans.items() if cell in plan["cells"]), "")
    config = resolve(from_dict(result["config"]))
    last = Attempt(cell=cell, config=config, store=store, sweep=sweep, number=result["attempts"])
    again = WandbTracker(last)
    for record in result["history"]:
        again.log(record)
    again.finish(result)
    if tracking_mode() == "online":  # it did not have to go offline
        (run / f"run-{cell}.wandb.synced").touch()


def _cell_of(run: Path) -> str:
    return run.name.split("-")[3]  # offline-run-TIME-CELL, and a number behind it if there are several


def _not_uploaded(runs: Sequence[Path]) -> list[Path]:
    """The runs that W&B has not marked as uploaded."""
    return [run for run in runs if not any(run.glob("*.synced"))]
