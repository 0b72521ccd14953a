"""The paper's claims as measured verdicts.

A claim is a set of m comparisons. Each is a difference in percentage points, paired cell by cell: the two
cells are equal in every field but those compared. One-sided t tests against the claim's margin decide:

- *supported*: every comparison lies above its margin, each tested at level ERROR m / (m + 1);
- *contradicted*: some comparison lies below it, each tested at level ERROR / (m + 1);
- *not enough data*: anything else, and whenever a comparison has fewer than `MIN_PAIRS` pairs.

"All of them" needs no correction (intersection-union: Berger 1982), "some of them" is paid for by dividing
(Bonferroni), however the comparisons are correlated. For normal differences a claim gets a wrong verdict with
probability ERROR at most, where the margin is the truth; benchmarks/claims.py measures it.

These are verdicts on the paper when the cells are like the paper's: its data, all images, its width and its
number of epochs. Of other cells a claim only *holds here*, *does not hold here* or is *open here*. It is out
of scope when the runs have none of the cells it speaks of. What is reported as its effect is the comparison
that came out worst. Numbers are test accuracies of the last epoch; nothing is selected on them.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from hiddenweights.analysis.aggregate import describe, t_quantile
from hiddenweights.analysis.specs import network
from hiddenweights.analysis.table import FINISHED, FROZEN, METRIC, Table
from hiddenweights.config import CellConfig, OptimConfig
from hiddenweights.flat import flatten

SUPPORTED, CONTRADICTED = "supported", "contradicted"
NOT_ENOUGH, OUT_OF_SCOPE = "not enough data", "out of scope of these runs"
# The same outcomes in a setting that is not the paper's, which say nothing about the paper.
HERE = {SUPPORTED: "holds here", CONTRADICTED: "does not hold here", NOT_ENOUGH: "open here"}
MIN_PAIRS = 3
ERROR = 0.05  # the probability of a wrong verdict, supported and contradicted together

# Cells of one setting may be compared; a claim is judged in each setting apart.
SETTING = ("data.name", "data.protocol", "data.subset", "train.epochs")
# Where and how fast a cell was computed is no part of what it is.
_RUNTIME = ("data.root", "train.device", "train.threads")
_IDENTITY = tuple(name for name in flatten(CellConfig()) if name not in _RUNTIME)
_RECIPE = tuple(f"optim.{field.name}" for field in fields(OptimConfig))
# A trained network has none of the subnetwork's fields, and a recipe of its own.
TO_DENSE = ("model.method", "model.k", "model.distribution", "model.scaled", "model.selection", *_RECIPE)


@dataclass(frozen=True, slots=True)
class Effect:
    """One comparison: mean, sd, n and interval of a difference or level, in points, against a margin."""

    words: str
    mean: float
    sd: float
    n: int
    low: float
    high: float
    margin: float
    cells: tuple[str, ...]
    exact: bool = False
    """A fact that one case shows as well as many."""

    def above(self, level: float) -> bool:
        """Whether a one-sided t test at `level` puts the mean above the margin."""
        if self.exact:
            return self.low > self.margin
        return self._distant(self.mean - self.margin, level)

    def below(self, level: float) -> bool:
        """Whether a one-sided t test at `level` puts the mean below the margin."""
        if self.exact:
            return self.high < self.margin
        return self._distant(self.margin - self.mean, level)

    def _distant(self, distance: float, level: float) -> bool:
        if self.n < MIN_PAIRS:
            return False
        return distance > t_quantile(1 - level, self.n - 1) * self.sd / math.sqrt(self.n)


@dataclass(frozen=True, slots=True)
class Claim:
    """What the paper says, the rule that decides, and the comparisons that the rule needs."""

    name: str
    says: str
    rule: str
    sweep: str
    """The sweep whose cells decide it."""
    measure: Callable[[pd.DataFrame], Iterator[Effect]]
    data: str | None = "cifar10"
    """The data set that the paper speaks of; None: any data, width and number of epochs."""
    epochs: int = 100
    """The least number of epochs of a cell that is like the paper's."""
    width: float | None = 1.0
    """The width of the paper's networks; None: the claim compares widths."""

    def of_the_paper(self, cells: pd.DataFrame) -> bool:
        """Whether `cells` are like those that the claim was made of."""
        if self.data is None:
            return True
        name = cells["data.name"].str.removeprefix("folder:")
        like = (name == self.data) & cells["data.subset"].isna() & (cells["train.epochs"] >= self.epochs)
        if self.width is not None:
            like &= cells["model.width"] == self.width
        return bool(like.all())


