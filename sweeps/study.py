"""The published study: the paper's questions on CIFAR-10, at a budget that two CPU cores can pay.

Half-width networks, ten epochs instead of a hundred, all 50,000 training images. Each stage is a complete
sweep. `study` contains all of them, with one seed of every stage before the next seed. The precision is set
explicitly, because it is part of the id of a cell and machines differ. The sweeps called
`study_rates...` find the learning rates on held-out images under the same budget.

Results: docs/results/.
"""

from collections.abc import Callable, Mapping, Sequence

from hiddenweights.config import Scalar
from hiddenweights.sweeps.declare import declare
from hiddenweights.sweeps.grid import Arm, arm

Axes = Mapping[str, Sequence[Scalar]]

KS = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = (0, 1, 2)
CONVS = ("conv2", "conv4", "conv6", "conv8")
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
# Candidate learning rates, a factor of three apart: that of the recipe, and its neighbours. All but Adam have
# one more, because the best of their first three was the lowest (SGD) or the highest.
RATES: Mapping[str, Sequence[float]] = {
    "edge_popup": (0.03, 0.1, 0.3, 1.0),
    "iterand": (0.03, 0.1, 0.3, 1.0),
    "biprop": (0.03, 0.1, 0.3, 1.0),
    "sampled": (60.0, 200.0, 600.0, 2000.0),
    "sgd": (0.003, 0.01, 0.03, 0.1),
    "adam": (3e-4, 1e-3, 3e-3),
}


# The rates with the best validation accuracy in the sweeps of rates, by data, network, width and side.
CHOSEN: Mapping[tuple[str, str, float, str], float] = {
    ("cifar10", "conv2", 0.5, "edge_popup"): 0.3,
    ("cifar10", "conv4", 0.5, "edge_popup"): 0.3,
    ("cifar10", "conv4", 0.5, "iterand"): 0.3,
    ("cifar10", "conv4", 0.5, "biprop"): 0.3,
    ("cifar10", "conv4", 0.5, "sampled"): 600.0,
    ("cifar10", "conv2", 0.5, "sgd"): 0.01,
    ("cifar10", "conv4", 0.5, "sgd"): 0.01,
    ("cifar10", "conv2", 0.5, "adam"): 0.001,
    ("cifar10", "conv4", 0.5, "adam"): 0.001,
    ("cifar10", "linear", 1.0, "edge_popup"): 0.3,
    ("cifar10", "linear", 1.0, "sgd"): 0.003,
    ("cifar10", "fc", 1.0, "edge_popup"): 0.1,
    ("cifar10", "fc", 1.0, "sgd"): 0.01,
    ("fashion_mnist", "linear", 1.0, "edge_popup"): 0.03,
    ("fashion_mnist", "linear", 1.0, "sgd"): 0.03,
    ("fashion_mnist", "fc", 1.0, "edge_popup"): 0.3,
    ("fashion_mnist", "fc", 1.0, "sgd"): 0.03,
    ("fashion_mnist", "conv2", 0.5, "edge_popup"): 0.3,
    ("fashion_mnist", "conv2", 0.5, "sgd"): 0.01,
    ("cifar10", "conv4", 0.25, "edge_popup"): 0.3,
    ("cifar10", "conv4", 0.25, "sgd"): 0.03,
    ("cifar10", "conv4", 0.25, "adam"): 0.003,
    ("cifar10", "conv4", 1.0, "edge_popup"): 0.3,
    ("cifar10", "conv4", 1.0, "sgd"): 0.01,
    ("cifar10", "conv4", 1.0, "adam"): 0.001,
    ("cifar10", "conv6", 0.5, "edge_popup"): 0.3,
    ("cifar10", "conv6", 0.5, "sgd"): 0.01,
    ("cifar10", "conv6", 0.5, "adam"): 0.001,
    ("cifar10", "conv8", 0.5, "edge_popup"): 0.3,
    ("cifar10", "conv8", 0.5, "sgd"): 0.01,
    ("cifar10", "conv8", 0.5, "adam"): 0.001,
    ("cifar10", "resnet18", 0.25, "edge_popup"): 0.3,
    ("cifar10", "resnet18", 0.25, "sgd"): 0.1,
    ("cifar10", "resnet18", 0.25, "adam"): 0.003,
}


@declare(
    claim="none; each side of a comparison gets its best rate of three or four.",
    expect="edge-popup best at 0.3, above the recipe's rate of 0.1: ten epochs are few.",
)
def study_rates() -> list[Arm]:
    """The learning rates of the study, chosen on 5,000 held-out images under the study's own budget."""
    return [_rates(CIFAR, ("conv2", "conv4"), side) for side in ("sgd", "adam", "edge_popup")]


