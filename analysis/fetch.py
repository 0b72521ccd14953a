"""A source of runs -> one tidy table: the result store, a folder of offline W&B runs, a W&B project."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pandas as pd

from analysis.offline import read_run, scalars
from analysis.table import Run, Table, frame, tidy
from hiddenweights.errors import UserError

STORE_FORMAT = 1


class Source(Protocol):
    """Where runs lie. `listing` is cheap; `read` is not, so that a cache can ask for what changed."""

    name: str

    def listing(self) -> dict[str, str]:
        """Every run's key and a version that changes whenever the run does."""

    def read(self, keys: Iterable[str]) -> Iterator[Run]:
        """The runs of these keys, in any order."""

    def plans(self) -> dict[str, tuple[str, ...]]:
        """Cells by sweep, where the source knows plans apart from runs."""


def open_source(text: str) -> Source:
    """The source that `text` names: ``wandb:entity/project``, a store, or a folder of offline runs.

    Raises `UserError` where there is none.
    """
    if text.startswith("wandb:"):
        from analysis.project import Project

        return Project(text.removeprefix("wandb:"))
    filesystem, root = fsspec.url_to_fs(text)
    if filesystem.exists(f"{root}/store.json"):
        return StoreSource(text)
    if "://" not in text and Path(text).is_dir() and any(Path(text).rglob("*.wandb")):
        return OfflineFolder(text)
    choices = "a store (it has a store.json), a folder with W&B's offline-run-* folders, wandb:entity/project"
    problem = "holds no runs" if filesystem.exists(root) else "does not exist"
    raise UserError(f"--from: {text!r} {problem}; it may be: {choices}")


def fetch(text: str) -> Table:
    """The tidy table of the source that `text` names (see `open_source`)."""
    source = open_source(text)
    table = with_plans(tidy(frame(source.read(source.listing()), source.name)), source)
    if table.cells.empty:
        why = "; ".join(table.left_out["reason"].unique()[:3])
        raise UserError(
            f"--from: {text!r} holds no cell of this project"
            + (f" ({len(table.left_out)} runs left out: {why})" if why else "")
            + "; train some with: python -m sweeps launch quickstart"
        )
    return table


def with_plans(table: Table, source: Source) -> Table:
    """The table with its cells' sweeps completed from the source's plans, planned cells not begun noted."""
    plans = source.plans()
    if not plans or table.cells.empty:
        return table
    sweeps: dict[str, set[str]] = {}
    for name, cells in plans.items():
        for cell in cells:
            sweeps.setdefault(cell, set()).add(name)
    known = [
        " ".join(sorted({*own.split(), *sweeps.get(cell, ())}))
        for cell, own in zip(table.cells["cell"], table.cells["sweeps"], strict=True)
    ]
    begun = {*table.cells["cell"], *table.left_out["cell"]}
    missing = [
        (cell, "", " ".join(sorted(names)), cell, source.name, "not trained yet")
        for cell, names in sweeps.items()
        if cell not in begun
    ]
    left_out = table.left_out.assign(
        sweeps=[
            own or " ".join(sorted(sweeps.get(cell, ())))
            for cell, own in zip(table.left_out["cell"], table.left_out["sweeps"], strict=True)
        ]
    )
    left_out = pd.concat([left_out, pd.DataFrame(missing, columns=left_out.columns)], ignore_index=True)
    return Table(table.cells.assign(sweeps=known), table.epochs, left_out)


