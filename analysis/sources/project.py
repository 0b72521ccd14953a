"""Read a W&B project through the public API.

Config and summary come with the pages of runs. Histories are scanned, because ``history()`` returns only a
sample. Failed requests are repeated with growing pauses, several runs are read at once, and an incomplete
history is not used.
"""

import functools
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from hiddenweights.analysis.sources.offline import scalars, wandb_state
from hiddenweights.analysis.table import RawRun
from hiddenweights.errors import UserError

T = TypeVar("T")
TIMEOUT = 300  # seconds; with W&B's default of 19 s, rate limits end in a misleading error
PAUSES = (1, 2, 4, 8, 16, 32, 60)  # seconds between attempts at one request
AT_ONCE = 8  # runs; the hosted service allows a few hundred requests per minute, and a run needs three


class Project:
    """A W&B project, ``entity/project``. Raises `UserError` for a name that cannot be one."""

    def __init__(self, path: str, pause: Callable[[float], None] = time.sleep) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            raise UserError(f"--from: {'wandb:' + path!r} is not of the form wandb:ENTITY/PROJECT")
        self.name = self.identity = f"wandb:{path}"
        self._path = path
        self._pause = pause
        self._runs: dict[str, Any] = {}

    def listing(self) -> dict[str, str]:
        """Runs by id. The version has the state, the last heartbeat, the number of rows and the names.

        Raises `UserError` if the project does not exist or cannot be read.
        """
        import wandb

        try:
            api = wandb.Api(timeout=TIMEOUT)
            self.identity = f"{api.settings['base_url']} {self.name}"
            pages = iter(api.runs(self._path, lazy=False))
            while (run := self._patient(lambda: next(pages, None))) is not None:
                self._runs[run.id] = run
        except (ValueError, wandb.errors.Error) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--from: {self.name!r} cannot be read: {reason}") from error
        return {key: _version(run) for key, run in self._runs.items()}

    def read(self, wanted: Mapping[str, str]) -> Iterator[RawRun]:
        """The runs as they arrive. Runs that have arrived are not lost if a later one fails.

        Raises `UserError` if the server stays unreachable.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            coming: deque[Future[RawRun]] = deque()  # only a few ahead, because histories need much memory
            try:
                for key, version in wanted.items():
                    coming.append(pool.submit(self._read, key, version))
                    if len(coming) > 4 * AT_ONCE:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def plans(self) -> dict[str, tuple[str, ...]]:
        """None: W&B has no plans. Groups and tags name the sweeps of a run."""
        return {}

    def _read(self, key: str, version: str) -> RawRun:
        run = self._runs[key]
        config, summary = dict(run.config), dict(run.summary_metrics)
        cell = config.pop("cell", None)
        state, reason = wandb_state(summary, exit_code=None)
        if state != "finished":
            state, reason = run.state, f"W&B says {run.state}, and the last epoch was not reached"
        rows = self._history(run) if cell else []
        if cell and len(rows) < (run.historyLineCount or 0):
            state, version = "incomplete", ""  # without a version it is read again next time
            reason = f"its history came back with {len(rows)} of {run.historyLineCount} rows"
        return RawRun(
            key=key,
            cell=cell,
            name=run.name or "",
            state=state,
            reason=reason,
            config=config,
            summary=scalars(summary),
            history=rows,
            sweeps=frozenset({*run.tags, run.group or ""} - {""}),
            started=run.created_at,
            version=version,
        )

    def _history(self, run: Any) -> list[dict[str, Any]]:
        """All rows. An incomplete scan is repeated up to twice."""
        if not run.historyLineCount:
            return []
        rows: list[dict[str, Any]] = []
        for fresh in (False, True, True):  # past W&B's own cache
            rows = self._patient(functools.partial(_scan, run, fresh))
            if len(rows) >= run.historyLineCount:
                break
        return rows

    def _patient(self, ask: Callable[[], T]) -> T:
        """Call `ask`, and call it again after each pause while the network or the server fails."""
        from wandb.errors import CommError

        for pause in PAUSES:
            try:
                return ask()
            except (CommError, OSError):
                self._pause(pause)
        try:
            return ask()
        except (CommError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--from: {self.name!r} does not answer ({reason}); runs read so far are kept: run this again"
            ) from error


def _version(run: Any) -> str:
    # The names can change in W&B at any time.
    names = zlib.crc32(repr((run.name, run.group, sorted(run.tags))).encode())
    return f"{run.state} {run.heartbeatAt} {run.historyLineCount} {names}"


def _scan(run: Any, fresh: bool) -> list[dict[str, Any]]:
    return [*run.scan_history(use_cache=not fresh)]
