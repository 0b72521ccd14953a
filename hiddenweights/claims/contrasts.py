"""Claims as contrasts between cells: sums and differences of accuracies, seed by seed.

A claim is defined by a function from cells to contrasts. It only looks at configs, so it can name the cells
that a contrast needs before any of them is trained.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

from hiddenweights.config import CellConfig, OptimConfig, Scalar
from hiddenweights.flat import field_of, flatten, unflatten
from hiddenweights.identity import Resolved, id_of, resolve, short_name
from hiddenweights.recipes import recipe

# The fields that affect the result.
IDENTITY = tuple(name for name in flatten(CellConfig()) if field_of(name).identity)
SEEDS = tuple(name for name in IDENTITY if name.startswith("seed"))
# The cell whose mask is fine-tuned. Each seed has its own.
PARENT = "model.init_from"
# Fields in which the cells of one point differ.
BY_SEED = (*SEEDS, PARENT)
# Cells of one setting may be compared; a claim is judged in each setting separately.
SETTING = ("data.name", "data.protocol", "data.subset", "train.epochs")
RECIPE = tuple(f"optim.{field.name}" for field in fields(OptimConfig))
# Cells of one side of a comparison differ in these.
_TUNED = (*BY_SEED, *(name for name in RECIPE if name != "optim.optimizer"))
# A dense network has none of the fields of a subnetwork, and its own recipe.
TO_DENSE = ("model.method", "model.k", "model.distribution", "model.scaled", "model.selection", *RECIPE)
# A random mask is not trained, so the optimiser does not affect it. The batches do, through BatchNorm.
TO_RANDOM = ("model.method", *(name for name in RECIPE if name != "optim.batch_size"))
TO_SAMPLED = ("model.method", "model.k", "model.selection", *RECIPE)
# Another kind of network has its own recipe, and its width means something else (of "linear", nothing).
TO_ANOTHER_KIND = ("model.arch", "model.width", *RECIPE)


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell in the form used by claims: its resolved config under dotted names, and its result, if any."""

    id: str
    flat: Mapping[str, Scalar]
    accuracy: float | None = None
    """Test accuracy of the last epoch as a fraction; None if the cell is not finished."""
    kept: float | None = None
    """Measured fraction of the weights that is kept."""
    validation: float | None = None
    """Validation accuracy of the last epoch as a fraction; None without held-out images."""

    @classmethod
    def of(cls, config: CellConfig, accuracy: float | None = None, kept: float | None = None) -> "Cell":
        """The cell of a config, resolved or not."""
        resolved = resolve(config)
        return cls(id_of(resolved), flatten(resolved), accuracy, kept)

    @functools.cached_property
    def config(self) -> Resolved:
        """The config."""
        return resolve(unflatten(self.flat))

    @property
    def name(self) -> str:
        """A readable name without the seed."""
        words = short_name(self.config).split()
        return " ".join(word for word in words if not word.startswith("seed="))

    def __getitem__(self, name: str) -> Any:
        return self.flat[name]

    @functools.cached_property
    def unlike_recipe(self) -> tuple[str, ...]:
        """The fields of the optimiser that differ from the paper's for this method and network."""
        optimizer, method, arch = (self[name] for name in ("optim.optimizer", "model.method", "model.arch"))
        own = recipe(optimizer, method, arch, batch_size=None, epochs=self["train.epochs"])
        return tuple(f"optim.{name}" for name, value in own.items() if self[f"optim.{name}"] != value)

    @functools.cached_property
    def condition(self) -> tuple[Scalar, ...]:
        """All fields that affect the result, except the seeds, and the parent that each seed has."""
        return self.key(BY_SEED)

    @functools.cached_property
    def seed(self) -> tuple[int, ...]:
        """The seeds, in the order used for pairing."""
        seeds = (self[name] for name in SEEDS[::-1])
        return tuple(-1 if seed is None else int(seed) for seed in seeds)

    def key(self, apart: Sequence[str]) -> tuple[Scalar, ...]:
        """All fields that affect the result, except the fields `apart`."""
        return tuple(self.flat[name] for name in _rest(tuple(apart)))


@functools.cache
def _rest(apart: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in IDENTITY if name not in apart)


