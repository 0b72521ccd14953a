"""From axes to cells: pure functions without files and Ray."""

import itertools
import math
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hiddenweights import own
from hiddenweights.config import GROUPS, CellConfig, Scalar, own_code
from hiddenweights.errors import UserError, choices_error
from hiddenweights.flat import field_of, flatten, parse_value, unflatten
from hiddenweights.identity import Resolved, cell_id, id_of, resolve


@dataclass(frozen=True)
class SearchedAxis:
    """A searched axis: a distribution whose sample number i is always the same value.

    A search is therefore a set of cells, too. Launching it again resumes it, and more samples extend it.
    """

    distribution: Literal["uniform", "loguniform", "choice"]
    values: tuple[Scalar, ...]
    """The two bounds, or the choices."""

    def __post_init__(self) -> None:
        if self.distribution == "choice":
            return
        numbers = [value for value in self.values if isinstance(value, int | float)]
        if not len(numbers) == len(self.values) == 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
            raise UserError(f"{self}: takes two numbers, the lower one first")
        if self.distribution == "loguniform" and not numbers[0] > 0:
            raise UserError(f"{self}: takes numbers above 0")

    def sample(self, name: str, i: int) -> Scalar:
        """Sample number `i` of the axis `name`. Numbers have three digits, so that people can write them."""
        chance = random.Random(f"{name}/{i}")
        if self.distribution == "choice":
            return chance.choice(self.values)
        low, high = (float(end) for end in self.values if end is not None)
        if self.distribution == "loguniform":
            return float(f"{math.exp(chance.uniform(math.log(low), math.log(high))):.3g}")
        return float(f"{chance.uniform(low, high):.3g}")

    def __str__(self) -> str:
        return f"{self.distribution}({','.join(map(str, self.values))})"


Axis = tuple[Scalar, ...] | SearchedAxis


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: a cell per combination of the values of the axes, all else as in `base`."""

    base: CellConfig = field(default_factory=CellConfig)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    samples: int = 16
    """Number of points drawn per combination of the other axes, if an axis is searched."""
    found_by: "Arm | None" = None
    """The arm whose subnetworks this arm trains, with its own axes for each of them.

    All fields come from the cells of that arm, except `optim`, which is that of `base`.
    """

    def searched(self) -> dict[str, SearchedAxis]:
        """The searched axes."""
        return {name: axis for name, axis in self.axes.items() if isinstance(axis, SearchedAxis)}

    def cells(self) -> list[CellConfig]:
        """The cells; the last axis varies fastest. Raises `UserError` for unknown fields and bad values."""
        grid = {name: axis for name, axis in self.axes.items() if not isinstance(axis, SearchedAxis)}
        drawn = self.searched()
        points = [
            {name: axis.sample(name, i) for name, axis in drawn.items()}
            for i in range(self.samples if drawn else 1)
        ]
        bases = [self.base]
        if self.found_by:
            parents = replace(self.found_by, samples=self.samples).cells()
            bases = [_finetuned(parent, self.base) for parent in parents]
        return [
            unflatten(dict(zip(grid, values, strict=True)) | point, base)
            for base in bases
            for values in itertools.product(*grid.values())
            for point in points
        ]

    def override(
        self, settings: Mapping[str, Scalar], axes: Mapping[str, Axis], everywhere: Collection[str]
    ) -> "Arm":
        """The arm with fields set and axes replaced. Axes named in `everywhere` are added if they are new."""
        kept = {name: values for name, values in self.axes.items() if name not in settings}
        added = () if self.found_by else everywhere
        new = {name: values for name, values in axes.items() if name in self.axes or name in added}
        return replace(
            self,
            base=unflatten(settings, self.base),
            axes=kept | new,
            found_by=self.found_by and self.found_by.override(settings, axes, everywhere),
        )

    def axis_names(self) -> set[str]:
        """The names of the axes, including those of `found_by`."""
        return {*self.axes, *(self.found_by.axis_names() if self.found_by else ())}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A named set of cells."""

    name: str
    arms: tuple[Arm, ...]
    title: str = ""
    claim: str = ""
    """The statement or question of the sweep."""
    expect: str = ""
    """The numbers that should come out."""
    gpu_hours: float | None = None
    """Estimated cost of all its cells but those of the sweep `beyond`, on one mid-range GPU."""
    beyond: str = ""
    options: str = ""
    """Further options of its command."""

    def command(self, name: str = "") -> str:
        """The command that launches it by the `name` that was typed. DIR stands for the data folder."""
        parts = [f"hiddenweights sweeps launch {name or self.name}"]
        bases = [arm.base for arm in self.arms if not arm.found_by]
        if any(base.data.name != "digits" and "data.name" not in own_code(base) for base in bases):
            parts.append("--set data.root=DIR")
        return " ".join([*parts, *([self.options] if self.options else [])])

    def cells(self, winners: Mapping[str, Mapping[str, Scalar]] | None = None) -> "Cells":
        """The cells of all arms by id, each once, in the order of the arms.

        `winners`: the best values that an earlier search has found for a `side` of the comparison. They
        replace those of its cells.
        """
        configs = [config for arm in self.arms for config in arm.cells()]
        cells: dict[str, Resolved] = {}
        for config in _tuned(configs, winners) if winners else configs:
            resolved = resolve(config)
            cells.setdefault(id_of(resolved), resolved)
        return Cells(cells, repeated=len(configs) - len(cells))

    def override(self, settings: Mapping[str, Scalar], axes: Mapping[str, Axis]) -> "Sweep":
        """The sweep with fields set and axes replaced in every arm.

        A setting also replaces an axis over its field. An axis that some arms have is replaced in those
        arms. An axis that no arm has is added to all of them.
        """
        if both := settings.keys() & axes.keys():
            raise UserError(f"--set and --axis contradict each other: both name {', '.join(sorted(both))}")
        everywhere = axes.keys() - set().union(*(arm.axis_names() for arm in self.arms))
        arms = [arm.override(settings, axes, everywhere) for arm in self.arms]
        return replace(self, arms=tuple(arms))

    def searched(self) -> bool:
        """Whether any axis is searched. Cells then compete, and bad ones are stopped early."""
        return any(arm.searched() for arm in self.arms)


