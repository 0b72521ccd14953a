"""What a cell takes of time and of a card, from finished cells of the same kind."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from statistics import fmean

from hiddenweights.cells.kind import Kind, kind
from hiddenweights.cells.store import Json, Store
from hiddenweights.config import CellConfig
from hiddenweights.flat import from_dict

SAMPLE = 2000  # cells of other sweeps that are looked at: reading one takes 0.1 ms, or 5 ms from afar
SHARES = (0.25, 0.5, 1.0)
# Of a measured peak. A process holds half a gigabyte of a card besides what it allocates.
HEADROOM = 1.2


class Measured:
    """Finished cells by kind."""

    def __init__(self) -> None:
        self._seconds: dict[Kind, dict[str, list[float]]] = defaultdict(partial(defaultdict, list))
        self._gpu_memory: dict[Kind, float] = defaultdict(float)

    def add(self, config: CellConfig, result: Json) -> None:
        """Count a finished cell."""
        what = kind(config)
        self._seconds[what]["CPU" if result["device"] == "cpu" else "GPU"].append(result["seconds"])
        self._gpu_memory[what] = max(self._gpu_memory[what], result.get("gpu_memory") or 0.0)

    def add_others(self, store: Store, todo: Iterable[CellConfig], seen: Iterable[str]) -> None:
        """Look through the rest of the store if it takes that to know all kinds of `todo`."""
        if {kind(config) for config in todo} - self._seconds.keys():
            others = islice(store.finished() - set(seen), SAMPLE)
            for _, result in store.results(others):
                self.add(from_dict(result["config"]), result)

    def seconds(self) -> dict[Kind, tuple[float, str]]:
        """For each kind the mean seconds, and of what: ``GPU`` where any was trained on one, else ``CPU``."""
        chosen = {what: "GPU" if "GPU" in taken else "CPU" for what, taken in self._seconds.items()}
        return {what: (fmean(self._seconds[what][unit]), unit) for what, unit in chosen.items()}

    def gpu_share(self, config: CellConfig) -> float:
        """The part of a card for the cell: small networks leave most of one idle.

        By the network's size, and more where cells of the kind took more. Ray keeps the books and nobody
        keeps the peace: what shares a card must fit on it together.
        """
        wanted = max(_guess(config), HEADROOM * self._gpu_memory.get(kind(config), 0.0))
        return next((share for share in SHARES if share >= wanted), 1.0)


def _guess(config: CellConfig) -> float:
    model = config.model
    if model.width <= 2 and model.arch.startswith(("linear", "fc", "conv")):
        return 0.25
    if model.width <= 1 and model.arch.startswith("resnet"):
        return 0.5
    return 1.0


def costs(todo: Iterable[CellConfig], measured: Measured, gpus: float | None) -> tuple[dict[str, float], int]:
    """Hours of a ``GPU`` and of a ``CPU`` that `todo` will take, and how many cells nothing is known of.

    `gpus`: GPUs a cell; None for what `Measured.gpu_share` says.
    """
    hours: dict[str, float] = defaultdict(float)
    seconds, unknown = measured.seconds(), 0
    for config in todo:
        if found := seconds.get(kind(config)):
            taken, unit = found
            share = gpus if gpus is not None else measured.gpu_share(config)
            hours[unit] += taken / 3600 * (share if unit == "GPU" else config.train.threads)
        else:
            unknown += 1
    return dict(hours), unknown


def describe(hours: Mapping[str, float], price: float | None) -> str:
    """``12.5 GPU-hours, $25.00``: with the price of an hour, if there is one."""
    words = [
        f"{n:,.1f} {unit}-hours" if n >= 1 else f"{n * 60:.1f} {unit}-minutes" for unit, n in hours.items()
    ]
    return " and ".join(words) + (f", ${sum(hours.values()) * price:,.2f}" if price else "")
