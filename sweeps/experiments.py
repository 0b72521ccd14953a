"""All sweeps by name, and the sweeps that do not belong to a paper.

To add a sweep, write its function, declare it, and add it to `SWEEPS`. Your own sweeps do not
have to be here: name the file (``my_sweeps.py:k_of_fc``), or register an entry point in the group
``hiddenweights.sweeps``.
"""

import functools
from collections.abc import Callable, Mapping

from hiddenweights import own
from hiddenweights.config import Scalar
from hiddenweights.errors import UserError, choices_error
from hiddenweights.sweeps import study
from hiddenweights.sweeps.declare import as_sweep, declare
from hiddenweights.sweeps.grid import Arm, SearchedAxis, Sweep, arm
from hiddenweights.sweeps.papers import ramanujan2020
from hiddenweights.sweeps.papers.ramanujan2020 import CIFAR, CONVS, DENSE, IMAGENET, KS, SEEDS, Axes


@declare(
    claim="some subnetwork of a random network does nearly as well as the trained network.",
    expect="98 to 99% at k = 0.5 (docs/performance.md), less at k = 0.1 and k = 0.9; dense about 98.5%.",
)
def quickstart() -> list[Arm]:
    """Figure 3 in miniature: untrained weights classify real digits.

    A cell takes about 3 s on one core of 2026.
    """
    digits: Mapping[str, Scalar] = {
        "data.name": "digits",
        "model.width": 0.25,
        "optim.batch_size": 64,
        "train.epochs": 30,
    }
    archs, seeds = ("conv2", "conv4"), range(3)
    distributions = ("signed_constant", "kaiming_normal")
    # Rates of the dense networks: the best on validation of {0.01, 0.03, 0.1} and {3e-4, 1e-3, 3e-3}.
    dense = {**digits, **DENSE}
    return [
        arm(
            digits,
            {"model.arch": archs, "model.distribution": distributions, "model.k": KS, "seed": seeds},
        ),
        arm({**dense, "optim.optimizer": "sgd", "optim.lr": 0.03}, {"model.arch": archs, "seed": seeds}),
        arm({**dense, "optim.optimizer": "adam", "optim.lr": 0.003}, {"model.arch": archs, "seed": seeds}),
    ]


@declare(
    claim="none; it asks whether they contain good subnetworks, too.",
    expect=(
        "unknown. The recipe is ours, not the paper's, and has never been run: the paper's ResNet "
        "recipe for all but the trained ViT-B/16, which uses Adam at 1e-3, batch 1024, and the "
        "same warm-up and cosine."
    ),
    gpu_hours=2_500,
    options="--gpus 8",
)
def imagenet_modern() -> list[Arm]:
    """Networks newer than the paper on ImageNet: EfficientNet-B0 and ViT-B/16."""
    efficientnet, vit = "torchvision/efficientnet_b0", "torchvision/vit_b_16"
    names = ("signed_constant", "kaiming_normal")
    adam: Mapping[str, Scalar] = {
        "optim.optimizer": "adam",
        "optim.lr": 1e-3,
        "optim.batch_size": 1024,
        "optim.schedule": "cosine",
        "optim.warmup_epochs": 5,
        "optim.label_smoothing": 0.1,
    }
    axes: Axes = {"model.arch": (efficientnet, vit), "model.distribution": names, "seed": SEEDS}
    return [
        arm({**IMAGENET, "model.k": 0.3}, axes),
        arm({**IMAGENET, **DENSE, "model.arch": efficientnet}, {"seed": SEEDS}),
        arm({**IMAGENET, **DENSE, **adam, "model.arch": vit}, {"seed": SEEDS}),
    ]


@declare(
    claim="a hidden subnetwork needs depth to hide in; logistic regression has none.",
    expect="linear far below its trained self, FC closer, Conv2 within some points.",
    gpu_hours=0.5,
)
def shallow() -> list[Arm]:
    """Where does it stop working: logistic regression, a fully connected network, Conv2."""
    archs = ("linear", "fc", "conv2")
    return [
        arm(CIFAR, {"model.arch": archs, "model.k": KS, "seed": SEEDS}),
        arm({**CIFAR, **DENSE}, {"model.arch": archs, "seed": SEEDS}),
    ]


@declare(
    claim="edge-popup and the dense networks are compared each at its own best rate.",
    expect=(
        "edge-popup near 0.1, dense SGD near 0.01, dense Adam near 3e-4. `--tuned tune_lr` applies them."
    ),
    gpu_hours=1.5,
)
def tune_lr() -> list[Arm]:
    """The learning rate of each side of depth's comparison, found under one budget."""
    rates, slow = SearchedAxis("loguniform", (0.001, 1.0)), SearchedAxis("loguniform", (1e-5, 0.01))
    archs: Axes = {"model.arch": CONVS}
    dense: Mapping[str, Scalar] = {**CIFAR, **DENSE}
    return [
        arm({**CIFAR, "model.k": 0.5}, {**archs, "optim.lr": rates}),
        arm({**dense, "optim.optimizer": "sgd"}, {**archs, "optim.lr": rates}),
        arm({**dense, "optim.optimizer": "adam"}, {**archs, "optim.lr": slow}),
    ]


SWEEPS: Mapping[str, Callable[..., list[Arm]]] = {
    "quickstart": quickstart,
    **ramanujan2020.SWEEPS,
    "imagenet_modern": imagenet_modern,
    "shallow": shallow,
    "tune_lr": tune_lr,
    **study.SWEEPS,
}


def registered() -> Mapping[str, Callable[..., list[Arm]]]:
    """The sweeps of this package and those that installed packages add, by name."""
    return {**own.registered("sweeps"), **SWEEPS}


def sweep(name: str) -> Sweep:
    """The sweep `name`: a registered one, or ``FILE.py:FUNCTION`` or ``module:FUNCTION`` of the user.

    Raises `UserError` with the choices if there is none, or if the function does not return arms.
    """
    if own.is_own(name):
        return _own_sweep(name)
    known = registered()
    if name not in known:
        raise choices_error("sweep", name, (*known, "FILE.py:FUNCTION"))
    return as_sweep(name, known[name])


def _own_sweep(name: str) -> Sweep:
    function = own.load(name, "sweep")
    try:
        found = as_sweep(own.slug(name), function)
        if not all(isinstance(found_arm, Arm) for found_arm in found.arms):
            raise TypeError("it must return a list of arm(...)")
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        raise UserError(f"sweep: {name} is not a sweep: {type(error).__name__}: {error}") from error
    return found


@functools.cache
def memberships() -> Mapping[str, tuple[str, ...]]:
    """For each cell of any registered sweep, the names of the sweeps it belongs to."""
    found: dict[str, tuple[str, ...]] = {}
    for name in registered():
        for cell in sweep(name).cells():
            found[cell] = (*found.get(cell, ()), name)
    return found