def effect(values: Sequence[float], words: str, margin: float, cells: Sequence[str]) -> Effect:
    """The effect of `values` (points), with a seeded interval."""
    found = describe(values)
    return Effect(
        words, found["mean"], found["sd"], int(found["n"]), found["low"], found["high"], margin, tuple(cells)
    )


def differences(a: pd.DataFrame, b: pd.DataFrame, differ: Sequence[str]) -> pd.DataFrame:
    """One row a pair of cells equal in all fields but `differ`: those fields' columns, `difference`, `cells`.

    `difference` is a's accuracy minus b's in points. The columns of `differ` are a's.
    """
    on = [name for name in _IDENTITY if name not in differ]
    pairs = a.merge(b, on=on, suffixes=("", "_b"))
    difference = 100 * (pairs[METRIC] - pairs[f"{METRIC}_b"])
    return pairs[list(_IDENTITY)].assign(
        difference=difference, cells=pairs["cell"] + " " + pairs["cell_b"], seed=pairs["seed"]
    )


def compare(
    a: pd.DataFrame, b: pd.DataFrame, differ: Sequence[str], words: str, margin: float = 0.0
) -> Iterator[Effect]:
    """a minus b, one effect for each condition (all fields but the seeds), `margin` in points."""
    yield from per_condition(differences(a, b, differ), words, margin)


def per_condition(pairs: pd.DataFrame, words: str, margin: float) -> Iterator[Effect]:
    """The `difference` of the pairs, one effect for each condition."""
    condition = [name for name in _IDENTITY if not name.startswith("seed")]
    for _, group in pairs.groupby(condition, dropna=False, sort=False):
        where = f"{_place(group)}: {words}"
        yield effect(list(group["difference"]), where, margin, " ".join(group["cells"]).split())


def _place(cells: pd.DataFrame) -> str:
    first = cells.iloc[0]
    words = [network(cells).iloc[0]]
    if first["model.width"] != 1:
        words.append(f"width {first['model.width']:g}")
    if first["model.method"] != "dense":
        if pd.notna(first["model.k"]):
            words.append(f"k = {first['model.k']:g}")
        words.append(str(first["model.distribution"]).replace("_", " "))
    return " ".join(words)


def pick(cells: pd.DataFrame, **fields_: Any) -> pd.DataFrame:
    """The cells with these values of ``model.`` fields (a tuple: any of them), edge-popup unless said."""
    wanted = {"method": "edge_popup", "selection": "layer", "scaled": False, **fields_}
    if wanted["method"] != "edge_popup":
        wanted.pop("selection")
    for name, value in wanted.items():
        column = cells[f"model.{name}"]
        cells = cells[column.isin(value) if isinstance(value, tuple) else column == value]
    return cells


def dense(cells: pd.DataFrame, **fields_: Any) -> pd.DataFrame:
    """The networks trained with SGD."""
    found = pick(cells, method="dense", **fields_)
    return found[found["optim.optimizer"] == "sgd"]


CONVS = ("conv2", "conv4", "conv6", "conv8")
FLAT = 3.0  # points; the paper's Conv8 moves by 1.6 (signed constant) and 2.8 (Kaiming normal) in [0.3, 0.7]
NEAR = 1.0  # points that count as equal to a trained network; the paper's figures are read to +-0.5


def _plateau(cells: pd.DataFrame) -> Iterator[Effect]:
    middle, differ = pick(cells, k=0.5), ["model.k"]
    for k in (0.3, 0.7):
        yield from compare(pick(cells, k=k), middle, differ, f"minus k = 0.5 (above -{FLAT:g})", -FLAT)
        yield from (
            Effect(e.words, -e.mean, e.sd, e.n, -e.high, -e.low, -FLAT, e.cells)
            for e in compare(pick(cells, k=k), middle, differ, f"below k = 0.5 (above -{FLAT:g})")
        )


def _ends(cells: pd.DataFrame) -> Iterator[Effect]:
    for k in (0.1, 0.9):
        yield from compare(pick(cells, k=0.5), pick(cells, k=k), ["model.k"], f"minus k = {k:g}", FLAT)


def _signed(cells: pd.DataFrame, *, low: bool) -> Iterator[Effect]:
    ks = cells["model.k"]
    cells = cells[(ks - 0.1).abs() < 1e-9] if low else cells[ks >= 0.3]
    signed, normal = (pick(cells, distribution=name) for name in ("signed_constant", "kaiming_normal"))
    differ = ["model.distribution"]
    if low:
        yield from compare(normal, signed, differ, "minus signed constant")
    else:
        yield from compare(signed, normal, differ, "minus Kaiming normal")