class StoreSource:
    """The result store: ``cells/<id>/result.json`` and ``sweeps/<name>.json``, local or remote."""

    def __init__(self, uri: str) -> None:
        self.name = uri
        self._filesystem, self._root = fsspec.url_to_fs(uri)
        stored = self._json("store.json").get("format")
        if stored != STORE_FORMAT:
            raise UserError(f"--from: store {uri!r} has format {stored}, this version reads {STORE_FORMAT}")

    def listing(self) -> dict[str, str]:
        """Cells begun, by identity; the version names the file that tells most, its time and its size."""
        folder = f"{self._root}/cells"
        rank = {"lock": 0, "failure.json": 1, "result.json": 2}
        best: dict[str, tuple[int, str]] = {}
        for path, info in _entries(self._filesystem, folder):
            cell, _, name = path.removeprefix(folder).lstrip("/").partition("/")
            if name in rank and rank[name] >= best.get(cell, (-1, ""))[0]:
                best[cell] = (rank[name], f"{name} {info}")
        return {cell: version for cell, (_, version) in sorted(best.items())}

    def read(self, keys: Iterable[str]) -> Iterator[Run]:
        """The cells' results, failures, or the mere fact that they were begun."""
        versions = self.listing()
        for cell in keys:
            name = versions[cell].split(" ")[0]
            if name == "lock":
                reason = "begun, not finished: being trained, or stopped"
                yield Run(cell, cell, "running", reason, version=versions[cell])
            else:
                parse = _result if name == "result.json" else _failure
                yield parse(cell, self._json(f"cells/{cell}/{name}"), versions[cell])

    def plans(self) -> dict[str, tuple[str, ...]]:
        """Cells by sweep as last launched."""
        try:
            paths = self._filesystem.ls(f"{self._root}/sweeps", detail=False)
        except FileNotFoundError:
            return {}
        plans = (json.loads(self._filesystem.cat_file(path)) for path in paths if path.endswith(".json"))
        return {plan["name"]: tuple(plan["cells"]) for plan in plans}

    def _json(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._filesystem.cat_file(f"{self._root}/{path}"))
        except ValueError as error:
            raise UserError(f"--from: {self._root}/{path} is not readable JSON ({error})") from error
        if not isinstance(found, dict):
            raise UserError(f"--from: {self._root}/{path} holds no JSON object")
        return found


class OfflineFolder:
    """Every `.wandb` file below a folder; the attempts of one cell are files of their own."""

    def __init__(self, folder: str) -> None:
        self.name = folder

    def listing(self) -> dict[str, str]:
        """Files, in order of their folders' names, which begin with the time of the start."""
        files = sorted(path for path in Path(self.name).rglob("*.wandb") if "latest-run" not in path.parts)
        return {str(path): f"{path.stat().st_mtime_ns} {path.stat().st_size}" for path in files}

    def read(self, keys: Iterable[str]) -> Iterator[Run]:
        """The runs in these files."""
        return (read_run(Path(key)) for key in keys)

    def plans(self) -> dict[str, tuple[str, ...]]:
        """Offline runs know no plans: groups and tags say what a run belongs to."""
        return {}


def _result(cell: str, found: dict[str, Any], version: str) -> Run:
    own = {name: found.get(name) for name in ("initial_weights_checksum", "seconds", "attempts", "device")}
    versions = {f"versions.{name}": value for name, value in (found.get("versions") or {}).items()}
    return Run(
        key=cell,
        cell=cell,
        config=found.get("config", {}),
        summary=scalars({**found.get("summary", {}), **own, **versions}),
        history=found.get("history", ()),
        started=found.get("started", ""),
        version=version,
    )


def _failure(cell: str, found: dict[str, Any], version: str) -> Run:
    epoch = f" (after epoch {found['epoch']})" if found.get("epoch") else ""
    reason = str(found.get("message") or found.get("error") or "no reason recorded") + epoch
    return Run(cell, cell, "failed", reason, version=version)


def _entries(filesystem: Any, folder: str) -> Iterator[tuple[str, str]]:
    """Files one folder down, with what tells a change; one listing request a page on object stores."""
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        for cell in os.scandir(folder) if os.path.isdir(folder) else ():
            for entry in os.scandir(cell.path) if cell.is_dir() else ():
                if entry.is_file():
                    stat = entry.stat()
                    yield entry.path, f"{stat.st_mtime_ns} {stat.st_size}"
        return
    for path, info in filesystem.find(folder, detail=True).items():
        changed = info.get("ETag") or info.get("LastModified") or info.get("updated") or info.get("created")
        yield path, f"{changed} {info.get('size')}"
