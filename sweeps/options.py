"""How a launch runs."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from hiddenweights.cells.store import PATIENCE
from hiddenweights.errors import UserError

Executor = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a launch runs."""

    executor: Executor = "ray"
    """ray, or inline: train one cell after another in this process, without Ray."""
    address: str | None = None
    """The address of a running Ray cluster (`auto`, or host:port). If not given: Ray on this machine."""
    gpus: float | None = None
    """GPUs per cell; a fraction shares a GPU, 0 is for the CPU. If not given: by the size of the network, if
    there are GPUs."""
    ranks: int | None = None
    """Processes of one machine that train a cell together, data parallel. If not given: one per GPU."""
    loaders: int | None = None
    """More processes per training process, one CPU each, that read the images of large data sets (with Ray).
    If not given: for image folders by the CPUs of a node, for others none."""
    retries: int = 3
    """How often a cell is resumed if its worker dies (with Ray)."""
    time_limit: float | None = None
    """Limit in seconds for one attempt at a cell (with Ray)."""
    patience: float = PATIENCE
    """Seconds to wait if the store is unreachable, read-only or full."""
    first_worker: float = 600.0
    """Seconds to wait for a first worker, if it is not known whether the cluster has one that fits a cell."""
    search: Annotated[bool, tyro.conf.Suppress] = False
    """Stop cells early if they are worse than others of their side (with Ray)."""

    def __post_init__(self) -> None:
        for name in ("gpus", "loaders", "retries", "patience", "first_worker"):
            at_least_zero(name, getattr(self, name))
        for name in ("ranks", "time_limit"):
            above_zero(name, getattr(self, name))
        self.processes()

    def processes(self) -> int:
        """How many processes train a cell together. Raises `UserError` for contradictory numbers."""
        gpus = self.gpus or 0
        if gpus > 1 and not float(gpus).is_integer():
            raise UserError(f"--gpus: {gpus:g} is neither a fraction of a GPU nor a whole number of them")
        if self.ranks and gpus and self.ranks != max(1, gpus):
            raise UserError(f"--ranks: {self.ranks}, but a cell has {gpus:g} GPUs; each takes one process")
        return self.ranks or max(1, int(gpus))


def at_least_zero(name: str, value: float | None) -> None:
    """Raise `UserError` for a negative `value` of the option `name`, or NaN."""
    if value is not None and not value >= 0:
        raise UserError(f"--{name.replace('_', '-')}: {value!r} must be at least 0")


def above_zero(name: str, value: float | None) -> None:
    """Raise `UserError` for a `value` of the option `name` that is not above 0."""
    if value is not None and not value > 0:
        raise UserError(f"--{name.replace('_', '-')}: {value!r} must be above 0")
