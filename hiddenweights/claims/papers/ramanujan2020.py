"""The claims of Ramanujan et al. 2020 (arXiv 1911.13299), each a set of contrasts between cells.

Numbers are test accuracies of the last epoch; nothing is selected on them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from hiddenweights.claims.contrasts import (
    RECIPE,
    TO_ANOTHER_KIND,
    TO_DENSE,
    TO_RANDOM,
    TO_SAMPLED,
    Cell,
    Claim,
    Contrast,
    Pair,
    changes,
    compare,
    dense,
    paired,
    per_condition,
    pick,
)

CONVS = ("conv2", "conv4", "conv6", "conv8")
FLAT = 3.0  # points; the paper's Conv8 moves by 1.6 (signed constant) and 2.8 (Kaiming normal) in [0.3, 0.7]
NEAR = 1.0  # points that count as equal to a trained network; the paper's figures are read to +-0.5
ALIKE = 1.05  # factor between numbers of weights that count as equal

Cells = Sequence[Cell]
Contrasts = Iterator[Contrast]


def _plateau(cells: Cells) -> Contrasts:
    middle = pick(cells, k=0.5)
    for k in (0.3, 0.7):
        pairs = paired(pick(cells, k=k), middle, ["model.k"])
        yield from per_condition(pairs, "minus k = 0.5", -FLAT)
        below = [pair.reversed() for pair in pairs]
        yield from per_condition(below, "subtracted from k = 0.5", -FLAT)


def _ends(cells: Cells) -> Contrasts:
    for k in (0.1, 0.9):
        yield from compare(pick(cells, k=0.5), pick(cells, k=k), ["model.k"], f"minus k = {k:g}", FLAT)


def _signed_above(cells: Cells) -> Contrasts:
    signed, normal = _signed_and_normal([cell for cell in pick(cells) if cell["model.k"] >= 0.3])
    yield from compare(signed, normal, ["model.distribution"], "minus Kaiming normal")


def _signed_below(cells: Cells) -> Contrasts:
    signed, normal = _signed_and_normal(pick(cells, k=0.1))
    yield from compare(normal, signed, ["model.distribution"], "minus signed constant")


def _signed_and_normal(cells: Cells) -> tuple[list[Cell], list[Cell]]:
    return pick(cells, distribution="signed_constant"), pick(cells, distribution="kaiming_normal")


def _deeper(cells: Cells) -> Contrasts:
    cells = pick(cells, k=0.5)
    for shallow, deep in itertools.pairwise(CONVS):
        yield from compare(
            pick(cells, arch=deep), pick(cells, arch=shallow), ["model.arch"], f"minus {shallow}"
        )


def _matches(cells: Cells) -> Contrasts:
    deep = ("conv6", "conv8")
    found = pick(cells, arch=deep, k=0.5, distribution="signed_constant")
    yield from compare(found, dense(cells, arch=deep), TO_DENSE, "minus dense", -NEAR)


def _gap(cells: Cells, **fields_: Any) -> list[Pair]:
    """Pairs of subnetwork at k = 0.5 and trained network: accuracy minus dense."""
    found = pick(cells, k=0.5, distribution="signed_constant", **fields_)
    return paired(found, dense(cells), TO_DENSE)


def _wider(cells: Cells) -> Contrasts:
    for gap in _grouped(_gap(cells), "model.arch").values():
        widths = _grouped(gap, "model.width")
        if len(widths) > 1:
            narrow, wide = min(widths), max(widths)
            words = f"gap to dense against width {narrow:g}; {_meets_dense(widths)}"
            ours = changes(widths[wide], widths[narrow], ["model.width"])
            ours = ours or changes(widths[wide], widths[narrow], ["model.width", *RECIPE])  # each at its best
            yield from per_condition(ours, words)


def _meets_dense(widths: Mapping[float, Sequence[Pair]]) -> str:
    """The first width whose mean over the finished pairs reaches dense, as text."""
    for width in sorted(widths):
        found = [value for pair in widths[width] if (value := pair.difference) is not None]
        if found and fmean(found) >= 0:
            return f"meets dense at width {width:g}"
    return "does not meet dense"


def _grouped(pairs: Sequence[Pair], name: str) -> dict[Any, list[Pair]]:
    groups: dict[Any, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.head[name], []).append(pair)
    return groups


def _budget(cells: Cells) -> Contrasts:
    def kept(cell: Cell) -> float:
        """The number of weights that are kept, as a share of those of width 1, within 1%."""
        return float(cell["model.k"] * cell["model.width"] ** 2)

    budgets: list[list[Cell]] = []
    for cell in sorted(pick(cells, arch="conv4", distribution="signed_constant"), key=kept):
        if not budgets or kept(cell) > ALIKE * kept(budgets[-1][0]):
            budgets.append([])
        budgets[-1].append(cell)
    for one in budgets:
        narrow, wide = (end(cell["model.width"] for cell in one) for end in (min, max))
        if narrow < wide:
            words = f"minus width {narrow:g} with as many weights"
            yield from compare(
                pick(one, width=wide), pick(one, width=narrow), ["model.width", "model.k"], words
            )


def _sampled(cells: Cells) -> Contrasts:
    ours, theirs = pick(cells), pick(cells, method="sampled")
    if ours and theirs:
        measured = [cell.kept for cell in theirs if cell.kept is not None]
        kept = fmean(measured) if measured else 0.5  # until it has been measured
        k = min((cell["model.k"] for cell in ours), key=lambda k: abs(k - kept))
        yield from compare(pick(ours, k=k), theirs, TO_SAMPLED, "minus sampled")


def _distribution(cells: Cells) -> Contrasts:
    cells = pick(cells, k=0.5)
    for better, worse in (
        ("signed_constant", "unsigned_constant"),
        ("signed_constant", "xavier_normal"),
        ("kaiming_normal", "xavier_normal"),
    ):
        a, b = pick(cells, distribution=better), pick(cells, distribution=worse)
        yield from compare(a, b, ["model.distribution"], f"minus {worse.replace('_', ' ')}")


def _scaled(cells: Cells) -> Contrasts:
    both = [
        cell
        for cell in pick(cells, scaled=(True, False), distribution="kaiming_normal")
        if cell["model.k"] <= 0.3
    ]
    yield from compare(pick(both, scaled=True), pick(both), ["model.scaled"], "scaled minus unscaled")


def _random(cells: Cells) -> Contrasts:
    yield from compare(pick(cells), pick(cells, method="random"), TO_RANDOM, "minus a random mask")


def _level(cells: Cells, above: float, below: float | None = None) -> Contrasts:
    """The accuracy itself, above one level and below another, per condition."""
    yield from per_condition((Pair(cell, (cell,)) for cell in cells), f"accuracy, above {above:g}", above)
    if below is not None:
        pairs = (Pair(cell, (), (cell,)) for cell in cells)
        yield from per_condition(pairs, f"accuracy, negative, above {-below:g}", -below)


def _resnet18(cells: Cells) -> Contrasts:
    found = pick(cells, arch="resnet18", k=0.3, width=1.0, distribution="signed_constant")
    yield from _level([cell for cell in found if cell["data.name"] == "cifar10"], 90)


def _resnet18_dense(cells: Cells) -> Contrasts:
    found = dense(cells, arch="resnet18", width=1.0)
    yield from _level([cell for cell in found if cell["data.name"] == "cifar10"], 93, 95)


def _shallow(cells: Cells) -> Contrasts:
    deep, flat = _gap(cells, arch="conv2"), _gap(cells, arch="linear")
    # With the same recipe if there is such a pair, else each with its own.
    pairs = changes(deep, flat, ["model.arch", "model.width"]) or changes(deep, flat, TO_ANOTHER_KIND)
    yield from per_condition(pairs, "gap to dense against linear's")


def _imagenet(cells: Cells) -> Contrasts:
    ours = pick(cells, arch="torchvision/wide_resnet50_2", k=0.3, distribution="signed_constant")
    theirs = dense(cells, arch="torchvision/resnet34")
    yield from compare(ours, theirs, [*TO_DENSE, "model.arch"], "minus dense ResNet-34", -NEAR)


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
        "depth", _signed_above,
    ),
    Claim(
        "signed_below", "At k = 0.1 Kaiming normal weights beat signed constants.",
        "Kaiming normal minus signed constant is above 0 at k = 0.1.",
        "depth", _signed_below,
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
        "quickstart", None, data=None,
    ),
)  # fmt: skip
