"""Axes to cells. Pure: no files, no Ray."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hiddenweights.config import Scalar, TrialConfig, parse_value, trial_id, unflatten
from hiddenweights.errors import UserError

Axis = tuple[Scalar, ...]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: a cell for every combination of the axes' values, all else as in `base`."""

    base: TrialConfig = field(default_factory=TrialConfig)
    axes: Mapping[str, Axis] = field(default_factory=dict)

    def cells(self) -> list[TrialConfig]:
        """The last axis varies fastest. Raises `UserError` for fields and values that do not exist."""
        combinations = itertools.product(*self.axes.values())
        return [unflatten(dict(zip(self.axes, values, strict=True)), self.base) for values in combinations]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A named set of cells."""

    name: str
    about: str
    """What it shows, how to run it, what it costs, what to expect."""
    arms: tuple[Arm, ...]

    def cells(self) -> "Cells":
        """The cells of all arms, each once, under their ids, in the order of the arms."""
        configs = [config for arm in self.arms for config in arm.cells()]
        cells: dict[str, TrialConfig] = {}
        for config in configs:
            cells.setdefault(trial_id(config), config)
        return Cells(cells, repeated=len(configs) - len(cells))

    def override(self, settings: Mapping[str, Scalar], axes: Mapping[str, Axis]) -> "Sweep":
        """The sweep with fields set and axes replaced in every arm.

        A setting also takes the place of an axis. An axis that some arms have is replaced in those; one
        that none has is added to all.
        """
        if both := settings.keys() & axes.keys():
            raise UserError(f"--set and --axis contradict each other: both name {', '.join(sorted(both))}")
        arms = []
        for arm in self.arms:
            kept = {name: values for name, values in arm.axes.items() if name not in settings}
            new = {
                name: values
                for name, values in axes.items()
                if name in arm.axes or not any(name in other.axes for other in self.arms)
            }
            arms.append(Arm(base=unflatten(settings, arm.base), axes=kept | new))
        return replace(self, arms=tuple(arms))


class Cells(dict[str, TrialConfig]):
    """Cells by id. `repeated` says how many more times the axes name one of them."""

    def __init__(self, cells: Mapping[str, TrialConfig], repeated: int = 0) -> None:
        super().__init__(cells)
        self.repeated = repeated


def arm(base: Mapping[str, Scalar], axes: Mapping[str, Sequence[Scalar]]) -> Arm:
    """An arm from flat fields: ``arm({"model.arch": "conv4"}, {"model.k": (0.3, 0.5), "seed": SEEDS})``."""
    return Arm(base=unflatten(base), axes={name: tuple(values) for name, values in axes.items()})


def parse_settings(texts: Sequence[str]) -> dict[str, Scalar]:
    """``["train.epochs=5"]`` as ``{"train.epochs": 5}``."""
    settings: dict[str, Scalar] = {}
    for name, text in _pairs("--set", texts):
        value = parse_value(name, text)
        if name in settings and settings[name] != value:
            raise UserError(f"--set contradicts itself: {name} is {settings[name]!r} and {value!r}")
        settings[name] = value
    return settings


def parse_axes(texts: Sequence[str]) -> dict[str, Axis]:
    """``["model.k=0.3,0.5"]`` as ``{"model.k": (0.3, 0.5)}``; an axis named twice has all the values."""
    axes: dict[str, Axis] = {}
    for name, text in _pairs("--axis", texts):
        values = tuple(parse_value(name, value) for value in text.split(",") if value)
        if not values:
            raise UserError(f"--axis {name}: has no values; write --axis {name}=VALUE,VALUE")
        axes[name] = axes.get(name, ()) + values
    return axes


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} {text!r}: must be FIELD=VALUE")
        pairs.append((name.strip(), value.strip()))
    return pairs