@declare(
    claim="none; each side of a comparison gets its best rate of three or four.",
    expect="the recipes' own rates.",
)
def study_rates_more() -> list[Arm]:
    """The learning rates of the study's later stages: mask methods, and shallow networks."""
    methods = [_rates(CIFAR, ("conv4",), side) for side in ("iterand", "biprop", "sampled")]
    flat = [
        _rates({**data, "model.width": 1.0}, ("linear", "fc"), side)
        for data in (CIFAR, FASHION)
        for side in ("edge_popup", "sgd")
    ]
    return [*flat, *(_rates(FASHION, ("conv2",), side) for side in ("edge_popup", "sgd")), *methods]


@declare(
    claim="none; whether the rates of half width are fair at full width, see `study_width`.",
    expect="the rates of half width.",
)
def study_rates_wide() -> list[Arm]:
    """The learning rates of Conv4 at the other widths. At full width: half an hour a cell on one core."""
    return [
        _rates({**CIFAR, "model.width": width}, ("conv4",), side)
        for width in (1.0, 0.25)
        for side in ("sgd", "adam", "edge_popup")
    ]


@declare(
    claim="none; each side of a comparison gets its best rate of three or four.",
    expect="those of Conv4, or lower ones.",
)
def study_rates_deep() -> list[Arm]:
    """The learning rates of Conv6, Conv8, and ResNet-18 at a quarter of the width."""
    return [
        _rates(base, archs, side)
        for base, archs in ((CIFAR, ("conv6", "conv8")), ({**CIFAR, "model.width": 0.25}, ("resnet18",)))
        for side in ("sgd", "adam", "edge_popup")
    ]


def _rates(base: Mapping[str, Scalar], archs: Sequence[str], side: str) -> Arm:
    """One side's candidate rates for some networks, under the validation protocol."""
    held_out = {**base, "data.protocol": "validation", **SIDES[side]}
    return arm(held_out, {"model.arch": archs, "optim.lr": RATES[side]})


def _chosen(base: Mapping[str, Scalar], archs: Sequence[str], side: str, axes: Axes) -> list[Arm]:
    """One arm per network, at the rate that was chosen for this side."""
    data, width = str(base["data.name"]), float(base["model.width"] or 1)
    rates = [CHOSEN[data, arch, width, side] for arch in archs]
    return [
        arm({**base, **SIDES[side], "model.arch": arch, "optim.lr": rate}, axes)
        for arch, rate in zip(archs, rates, strict=True)
    ]


def _masks_and_trained(
    base: Mapping[str, Scalar], arch: str, ks: Sequence[float], seeds: Sequence[int]
) -> list[Arm]:
    """Masks over k, and the network trained with SGD and with Adam, each at its own rate."""
    axes: Mapping[str, Axes] = {
        "edge_popup": {"seed": seeds, "model.k": ks},
        "sgd": {"seed": seeds},
        "adam": {"seed": seeds},
    }
    return [arm for side, over in axes.items() for arm in _chosen(base, (arch,), side, over)]


@declare(
    claim="some subnetwork of a random network does nearly as well as the trained network.",
    expect="a plateau for k in [0.3, 0.7] and a fall at k = 0.1; random masks near chance.",
)
def study_depth(seeds: Sequence[int] = SEEDS) -> list[Arm]:
    """The study, stage a: Figure 3 at half width, with both controls."""
    over: Axes = {"seed": seeds, "model.distribution": DISTRIBUTIONS, "model.k": KS}
    return [
        *_chosen(CIFAR, CONVS, "edge_popup", over),
        arm({**CIFAR, "model.method": "random"}, {"model.arch": CONVS, "seed": seeds, "model.k": KS}),
        *_chosen(CIFAR, CONVS, "sgd", {"seed": seeds}),
        *_chosen(CIFAR, CONVS, "adam", {"seed": seeds}),
    ]


@declare(
    claim="some subnetwork of a random network does nearly as well as the trained network.",
    expect="below `study_depth` but at k = 0.9, where a mask needs small steps.",
)
def study_recipe_rate() -> list[Arm]:
    """Masks of Conv2, Conv4 and ResNet-18 at the recipe's learning rate of 0.1, one seed."""
    axes: Axes = {"model.arch": ("conv2", "conv4"), "model.distribution": DISTRIBUTIONS, "model.k": KS}
    quarter = {**CIFAR, "model.arch": "resnet18", "model.width": 0.25}
    return [arm(CIFAR, axes), arm(quarter, {"model.k": (0.3, 0.5)})]