def _deeper(cells: pd.DataFrame) -> Iterator[Effect]:
    cells = pick(cells, k=0.5)
    for shallow, deep in itertools.pairwise(CONVS):
        a, b = pick(cells, arch=deep), pick(cells, arch=shallow)
        yield from compare(a, b, ["model.arch"], f"minus {shallow}")


def _matches(cells: pd.DataFrame) -> Iterator[Effect]:
    deep = ("conv6", "conv8")
    a, b = pick(cells, arch=deep, k=0.5, distribution="signed_constant", width=1.0), dense(cells, arch=deep)
    yield from compare(a, b, TO_DENSE, "minus dense", -NEAR)


def _gap(cells: pd.DataFrame, **fields_: Any) -> pd.DataFrame:
    """Pairs of subnetworks at k = 0.5 with the trained network: accuracy minus dense."""
    found = pick(cells, k=0.5, distribution="signed_constant", **fields_)
    return differences(found, dense(cells), TO_DENSE)


def _change(a: pd.DataFrame, b: pd.DataFrame, differ: str, words: str) -> Iterator[Effect]:
    """How much larger the difference is in a than in b, pair by pair."""
    on = [name for name in _IDENTITY if name != differ]
    pairs = a.merge(b, on=on, suffixes=("", "_b"))
    pairs = pairs.assign(
        difference=pairs["difference"] - pairs["difference_b"], cells=pairs["cells"] + " " + pairs["cells_b"]
    )
    yield from per_condition(pairs, words, 0.0)


def _wider(cells: pd.DataFrame) -> Iterator[Effect]:
    gap = _gap(cells)
    for _, one in gap.groupby("model.arch"):
        widths = one["model.width"]
        if widths.nunique() > 1:
            narrow, wide = one[widths == widths.min()], one[widths == widths.max()]
            means = one.groupby("model.width")["difference"].mean()
            met = means.index[means >= 0]
            where = f"meets dense at width {met.min():g}" if len(met) else "does not meet dense"
            words = f"gap to dense against width {widths.min():g}; {where}"
            yield from _change(wide, narrow, "model.width", words)


def _budget(cells: pd.DataFrame) -> Iterator[Effect]:
    cells = pick(cells, arch="conv4", distribution="signed_constant")
    share = (cells["model.k"] * cells["model.width"] ** 2).round(2)
    for _, one in cells.groupby(share):
        widths = one["model.width"]
        wide, narrow = one[widths == widths.max()], one[widths == widths.min()]
        if widths.nunique() > 1:
            words = f"minus width {widths.min():g} with as many weights"
            yield from compare(wide, narrow, ["model.width", "model.k"], words)


def _sampled(cells: pd.DataFrame) -> Iterator[Effect]:
    theirs = pick(cells, method="sampled")
    ours = pick(cells)
    if len(theirs) and len(ours):
        k = ours["model.k"].iloc[(ours["model.k"] - theirs["kept"].mean()).abs().argmin()]
        differ = ["model.method", "model.k", "model.selection", *_RECIPE]
        yield from compare(pick(ours, k=k), theirs, differ, "minus sampled")


def _distribution(cells: pd.DataFrame) -> Iterator[Effect]:
    cells = pick(cells, k=0.5)
    for better, worse in (
        ("signed_constant", "unsigned_constant"),
        ("signed_constant", "xavier_normal"),
        ("kaiming_normal", "xavier_normal"),
    ):
        a, b = pick(cells, distribution=better), pick(cells, distribution=worse)
        yield from compare(a, b, ["model.distribution"], f"minus {worse.replace('_', ' ')}")


def _scaled(cells: pd.DataFrame) -> Iterator[Effect]:
    cells = cells[(cells["model.k"] <= 0.3) & (cells["model.distribution"] == "kaiming_normal")]
    yield from compare(pick(cells, scaled=True), pick(cells), ["model.scaled"], "scaled minus unscaled")


def _random(cells: pd.DataFrame) -> Iterator[Effect]:
    yield from compare(pick(cells), pick(cells, method="random"), ["model.method"], "minus a random mask")