@dataclass(frozen=True, slots=True)
class Pair:
    """One seed of a contrast: accuracies of `plus` minus those of `minus`. `head` names the condition."""

    head: Cell
    plus: tuple[Cell, ...]
    minus: tuple[Cell, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of the pair."""
        return self.plus + self.minus

    @property
    def difference(self) -> float | None:
        """The difference in percentage points; None if one of the cells is not finished."""
        total = 0.0
        for sign, cells in ((100, self.plus), (-100, self.minus)):
            for cell in cells:
                if cell.accuracy is None:
                    return None
                total += sign * cell.accuracy
        return total

    def reversed(self) -> "Pair":
        """The pair with the opposite sign."""
        return Pair(self.head, self.minus, self.plus)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One comparison of a claim: its pairs in the order of their seeds, and the margin in points."""

    words: str
    margin: float
    pairs: tuple[Pair, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of all pairs. A cell that two pairs share occurs twice."""
        return tuple(cell for pair in self.pairs for cell in pair.cells)

    @property
    def values(self) -> list[float]:
        """The differences of the finished pairs, in points."""
        return [found for pair in self.pairs if (found := pair.difference) is not None]


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper, the rule that decides it, and the contrasts that the rule needs."""

    name: str
    says: str
    rule: str
    sweep: str
    """The sweep whose cells decide it."""
    contrasts: Callable[[Sequence[Cell]], Iterator[Contrast]] | None
    """The contrasts between cells of one setting. None: a fact, not a comparison."""
    data: str | None = "cifar10"
    """The data set of the statement; None: any data, width and number of epochs."""
    epochs: int = 100
    """The minimal number of epochs of a cell that is like the paper's."""
    width: float | None = 1.0
    """The width of the paper's networks; None: the claim compares widths."""

    def groups(self, cells: Sequence[Cell]) -> list[tuple[tuple[str, ...], list[Contrast]]]:
        """The contrasts between `cells` of one setting: like the paper's first; others say what they lack.

        If the statement is about one width, only cells of that width can judge the paper.
        """
        groups: dict[tuple[str, ...], list[Contrast]] = {}
        for contrast in self.contrasts(cells) if self.contrasts else ():
            groups.setdefault(tuple(self.lacks(contrast.cells)), []).append(contrast)
        return sorted(groups.items(), key=lambda group: group[0])

    def lacks(self, cells: Iterable[Cell]) -> list[str]:
        """How the cells differ from those of the paper, as text; empty if they do not."""
        if self.data is None:
            return []
        cells = list(cells)
        short = []
        names = {str(cell["data.name"]).removeprefix("folder:") for cell in cells} - {self.data}
        if names:
            short.append(f"{self.data} instead of {', '.join(sorted(names))}")
        subsets = [cell["data.subset"] for cell in cells if cell["data.subset"] is not None]
        if subsets:
            short.append(f"all images instead of {min(subsets)}")
        if (epochs := min((cell["train.epochs"] for cell in cells), default=self.epochs)) < self.epochs:
            short.append(f"{self.epochs} epochs instead of {epochs}")
        widths = {cell["model.width"] for cell in cells}
        if self.width is not None and widths - {self.width}:
            found = ", ".join(f"{width:g}" for width in sorted(widths - {self.width}))
            short.append(f"width {self.width:g} instead of {found}")
        unlike = {name for cell in cells for name in cell.unlike_recipe}
        if unlike and not short:  # cells that lack more are judged together, with any learning rate
            short.append(f"the recipe's {', '.join(sorted(unlike))}")
        return short


# --- from cells to contrasts ---------------------------------------------------------------------------


def pick(cells: Iterable[Cell], **fields_: Any) -> list[Cell]:
    """The cells with these values of ``model.`` fields (a tuple: any of its values). Default: edge-popup."""
    wanted = {"method": "edge_popup", "selection": "layer", "scaled": False, **fields_}
    if wanted["method"] != "edge_popup":
        wanted.pop("selection")
    tests = [
        (f"model.{name}", value if isinstance(value, tuple) else (value,)) for name, value in wanted.items()
    ]
    return [cell for cell in cells if all(cell.flat[name] in values for name, values in tests)]


def dense(cells: Iterable[Cell], **fields_: Any) -> list[Cell]:
    """The networks trained with SGD."""
    return [cell for cell in pick(cells, method="dense", **fields_) if cell.flat["optim.optimizer"] == "sgd"]


def paired(a: Iterable[Cell], b: Iterable[Cell], differ: Sequence[str]) -> list[Pair]:
    """Pairs a minus b of cells that are equal in all fields except `differ`. The condition is that of a.

    If each side has its own recipe, each is taken at its best one (see `at_best_recipe`).
    """
    if {*RECIPE} <= {*differ}:
        a, b = at_best_recipe(a), at_best_recipe(b)
    partners: dict[tuple[Scalar, ...], list[Cell]] = {}
    for cell in b:
        partners.setdefault(cell.key(differ), []).append(cell)
    return [Pair(cell, (cell,), (other,)) for cell in a for other in partners.get(cell.key(differ), ())]


def at_best_recipe(cells: Iterable[Cell]) -> list[Cell]:
    """Of cells that differ in the settings of one optimiser, those with the best mean validation accuracy.

    The mean is over the seeds that all settings have finished. All cells are kept where there is no such seed
    or no validation accuracy: a recipe is never chosen on test images.
    """
    sides: dict[tuple[Scalar, ...], dict[tuple[Scalar, ...], list[Cell]]] = {}
    for cell in cells:
        sides.setdefault(cell.key(_TUNED), {}).setdefault(cell.condition, []).append(cell)
    kept = []
    for recipes in sides.values():
        rivals = [*recipes.values()]
        measured = [
            {cell.seed: cell.validation for cell in own if cell.validation is not None} for own in rivals
        ]
        if shared := set.intersection(*map(set, measured)):
            means = [fmean(found[seed] for seed in shared) for found in measured]
            rivals = [rivals[means.index(max(means))]]
        kept += [cell for own in rivals for cell in own]
    return kept


def changes(a: Iterable[Pair], b: Iterable[Pair], differ: Sequence[str]) -> list[Pair]:
    """Difference in a minus difference in b, for conditions that are equal in all fields except `differ`."""
    partners: dict[tuple[Scalar, ...], list[Pair]] = {}
    for pair in b:
        partners.setdefault(pair.head.key(differ), []).append(pair)
    return [
        Pair(pair.head, pair.plus + other.minus, pair.minus + other.plus)
        for pair in a
        for other in partners.get(pair.head.key(differ), ())
    ]


def per_condition(pairs: Iterable[Pair], words: str, margin: float = 0.0) -> Iterator[Contrast]:
    """One contrast per condition: all pairs whose cells differ only in their seeds and their parents.

    If a seed has several parents, nothing says which of them belong to one condition: each is one of its own.
    """
    for group in _groups(pairs, lambda pair: tuple(cell.condition for cell in pair.cells)):
        seeds = {pair.head.seed for pair in group}
        parents = _groups(group, lambda pair: tuple(cell[PARENT] for cell in pair.cells))
        for own in [group] if len(seeds) == len(group) else parents:
            ordered = sorted(own, key=lambda pair: pair.head.seed)
            yield Contrast(f"{_place(ordered[0].head)}, {words}", margin, tuple(ordered))


def _groups(pairs: Iterable[Pair], key: Callable[[Pair], tuple[Any, ...]]) -> list[list[Pair]]:
    groups: dict[tuple[Any, ...], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return [*groups.values()]


def compare(
    a: Iterable[Cell], b: Iterable[Cell], differ: Sequence[str], words: str, margin: float = 0.0
) -> Iterator[Contrast]:
    """One contrast a minus b per condition, with the `margin` in points."""
    yield from per_condition(paired(a, b, differ), words, margin)


def network(arch: str) -> str:
    """The readable name of the network. One of the user's own keeps its name: FILE.py:FUNCTION."""
    if ":" in arch:
        return arch
    names = {"linear": "Logistic regression", "fc": "FC", "wide resnet50 2": "Wide ResNet-50"}
    plain = arch.removeprefix("torchvision/").replace("_", " ")
    for stem, pretty in (("conv", "Conv"), ("resnet", "ResNet-")):
        if plain.startswith(stem) and plain.removeprefix(stem).isdigit():
            return pretty + plain.removeprefix(stem)
    return names.get(plain, plain)


def _place(cell: Cell) -> str:
    words = [network(cell["model.arch"])]
    if cell["model.width"] != 1:
        words.append(f"width {cell['model.width']:g}")
    if cell["model.method"] != "dense":
        if cell["model.k"] is not None:
            words.append(f"k = {cell['model.k']:g}")
        words.append(str(cell["model.distribution"]).replace("_", " "))
    if "optim.lr" in cell.unlike_recipe:
        words.append(f"lr {cell['optim.lr']:g}")
    return ", ".join(words)
