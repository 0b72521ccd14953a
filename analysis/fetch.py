"""A source of runs -> one tidy table: the result store, a folder of offline W&B runs, a W&B project."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pandas as pd

from hiddenweights.analysis.cache import OnProgress, ignore, read_all, read_cached
from hiddenweights.analysis.sources.offline import read_run, scalars
from hiddenweights.analysis.table import SWEEP, RawRun, Source, Table, tidy
from hiddenweights.cells.files import store_errors
from hiddenweights.cells.format import Damaged, open_failure, open_result
from hiddenweights.cells.store import Store
from hiddenweights.errors import UserError


def open_source(text: str) -> Source:
    """The source that `text` names: ``wandb:entity/project``, a store, or a folder of offline runs.

    Raises `UserError` if there is none.
    """
    if text.startswith("wandb:"):
        from hiddenweights.analysis.sources.project import Project

        return Project(text.removeprefix("wandb:"))
    try:
        filesystem, root = fsspec.url_to_fs(text)
    except (ValueError, ImportError) as error:  # no such protocol, or its package is not installed
        raise UserError(f"--from: {text!r} cannot be opened: {error}") from error
    with store_errors():
        is_store = filesystem.exists(f"{root}/store.json")
    if is_store:
        return StoreSource(text)
    if "://" not in text and Path(text).is_dir() and any(Path(text).rglob("*.wandb")):
        return OfflineFolder(text)
    problem = "holds no runs" if filesystem.exists(root) else "does not exist"
    raise UserError(
        f"--from: {text!r} {problem}; give a store (it has a store.json), a folder with W&B's offline-run-* "
        "folders or wandb:ENTITY/PROJECT, or train something first: hiddenweights sweeps launch NAME"
    )


def fetch(text: str, cache: Path | None = None, on_progress: OnProgress = ignore) -> Table:
    """The tidy table of the source that `text` names (see `open_source`).

    With a `cache` folder, only changed runs are read. `on_progress` is called with the progress.
    Raises `UserError` if the source has no cell of this project.
    """
    try:
        source = open_source(text)
        listing = source.listing()
        read = (
            read_all(source, listing, on_progress)
            if cache is None
            else read_cached(source, listing, cache, on_progress)
        )
    except OSError as error:
        raise UserError(f"--from: {text!r} cannot be read: {error}") from error
    table = with_plans(tidy(read), source) if len(read.runs) else None
    if table is None or table.cells.empty:
        reasons = "" if table is None else "; ".join(table.left_out["reason"].unique()[:3])
        why = f" ({len(read.runs)} runs left out: {reasons})" if reasons else ""
        train = "train some with: hiddenweights sweeps launch quickstart"
        raise UserError(f"--from: {text!r} holds no cell of this project{why}; {train}")
    return table


def with_plans(table: Table, source: Source) -> Table:
    """Add the sweeps of the source's plans to the cells, and planned cells without a run to `left_out`."""
    sweeps: dict[str, set[str]] = {}
    for name, cells in source.plans().items():
        for cell in cells:
            sweeps.setdefault(cell, set()).add(name)
    if not sweeps:
        return table

    def known(frame: pd.DataFrame) -> list[str]:
        rows = zip(frame["cell"], frame["sweeps"], strict=True)
        return [" ".join(sorted({*own.split(), *sweeps.get(cell, ())})) for cell, own in rows]

    begun = {*table.cells["cell"], *table.left_out["cell"]}
    missing = [
        (cell, "", " ".join(sorted(names)), cell, source.name, "not trained yet")
        for cell, names in sweeps.items()
        if cell not in begun
    ]
    left_out = table.left_out.assign(sweeps=known(table.left_out))
    left_out = pd.concat([left_out, pd.DataFrame(missing, columns=left_out.columns)], ignore_index=True)
    return Table(table.cells.assign(sweeps=known(table.cells)), table.epochs, left_out)


class StoreSource:
    """The result store, local or remote."""

    def __init__(self, uri: str) -> None:
        self.name = uri
        self._store = Store(uri)
        self._store.check()
        self.identity = self._store.location

    def listing(self) -> dict[str, str]:
        """The started cells by id. The version is the name, time and size of the most informative file."""
        return {cell: f"{name} {version}" for cell, (name, version) in self._store.listing().items()}

    def read(self, wanted: Mapping[str, str]) -> Iterator[RawRun]:
        """The results and failures of the cells; for others, only that they were started."""
        names = {cell: version.partition(" ")[0] for cell, version in wanted.items()}
        for cell, version in wanted.items():
            if names[cell] == "lock":
                reason = "started, not finished: being trained, or stopped"
                yield RawRun(cell, cell, state="running", reason=reason, version=version)
        ended = {cell: name for cell, name in names.items() if name != "lock"}
        for cell, path, content in self._store.contents(ended):
            parse = _result if names[cell] == "result.json" else _failure
            yield parse(cell, content, path, wanted[cell])

    def plans(self) -> dict[str, tuple[str, ...]]:
        """The cells of each sweep at its last launch. Files that cannot be a plan's are ignored."""
        names = filter(SWEEP.fullmatch, self._store.plans())
        plans = ((name, self._store.plan(name)) for name in names)
        return {name: tuple(plan["cells"]) for name, plan in plans if plan}


class OfflineFolder:
    """Every `.wandb` file below a folder. Each attempt at a cell has its own file."""

    def __init__(self, folder: str) -> None:
        self.name = folder
        self.identity = Path(folder).absolute().as_uri()

    def listing(self) -> dict[str, str]:
        """The files in the order of their folders' names, which begin with the time of the start."""
        files = sorted(path for path in Path(self.name).rglob("*.wandb") if "latest-run" not in path.parts)
        return {str(path): f"{path.stat().st_mtime_ns} {path.stat().st_size}" for path in files}

    def read(self, wanted: Mapping[str, str]) -> Iterator[RawRun]:
        """The runs in these files."""
        return (read_run(Path(key), version) for key, version in wanted.items())

    def plans(self) -> dict[str, tuple[str, ...]]:
        """None: offline runs have no plans. Groups and tags name the sweeps of a run."""
        return {}


def _result(cell: str, content: bytes, path: str, version: str) -> RawRun:
    try:
        found = open_result(content, path, cell)
    except Damaged as error:
        return RawRun(cell, cell, state="failed", reason=str(error), version=version)
    names = ("initial_weights_checksum", "data_digest", "seconds", "attempts", "device")
    own = {name: found.get(name) for name in names}
    made_by = {
        f"{part}.{name}": value
        for part in ("versions", "processor")
        for name, value in found.get(part, {}).items()
    }
    return RawRun(
        key=cell,
        cell=cell,
        name=found.get("name", ""),
        config=found["config"],
        summary=scalars({**found["summary"], **own, **made_by}),
        history=found["history"],
        started=found.get("started", ""),
        version=version,
    )


def _failure(cell: str, content: bytes, path: str, version: str) -> RawRun:
    found = open_failure(content, path)
    epoch = f" (after epoch {found['epoch']})" if found["epoch"] else ""
    reason = (found["message"] or found["error"] or "no reason recorded") + epoch
    return RawRun(cell, cell, state="failed", reason=reason, version=version)