class Cells(dict[str, Resolved]):
    """Configs of cells by id. `repeated` counts how often the axes name a cell again."""

    def __init__(self, cells: Mapping[str, Resolved], repeated: int = 0) -> None:
        super().__init__(cells)
        self.repeated = repeated

    def where(self, conditions: Mapping[str, Sequence[Scalar]]) -> "Cells":
        """The cells whose fields have one of these values. Raises `UserError` for a value that none has."""
        cells: Mapping[str, Resolved] = self
        for name, values in conditions.items():
            field_of = {cell: flatten(config)[name] for cell, config in cells.items()}
            if name in GROUPS:  # the user names own code without its version
                field_of = {cell: own.plain(str(found)) for cell, found in field_of.items()}
            for value in values:
                if value not in field_of.values():
                    has = sorted({str(has) for has in field_of.values()})
                    raise choices_error(f"--where {name}", value, has)
            cells = {cell: config for cell, config in cells.items() if field_of[cell] in values}
        return Cells(cells, self.repeated)


def _tuned(
    configs: Sequence[CellConfig], winners: Mapping[str, Mapping[str, Scalar]]
) -> Iterator[CellConfig]:
    """The cells with the best values for their side of the comparison; other cells are unchanged.

    A cell that trains the subnetwork of one of these cells trains that of the tuned cell instead.
    """
    tuned: list[CellConfig] = []
    ids: dict[str, str] = {}  # of the tuned cell, by that of the cell
    for config in configs:
        resolved = resolve(config)
        # The values replace those of the given config: the recipe may choose others for what it leaves open.
        tuned.append(unflatten(winners.get(side(resolved), {}), config))
        ids[id_of(resolved)] = cell_id(tuned[-1])
    for config in tuned:
        parent = config.model.init_from
        if parent in ids:
            config = replace(config, model=replace(config.model, init_from=ids[parent]))
        yield config


def _finetuned(parent: CellConfig, base: CellConfig) -> CellConfig:
    """The cell that trains the subnetwork of the cell `parent`, with the optimiser of `base`."""
    found = resolve(parent)
    model = replace(found.model, method="finetune", init_from=id_of(found))
    return CellConfig(
        model=model,
        data=found.data,
        optim=base.optim,
        train=found.train,
        seeds=found.seeds,
        seed=found.seed,
    )


def side(config: Resolved) -> str:
    """The side of a comparison that a cell belongs to: network, method, optimiser and data."""
    width = "" if config.model.width == 1 else f" width={config.model.width:g}"
    return f"{config.model.arch}{width} {config.model.method} {config.optim.optimizer} {config.data.name}"


def arm(
    base: Mapping[str, Scalar],
    axes: Mapping[str, Sequence[Scalar] | SearchedAxis],
    found_by: Arm | None = None,
) -> Arm:
    """An arm from flat fields: ``arm({"model.arch": "conv4"}, {"model.k": (0.3, 0.5), "seed": SEEDS})``.

    Raises `UserError` for an axis that is no list of values.
    """
    for name, axis in axes.items():
        if isinstance(axis, str) or not isinstance(axis, SearchedAxis | Iterable):
            raise UserError(f"axis {name}: {axis!r} must be a list of values")
    fixed = {name: axis if isinstance(axis, SearchedAxis) else tuple(axis) for name, axis in axes.items()}
    return Arm(base=unflatten(base), axes=fixed, found_by=found_by)


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
    """``["model.k=0.3,0.5"]`` as ``{"model.k": (0.3, 0.5)}``. Repeated axes are joined.

    ``optim.lr=loguniform(0.001,1)``, ``uniform(...)`` and ``choice(...)`` are searched.
    """
    axes: dict[str, Axis] = {}
    for name, text in _pairs("--axis", texts):
        search = re.fullmatch(r"(\w+)\((.*)\)", text)
        values = tuple(
            parse_value(name, value) for value in (search[2] if search else text).split(",") if value
        )
        if not values:
            raise UserError(f"--axis {name}: has no values; write --axis {name}=VALUE,VALUE")
        before = axes.get(name, ())
        if search is None and not isinstance(before, SearchedAxis):
            axes[name] = before + values
        elif search and not before:
            axes[name] = _draw(name, search[1], values)
        else:
            raise UserError(f"--axis {name}: takes a list of values or one distribution, but was given twice")
    return axes


def _draw(name: str, distribution: str, values: tuple[Scalar, ...]) -> SearchedAxis:
    if distribution not in ("uniform", "loguniform", "choice"):
        raise choices_error(f"--axis {name}", distribution, ("uniform", "loguniform", "choice"))
    if distribution != "choice" and int in field_of(name).types:
        raise UserError(f"--axis {name}: has whole numbers only; list them, or write choice(1,2,4)")
    try:
        return SearchedAxis(distribution, values)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"--axis {name}: {error}") from None


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} {text!r}: must be FIELD=VALUE")
        pairs.append((name.strip().replace("-", "_"), value.strip()))
    return pairs