def _level(cells: pd.DataFrame, words: str, above: float | None, below: float | None) -> Iterator[Effect]:
    """The accuracy itself, above one level and below another, in each condition."""
    for sign, bound in ((1, above), (-1, below)):
        if bound is not None:
            pairs = cells.assign(difference=100 * sign * cells[METRIC], cells=cells["cell"])
            side = f"{words}, {'above' if sign > 0 else 'negative, above'} {sign * bound:g}"
            yield from per_condition(pairs, side, sign * bound)


def _resnet18(cells: pd.DataFrame) -> Iterator[Effect]:
    cells = cells[cells["data.name"] == "cifar10"]
    found = pick(cells, arch="resnet18", k=0.3, width=1.0, distribution="signed_constant")
    yield from _level(found, "accuracy", above=90, below=None)


def _resnet18_dense(cells: pd.DataFrame) -> Iterator[Effect]:
    cells = cells[cells["data.name"] == "cifar10"]
    yield from _level(dense(cells, arch="resnet18", width=1.0), "accuracy", above=93, below=95)


def _shallow(cells: pd.DataFrame) -> Iterator[Effect]:
    yield from _change(
        _gap(cells, arch="conv2"), _gap(cells, arch="linear"), "model.arch", "gap to dense against linear's"
    )


def _imagenet(cells: pd.DataFrame) -> Iterator[Effect]:
    ours = pick(cells, arch="torchvision/wide_resnet50_2", k=0.3, distribution="signed_constant")
    theirs = dense(cells, arch="torchvision/resnet34")
    yield from compare(ours, theirs, [*TO_DENSE, "model.arch"], "minus dense ResNet-34", -NEAR)


def _unchanged(cells: pd.DataFrame) -> Iterator[Effect]:
    frozen = cells[cells["model.method"].isin(FROZEN) & cells["initial_weights_checksum"].notna()]
    if len(frozen):
        same = frozen["steady"]
        bound = 100.0 if same.all() else 0.0
        shown = frozen["cell"] if same.all() else frozen.loc[~same, "cell"]
        words, share = "% of cells with unchanged weights", 100 * float(same.mean())
        yield Effect(words, share, 0.0, len(frozen), bound, bound, 50.0, tuple(shown), exact=True)


CLAIMS = (
    Claim(
        "plateau", "Accuracy is nearly flat for k between 0.3 and 0.7.",
        f"In each network and distribution, k = 0.3 and k = 0.7 are within {FLAT:g} points of k = 0.5.",
        "depth", _plateau,
    ),
    Claim(
        "ends", "Accuracy falls when nearly all or nearly none of the weights are kept.",
        f"k = 0.5 is more than {FLAT:g} points above k = 0.1 and above k = 0.9.",
        "depth", _ends,
    ),
    Claim(
        "signed_above", "Signed constants beat Kaiming normal weights from k = 0.3 up.",
        "Signed constant minus Kaiming normal is above 0 at every k of at least 0.3.",
        "depth", lambda cells: _signed(cells, low=False),
    ),
    Claim(
        "signed_below", "At k = 0.1 Kaiming normal weights beat signed constants.",
        "Kaiming normal minus signed constant is above 0 at k = 0.1.",
        "depth", lambda cells: _signed(cells, low=True),
    ),
    Claim(
        "deeper", "The deeper the random network, the better its subnetwork.",
        "At k = 0.5, each of Conv4, Conv6, Conv8 minus the one before is above 0.",
        "depth", _deeper,
    ),
    Claim(
        "matches_dense", "In Conv6 and Conv8 a random network's subnetwork matches the trained network.",
        f"Signed constant at k = 0.5 minus dense SGD is above -{NEAR:g} in Conv6 and Conv8.",
        "depth", _matches,
    ),
    Claim(
        "wider", "The wider the random network, the nearer its subnetwork comes to the trained network.",
        "At k = 0.5, signed constant: the gap to dense SGD is better at the widest than at the narrowest "
        "width; the first width whose mean reaches dense is named.",
        "width", _wider, width=None,
    ),
    Claim(
        "fixed_weights", "The same number of weights is better chosen from a larger random network.",
        "For each number of kept weights, the widest Conv4 minus the narrowest is above 0.",
        "fixed_weights", _budget, width=None,
    ),
    Claim(
        "above_sampled", "Edge-popup beats supermasks that are sampled (Zhou et al. 2019).",
        "Edge-popup at the k nearest to what the sampled mask keeps, minus sampled, is above 0.",
        "sampled", _sampled,
    ),
    Claim(
        "distribution", "The distribution of the random weights matters.",
        "At k = 0.5: signed constant is above unsigned constant and Xavier normal, Kaiming normal above "
        "Xavier normal.",
        "distributions", _distribution,
    ),
    Claim(
        "scaling", "Scaling the weights by sqrt(1/k) helps.",
        "Kaiming normal at k of at most 0.3: scaled minus unscaled is above 0.",
        "scaled", _scaled, data="imagenet",
    ),
    Claim(
        "above_random", "It is the choice of the mask that matters, not masking.",
        "Edge-popup minus a random mask at the same k is above 0.",
        "control", _random,
    ),
    Claim(
        "resnet18", "A random ResNet-18 has a subnetwork above 90% on CIFAR-10 at k = 0.3.",
        "Signed constant at k = 0.3: accuracy is above 90.",
        "resnet18", _resnet18,
    ),
    Claim(
        "resnet18_dense", "The trained ResNet-18 reaches about 94% on CIFAR-10.",
        "Dense SGD: accuracy is above 93 and below 95.",
        "resnet18", _resnet18_dense,
    ),
    Claim(
        "shallow", "Logistic regression hides no good subnetwork, deeper networks do.",
        "At k = 0.5, signed constant: the gap to dense SGD is better in Conv2 than in logistic regression.",
        "shallow", _shallow,
    ),
    Claim(
        "imagenet", "A subnetwork of a random Wide ResNet-50 matches a trained ResNet-34 on ImageNet.",
        f"Signed constant at k = 0.3 minus dense ResNet-34 is above -{NEAR:g}.",
        "imagenet", _imagenet, data="imagenet",
    ),
    Claim(
        "unchanged", "No weight is ever trained.",
        "In all cells of edge-popup, sampled, random and biprop, the weights' checksum after every epoch is "
        "the initial one; one cell that differs contradicts.",
        "quickstart", _unchanged, data=None,
    ),
)  # fmt: skip


