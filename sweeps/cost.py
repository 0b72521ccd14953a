"""The time and the GPU memory that a cell needs, from finished cells of the same kind."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from statistics import fmean

from hiddenweights.cells.kind import Kind, kind
from hiddenweights.cells.store import Json, Store
from hiddenweights.config import NETWORKS
from hiddenweights.flat import from_dict
from hiddenweights.identity import Resolved, resolve

SAMPLE = 2000  # cells of other sweeps that are read: 0.1 ms each, or 5 ms in a remote store
SHARES = (0.25, 0.5, 1.0)
# Factor on a measured peak. A process uses half a gigabyte of GPU memory beyond its allocations.
HEADROOM = 1.2


class Measured:
    """Measurements of finished cells, by kind."""

    def __init__(self) -> None:
        self._seconds: dict[Kind, dict[str, list[float]]] = defaultdict(partial(defaultdict, list))
        self._gpu_memory: dict[Kind, float] = defaultdict(float)
        self._processors: dict[tuple[Kind, str], set[str]] = defaultdict(set)

    def add(self, config: Resolved, result: Json) -> None:
        """Add a finished cell."""
        what, unit = kind(config), "CPU" if result["device"] == "cpu" else "GPU"
        self._seconds[what][unit].append(result["seconds"])
        self._gpu_memory[what] = max(self._gpu_memory[what], result.get("gpu_memory") or 0.0)
        if model := result.get("processor", {}).get("model"):  # results of the first versions have none
            self._processors[what, unit].add(str(model))

    def add_others(self, store: Store, todo: Iterable[Resolved], seen: Iterable[str]) -> None:
        """Read other cells of the store if a kind in `todo` is still unknown."""
        if {kind(config) for config in todo} - self._seconds.keys():
            others = islice(store.finished() - set(seen), SAMPLE)
            for _, result in store.results(others):
                self.add(resolve(from_dict(result["config"])), result)

    def seconds(self, *, gpu: bool = True) -> dict[Kind, tuple[float, str]]:
        """The mean seconds per kind, and their unit: ``GPU`` if any cell was trained on one, else ``CPU``.

        Without a `gpu` only those of cells that were trained on a CPU.
        """
        found = {}
        for what, taken in self._seconds.items():
            unit = "GPU" if gpu and "GPU" in taken else "CPU"
            if unit in taken:
                found[what] = fmean(taken[unit]), unit
        return found

    def processors(self, todo: Iterable[Resolved], units: Iterable[str]) -> list[str]:
        """The processors (``CPU``, ``GPU`` or both) on which cells of these kinds were measured."""
        kinds = {kind(config) for config in todo}
        return sorted(set().union(*(self._processors[what, unit] for what in kinds for unit in units)))

    def gpu_share(self, config: Resolved) -> float:
        """The fraction of a GPU for the cell. Small networks leave most of a GPU idle.

        It follows from the size of the network, and is larger if cells of this kind used more memory. Ray
        only does bookkeeping: it does not limit GPU memory, so cells that share a GPU must fit in it
        together.
        """
        wanted = max(_guess(config), HEADROOM * self._gpu_memory.get(kind(config), 0.0))
        return next((share for share in SHARES if share >= wanted), 1.0)


def _guess(config: Resolved) -> float:
    model = config.model
    if model.arch not in NETWORKS:  # of the user, perhaps with such a name, or of torchvision
        return 1.0
    if model.width <= 2 and model.arch.startswith(("linear", "fc", "conv")):
        return 0.25
    if model.width <= 1 and model.arch.startswith("resnet"):
        return 0.5
    return 1.0


def costs(todo: Iterable[Resolved], measured: Measured, gpus: float | None) -> tuple[dict[str, float], int]:
    """The GPU hours and CPU hours that `todo` will take, and the number of cells of unknown kind.

    `gpus`: GPUs per cell; None for `Measured.gpu_share`.
    """
    hours: dict[str, float] = defaultdict(float)
    seconds, unknown = {gpu: measured.seconds(gpu=gpu) for gpu in (True, False)}, 0
    for config in todo:
        if found := seconds[gpus != 0 and config.train.device != "cpu"].get(kind(config)):
            taken, unit = found
            share = gpus if gpus is not None else measured.gpu_share(config)
            hours[unit] += taken / 3600 * (share if unit == "GPU" else config.train.threads)
        else:
            unknown += 1
    return dict(hours), unknown


def describe(hours: Mapping[str, float], price: float | None) -> str:
    """For example ``12.5 GPU-hours, $25.00``, if the price of an hour is given."""
    words = [
        f"{n:,.1f} {unit}-hours" if n >= 1 else f"{n * 60:.1f} {unit}-minutes" for unit, n in hours.items()
    ]
    return " and ".join(words) + (f", ${sum(hours.values()) * price:,.2f}" if price else "")
