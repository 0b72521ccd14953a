"""How a launch runs."""

from dataclasses import dataclass
from typing import Literal

from hiddenweights.cells.store import PATIENCE
from hiddenweights.errors import UserError

Executor = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a launch runs."""

    executor: Executor = "ray"
    address: str | None = None
    """The address of a running Ray cluster; None starts Ray on this machine."""
    gpus: float | None = None
    """GPUs per cell; None: by the size of its network, if there are GPUs."""
    ranks: int | None = None
    """Processes that train a cell together, on one machine; None: one per GPU of it."""
    retries: int = 3
    """How often a cell is resumed if its worker dies."""
    time_limit: float | None = None
    """Limit in seconds for one attempt at a cell."""
    patience: float = PATIENCE
    """Seconds to wait if the store is unreachable, read-only or full."""
    first_worker: float = 600.0
    """Seconds to wait for a first worker, if it is not known whether the cluster has one that fits a cell."""
    search: bool = False
    """Stop cells early if they are worse than others of their side (with Ray)."""

    def processes(self) -> int:
        """How many processes train a cell together. Raises `UserError` for contradictory numbers."""
        gpus = self.gpus or 0
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus: {gpus:g} is neither a fraction of a GPU nor a whole number of them")
        if self.ranks and gpus and self.ranks != max(1, gpus):
            raise UserError(f"--ranks: {self.ranks}, but a cell has {gpus:g} GPUs; each takes one process")
        return self.ranks or max(1, int(gpus))