def judge(effects: Sequence[Effect]) -> str:
    """One verdict of all comparisons (see the head of the module)."""
    if not effects:
        return OUT_OF_SCOPE
    level = ERROR / (len(effects) + 1)
    if any(found.below(level) for found in effects):
        return CONTRADICTED
    if all(found.above(ERROR - level) for found in effects):
        return SUPPORTED
    return NOT_ENOUGH


def worst(effects: Sequence[Effect]) -> Effect:
    """The comparison that came out worst; of a contradicted claim, among those that contradict it."""
    level = ERROR / (len(effects) + 1)
    decisive = [found for found in effects if found.below(level)] or effects
    return min(decisive, key=lambda found: found.mean - found.margin)


def verdicts(table: Table, which: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One row a claim and setting: `claim`, `says`, `setting`, `verdict`, `effect` (in words), `mean`, `low`,
    `high`, `margin` (points), `n`, `comparisons`, `rule`, `sweep` and `cells`.

    A claim that is out of scope in every setting has one row.
    """
    cells = table.cells.assign(steady=table.unchanged())
    cells = cells[cells["state"] == FINISHED]
    settings = [(setting(group.iloc[0]), group) for _, group in cells.groupby(list(SETTING), dropna=False)]
    rows = []
    for claim in which:
        measured = [(name, [*claim.measure(group)]) for name, group in settings]
        in_scope = [(name, found) for name, found in measured if found] or [("", [])]
        rows += [_row(claim, name, found, cells) for name, found in in_scope]
    return pd.DataFrame(rows)


def setting(first: "pd.Series[Any]") -> str:
    """A cell's setting, in words."""
    subset = "" if pd.isna(first["data.subset"]) else f", {first['data.subset']:g} images"
    return f"{first['data.name']}, {first['train.epochs']} epochs{subset}, {first['data.protocol']}"


def _row(claim: Claim, where: str, effects: Sequence[Effect], cells: pd.DataFrame) -> dict[str, Any]:
    used = list(dict.fromkeys(cell for found in effects for cell in found.cells))
    verdict = judge(effects)
    if used and not claim.of_the_paper(cells[cells["cell"].isin(used)]):
        verdict = HERE[verdict]
    shown = worst(effects) if effects else Effect("", np.nan, np.nan, 0, np.nan, np.nan, np.nan, ())
    return {
        "claim": claim.name,
        "says": claim.says,
        "setting": where,
        "verdict": verdict,
        "effect": shown.words,
        "mean": shown.mean,
        "low": shown.low,
        "high": shown.high,
        "margin": shown.margin,
        "n": shown.n,
        "comparisons": len(effects),
        "rule": claim.rule,
        "sweep": claim.sweep,
        "cells": " ".join(used),
    }
