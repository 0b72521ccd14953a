"""The published study: the paper's questions on CIFAR-10, at a budget of two CPU cores.

Half-width networks, ten epochs instead of a hundred, all 50,000 training images. Each stage is a complete
sweep. `study` contains all of them, with one seed of every stage before the next seed. The precision is set
explicitly, because it is part of the id of a cell and machines differ. `study_rates` finds the learning
rates on 5,000 held-out images under the same budget; `BEST` contains them.

Results: docs/results/.
"""

from collections.abc import Callable, Mapping, Sequence

from hiddenweights.config import Scalar
from hiddenweights.sweeps.grid import Arm, arm

KS = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = (0, 1, 2)
DISTRIBUTIONS = ("signed_constant", "kaiming_normal")
BUDGET: Mapping[str, Scalar] = {
    "data.protocol": "paper",
    "optim.batch_size": 128,
    "train.epochs": 10,
    "train.precision": "bfloat16",
}
CIFAR: Mapping[str, Scalar] = {**BUDGET, "data.name": "cifar10", "model.width": 0.5}
FASHION: Mapping[str, Scalar] = {**BUDGET, "data.name": "fashion_mnist", "model.width": 0.5}

SIDES: Mapping[str, Mapping[str, Scalar]] = {
    "edge_popup": {"model.k": 0.5},
    "iterand": {"model.method": "iterand", "model.k": 0.5},
    "biprop": {"model.method": "biprop", "model.k": 0.5},
    "sampled": {"model.method": "sampled"},
    "sgd": {"model.method": "dense", "optim.optimizer": "sgd"},
    "adam": {"model.method": "dense", "optim.optimizer": "adam"},
}
# Candidate learning rates, equally many for each side: around that of the recipe, a factor of three apart.
RATES: Mapping[str, Sequence[float]] = {
    "edge_popup": (0.03, 0.1, 0.3),
    "iterand": (0.03, 0.1, 0.3),
    "biprop": (0.03, 0.1, 0.3),
    "sampled": (60.0, 200.0, 600.0),
    "sgd": (0.01, 0.03, 0.1),
    "adam": (3e-4, 1e-3, 3e-3),
}


def study_rates() -> list[Arm]:
    """The learning rates of the study, chosen on 5,000 held-out images under the study's own budget.

    Claim: none; each side of a comparison gets its best of three rates.
    Command: hiddenweights sweeps launch study_rates --set data.root=DIR
    Cells: 18 (6 edge-popup, 12 dense); about 2 GPU-hours.
    Expect: edge-popup best at 0.1, the recipe's rate.
    """
    return [_rates(CIFAR, ("conv2", "conv4"), side) for side in ("sgd", "adam", "edge_popup")]


def study_rates_more() -> list[Arm]:
    """The learning rates of the study's later stages: mask methods, and shallow networks.

    Claim: none; each side of a comparison gets its best of three rates.
    Command: hiddenweights sweeps launch study_rates_more --set data.root=DIR
    Cells: 39 (15 edge-popup, 15 dense, 9 of other methods); about 2 GPU-hours.
    Expect: the recipes' own rates.
    """
    methods = [_rates(CIFAR, ("conv4",), side) for side in ("iterand", "biprop", "sampled")]
    flat = [
        _rates({**data, "model.width": 1.0}, ("linear", "fc"), side)
        for data in (CIFAR, FASHION)
        for side in ("edge_popup", "sgd")
    ]
    return [*flat, *(_rates(FASHION, ("conv2",), side) for side in ("edge_popup", "sgd")), *methods]


def _rates(base: Mapping[str, Scalar], archs: Sequence[str], side: str) -> Arm:
    """One side's candidate rates for some networks, under the validation protocol."""
    held_out = {**base, "data.protocol": "validation", **SIDES[side]}
    return arm(held_out, {"model.arch": archs, "optim.lr": RATES[side]})


def study_depth(seeds: Sequence[int] = SEEDS, archs: Sequence[str] = ("conv2", "conv4")) -> list[Arm]:
    """The study, stage a: Figure 3 for Conv2 and Conv4 at half width, with the random-mask control.

    Claim: some subnetwork of a random network does nearly as well as the trained network.
    Command: hiddenweights sweeps launch study_depth --set data.root=DIR
    Cells: 90 (60 edge-popup, 30 random); about 10 GPU-hours.
    Expect: a plateau for k in [0.3, 0.7] and a fall at k = 0.1; random masks near chance.
    """
    return [
        arm(CIFAR, {"model.arch": archs, "seed": seeds, "model.distribution": DISTRIBUTIONS, "model.k": KS}),
        arm({**CIFAR, "model.method": "random"}, {"model.arch": archs, "seed": seeds, "model.k": KS}),
    ]


def study_small() -> list[Arm]:
    """The smallest part of the study: Conv2, signed constant, over k, and one random mask.

    Claim: some subnetwork of a random network does nearly as well as the trained network.
    Command: hiddenweights sweeps launch study_small --set data.root=DIR
    Cells: 6, all 6 of them study_depth's; about 5 minutes each on one core with bfloat16.
    Expect: 41, 60, 63, 61, 46% at k = .1 .3 .5 .7 .9; 11% for the random mask.
    """
    base = {**CIFAR, "model.arch": "conv2"}
    return [
        arm(base, {"model.distribution": DISTRIBUTIONS[:1], "model.k": KS}),
        arm({**base, "model.method": "random", "model.k": 0.5}, {}),
    ]


def study_deep(seeds: Sequence[int] = SEEDS) -> list[Arm]:
    """The study, stage a continued: Conv6 and Conv8.

    Claim: the deeper the random network, the better its best subnetwork.
    Command: hiddenweights sweeps launch study_deep --set data.root=DIR
    Cells: 90 (60 edge-popup, 30 random); about 15 GPU-hours.
    Expect: Conv6 above Conv4 at k = 0.5.
    """
    return study_depth(seeds, ("conv6", "conv8"))


STAGES: Sequence[Callable[..., list[Arm]]] = (study_depth, study_deep)


def study() -> list[Arm]:
    """The whole study, one seed of every stage before the next seed.

    Claim: those of its stages.
    Command: hiddenweights sweeps launch study --set data.root=DIR
    Cells: 180; about 25 GPU-hours.
    Expect: see the stages: study_depth and study_deep.
    """
    return [arm for seed in SEEDS for stage in STAGES for arm in stage((seed,))]
