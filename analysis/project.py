"""Read a W&B project through the public API."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.offline import scalars, wandb_state
from analysis.table import Run
from hiddenweights.errors import UserError

TIMEOUT = 300  # seconds; W&B's own 19 s dies under rate limits with a misleading error


class Project:
    """A W&B project. The pages of runs bring config and summary; histories are scanned, never sampled."""

    def __init__(self, path: str) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            raise UserError(f"--from: {'wandb:' + path!r} is not of the form wandb:ENTITY/PROJECT")
        self.name = self.identity = f"wandb:{path}"
        self._path = path
        self._runs: dict[str, Any] = {}

    def listing(self) -> dict[str, str]:
        """Runs by id; the version is the state and the last sign of life."""
        import wandb

        try:
            runs = wandb.Api(timeout=TIMEOUT).runs(self._path, lazy=False)
            self._runs = {run.id: run for run in runs}
        except (ValueError, wandb.errors.Error) as error:
            raise UserError(f"--from: {self.name!r} cannot be read: {error}") from error
        return {key: f"{run.state} {run.heartbeatAt}" for key, run in self._runs.items()}

    def read(self, wanted: Mapping[str, str]) -> Iterator[Run]:
        """Config and summary as listed, history by a full scan."""
        for key, version in wanted.items():
            run = self._runs[key]
            summary = dict(run.summary_metrics)
            state, reason = wandb_state(summary, None)
            if state != "finished":
                state, reason = run.state, f"W&B says {run.state}; its last epoch was never reached"
            config = dict(run.config)
            yield Run(
                key=key,
                cell=config.pop("cell", None),
                state=state,
                reason=reason,
                config=config,
                summary=scalars(summary),
                history=[*run.scan_history()],
                sweeps=frozenset({*run.tags, run.group or ""} - {""}),
                started=run.created_at,
                version=version,
            )

    def plans(self) -> dict[str, tuple[str, ...]]:
        """W&B knows no plans: groups and tags say what a run belongs to."""
        return {}