@declare(
    claim="some subnetwork of a random network does nearly as well as the trained network.",
    expect="41, 60, 63, 61, 46% at k = .1 .3 .5 .7 .9; 11% for the random mask.",
)
def study_small() -> list[Arm]:
    """The smallest part of the study: Conv2, signed constant, over k, and one random mask.

    At the recipe's learning rate. A cell takes about 5 minutes on one core with bfloat16.
    """
    base = {**CIFAR, "model.arch": "conv2"}
    return [
        arm(base, {"model.distribution": DISTRIBUTIONS[:1], "model.k": KS}),
        arm({**base, "model.method": "random", "model.k": 0.5}, {}),
    ]


@declare(
    claim="none of the paper: does a network without depth contain a good subnetwork, too?",
    expect="not for logistic regression: it has too few weights to choose from.",
)
def study_shallow(seeds: Sequence[int] = SEEDS) -> list[Arm]:
    """The study, stage b: logistic regression, FC and Conv2, on CIFAR-10 and Fashion-MNIST."""
    flat = ("linear", "fc")
    return [
        arm
        for data in (CIFAR, FASHION)
        for base, archs in (({**data, "model.width": 1.0}, flat), (data, ("conv2",)))
        for side, axes in (("edge_popup", {"seed": seeds, "model.k": KS}), ("sgd", {"seed": seeds}))
        for arm in _chosen(base, archs, side, axes)
    ]


@declare(
    claim="none of the paper: which way of choosing the mask is best at the same number of steps?",
    expect="edge-popup and biprop close together; sampled behind, because it learns slowly.",
)
def study_methods(seeds: Sequence[int] = SEEDS) -> list[Arm]:
    """The study, stage c: every mask method with its own best rate, and the trained network, Conv4."""
    over: Axes = {"seed": seeds, "model.k": (0.1, 0.3, 0.5)}
    kaiming: Axes = {**over, "model.distribution": ("kaiming_normal",)}  # the weights of biprop
    one: Axes = {"seed": seeds}
    sides = {"iterand": over, "biprop": over, "sampled": one, "sgd": one, "adam": one}
    return [
        arm({**CIFAR, "model.arch": "conv4", "model.method": "random"}, over),
        *_chosen(CIFAR, ("conv4",), "edge_popup", over),
        *_chosen(CIFAR, ("conv4",), "edge_popup", kaiming),
        *(arm for side, axes in sides.items() for arm in _chosen(CIFAR, ("conv4",), side, axes)),
    ]


@declare(
    claim="the wider the random network, the better its best subnetwork.",
    expect="rising with the width; the distance to the trained network shrinks.",
)
def study_width(seeds: Sequence[int] = SEEDS) -> list[Arm]:
    """The study, stage d: Conv4 at a quarter, half and full width, each at its own rates."""
    return [
        arm
        for width in (0.25, 0.5, 1.0)
        for arm in _masks_and_trained({**CIFAR, "model.width": width}, "conv4", (0.3, 0.5, 0.7), seeds)
    ]


@declare(
    claim="a random ResNet-18 contains a subnetwork that comes near the trained ResNet-18.",
    expect="above the Conv networks at the same budget.",
)
def study_resnet18(seeds: Sequence[int] = SEEDS) -> list[Arm]:
    """The study, stage e: ResNet-18 at a quarter of the width."""
    return _masks_and_trained({**CIFAR, "model.width": 0.25}, "resnet18", (0.3, 0.5), seeds)


STAGES: Sequence[Callable[..., list[Arm]]] = (
    study_depth,
    study_shallow,
    study_methods,
    study_width,
    study_resnet18,
)


@declare(
    claim="those of its stages.",
    expect="see the stages.",
)
def study() -> list[Arm]:
    """The whole study, one seed of every stage before the next seed."""
    return [arm for seed in SEEDS for stage in STAGES for arm in stage((seed,))]


SWEEPS: Mapping[str, Callable[..., list[Arm]]] = {
    "study_rates": study_rates,
    "study_rates_more": study_rates_more,
    "study_rates_wide": study_rates_wide,
    "study_rates_deep": study_rates_deep,
    "study_small": study_small,
    "study_depth": study_depth,
    "study_recipe_rate": study_recipe_rate,
    "study_shallow": study_shallow,
    "study_methods": study_methods,
    "study_width": study_width,
    "study_resnet18": study_resnet18,
    "study": study,
}
