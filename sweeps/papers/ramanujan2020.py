"""The figures of Ramanujan et al. 2020 as sweeps.

The costs are those of one GPU. On CIFAR-10 they follow from 22 cells that an H200 trained, four at a time
(docs/results/figure_3); other widths and ResNet-18 were scaled from these and from the time of a step. Those
on ImageNet follow from the steps of ResNet-50 and Wide ResNet-50 on an H100 (8 and 11 hours a cell, if the
images are decoded as fast); the other networks were scaled from ResNet-50 by their multiply-adds.
`--dry-run` shows the measured cost if the store has finished cells of the same kind.
"""

from collections.abc import Callable, Mapping, Sequence

from hiddenweights.config import Scalar
from hiddenweights.sweeps.declare import declare
from hiddenweights.sweeps.grid import Arm, arm

Axes = Mapping[str, Sequence[Scalar]]

KS = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = tuple(range(5))
CONVS = ("conv2", "conv4", "conv6", "conv8")
CIFAR: Mapping[str, Scalar] = {"data.name": "cifar10"}
# As the paper: its augmentation, and all training images, because nothing is selected by their results.
IMAGENET: Mapping[str, Scalar] = {
    "data.name": "folder:imagenet",
    "data.augment": "resized_crop_flip",
    "data.protocol": "paper",
}
DENSE: Mapping[str, Scalar] = {"model.method": "dense"}
BOTH = ("sgd", "adam")


@declare(
    claim="at Conv6 and Conv8 a subnetwork of untrained weights matches the trained network.",
    expect=("Conv8, signed constant, k .9/.7/.5/.3/.1: 71, 87.5, 89, 88, 68%; dense SGD 88, Adam 88.3%."),
    gpu_hours=1.5,
)
def depth() -> list[Arm]:
    """Figure 3: the deeper the random network, the better its best subnetwork."""
    distributions = ("signed_constant", "kaiming_normal")
    return [
        arm(CIFAR, {"model.arch": CONVS, "model.distribution": distributions, "model.k": KS, "seed": SEEDS}),
        arm({**CIFAR, **DENSE}, {"model.arch": CONVS, "optim.optimizer": BOTH, "seed": SEEDS}),
    ]


WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@declare(
    claim="with width, edge-popup reaches the dense networks and gains more than they do.",
    expect="Conv4 at width 1 about 86% (dense 86.5%); the gap to dense closes as the width grows.",
    gpu_hours=3,
)
def width() -> list[Arm]:
    """Figure 4: the wider the random network, the better its best subnetwork."""
    archs = ("conv4", "conv6")
    distributions = ("signed_constant", "kaiming_normal")
    grid: Axes = {"model.arch": archs, "model.width": WIDTHS, "seed": SEEDS}
    return [
        arm({**CIFAR, "model.k": 0.5}, {**grid, "model.distribution": distributions}),
        arm({**CIFAR, **DENSE}, {**grid, "optim.optimizer": BOTH}),
    ]


@declare(
    claim="at a constant number of kept weights, accuracy grows with the network's width.",
    expect="each curve rises with width.",
    gpu_hours=1,
)
def fixed_weights() -> list[Arm]:
    """Figure 5: a larger random network to choose the same number of weights from is better."""
    # A Conv4 of width w has about w^2 as many weights, so a budget of k0 of width 1 is k0 / w^2 there.
    # k is rounded: a cell's identity should be a number that a person can write.
    budgets = (0.1, 0.3, 0.5)
    pairs = [
        (w, round(k0 * conv4_weights(1.0) / conv4_weights(w), 4))
        for k0 in budgets
        for w in (0.5, 0.75, 1.0, 1.5, 2.0)
    ]
    arms = [arm({**CIFAR, "model.arch": "conv4", "model.width": w, "model.k": k}, {"seed": SEEDS})
            for w, k in pairs if k <= 1]  # fmt: skip
    return [*arms, arm({**CIFAR, **DENSE, "model.arch": "conv4"}, {"seed": SEEDS})]


def conv4_weights(width: float, classes: int = 10) -> int:
    """Number of weights of a Conv4 of this width on 3x32x32 images: 2,425,024 at width 1."""
    a, b, fc = (int(n * width) for n in (64, 128, 256))
    return 9 * (3 * a + a * a + a * b + b * b) + b * 64 * fc + fc * fc + fc * classes


@declare(
    claim="choosing the top k by score beats sampling each weight with a learnt probability.",
    expect=("sampled Conv2/4/6: 66.0, 72.5, 76.5%; edge-popup far above, at the same fraction kept too."),
    gpu_hours=1,
)
def sampled() -> list[Arm]:
    """Figure 6: edge-popup against the supermasks of Zhou et al. (2019)."""
    return [
        arm(CIFAR, {"model.arch": CONVS, "model.k": KS, "seed": SEEDS}),
        arm({**CIFAR, "model.method": "sampled"}, {"model.arch": CONVS, "seed": SEEDS}),
    ]


@declare(
    claim="the distribution matters, and signed constant is the best of them.",
    expect="Conv4's best curve, signed constant, peaks at about 86%.",
    gpu_hours=2.5,
)
def distributions() -> list[Arm]:
    """Figure 7: the distribution of the random weights matters."""
    names = (
        "signed_constant",
        "unsigned_constant",
        "kaiming_normal",
        "kaiming_uniform",
        "xavier_normal",
        "signed_xavier_constant",
    )
    axes: Axes = {
        "model.arch": CONVS[:3],
        "model.distribution": names,
        "model.k": KS,
        "seed": SEEDS,
    }
    return [arm(CIFAR, axes)]


@declare(
    claim="a subnetwork of a random Wide ResNet-50 does as well as a trained ResNet-34.",
    expect=(
        "top-1 at k = 0.3, Kaiming normal / signed constant: ResNet-50 61.7 / 68.6, ResNet-101 "
        "66.15 / 72.3, Wide ResNet-50 67.9 / 73.3%."
    ),
    gpu_hours=520,
    options="--gpus 8",
)
def imagenet() -> list[Arm]:
    """Figure 8: subnetworks of random ResNets on ImageNet, by number of weights."""
    archs = ("torchvision/resnet50", "torchvision/resnet101", "torchvision/wide_resnet50_2")
    dense = ("torchvision/resnet18", "torchvision/resnet34", "torchvision/resnet50", "torchvision/resnet101")
    names = ("signed_constant", "kaiming_normal")
    return [
        arm({**IMAGENET, "model.k": 0.3}, {"model.arch": archs, "model.distribution": names, "seed": SEEDS}),
        arm({**IMAGENET, **DENSE}, {"model.arch": dense, "seed": SEEDS}),
    ]


@declare(
    claim="the best k lies between the extremes.",
    expect="at k = 0.3 Kaiming normal 61.7, signed constant 68.6%; a fall towards both ends.",
    gpu_hours=400,
    options="--gpus 8",
)
def imagenet_k() -> list[Arm]:
    """Figure 9: ResNet-50 on ImageNet over k."""
    base = {**IMAGENET, "model.arch": "torchvision/resnet50"}
    names = ("signed_constant", "kaiming_normal")
    return [arm(base, {"model.distribution": names, "model.k": KS, "seed": SEEDS})]


@declare(
    claim="scaling helps.",
    expect="scaled above unscaled, the more so the smaller k (at k = 1 they are one).",
    gpu_hours=800,
    options="--gpus 8",
)
def scaled() -> list[Arm]:
    """Figure 10: scaling the weights' standard deviation by sqrt(1/k), ResNet-50 on ImageNet."""
    base = {**IMAGENET, "model.arch": "torchvision/resnet50"}
    names = ("signed_constant", "kaiming_normal")
    scales = (False, True)
    axes: Axes = {
        "model.distribution": names,
        "model.scaled": scales,
        "model.k": KS,
        "seed": SEEDS,
    }
    return [arm(base, axes)]


@declare(
    claim="above 90% without training a weight.",
    expect="above 90% at k = 0.3; dense about 94%.",
    gpu_hours=2,
)
def resnet18() -> list[Arm]:
    """ResNet-18 on CIFAR-10 over k, against the trained network."""
    base = {**CIFAR, "model.arch": "resnet18"}
    names = ("signed_constant", "kaiming_normal")
    return [
        arm(base, {"model.distribution": names, "model.k": KS, "seed": SEEDS}),
        arm({**base, **DENSE}, {"seed": SEEDS}),
    ]


@declare(
    claim="it is the choice of the mask that matters, not masking.",
    expect="random masks near chance (10%), at every k.",
    gpu_hours=0.5,
    beyond="depth",
)
def control() -> list[Arm]:
    """The control of edge-popup: a random mask at the same k."""
    axes: Axes = {
        "model.arch": CONVS,
        "model.distribution": ("signed_constant", "kaiming_normal"),
        "model.k": KS,
        "seed": SEEDS,
    }
    return [arm(CIFAR, axes), arm({**CIFAR, "model.method": "random"}, axes)]


@declare(
    claim=(
        "none; it asks whether a subnetwork that edge-popup finds trains better than one with as "
        "many weights of each layer at random places (the control of the paper's appendix)."
    ),
    expect="all above edge-popup itself; which of the two is better is the question.",
    gpu_hours=0.5,
    beyond="depth",
)
def lottery() -> list[Arm]:
    """Are they lottery tickets: found subnetworks trained, against random ones."""
    found = arm(
        {**CIFAR, "model.arch": "conv4"},
        {"model.distribution": ("signed_constant", "kaiming_normal"), "model.k": KS, "seed": SEEDS},
    )
    return [
        found,
        arm({}, {"model.init_mask": ("found", "shuffled")}, found_by=found),
        arm({**CIFAR, **DENSE, "model.arch": "conv4", "optim.optimizer": "sgd"}, {"seed": SEEDS}),
    ]


SWEEPS: Mapping[str, Callable[..., list[Arm]]] = {
    "depth": depth,
    "width": width,
    "fixed_weights": fixed_weights,
    "sampled": sampled,
    "distributions": distributions,
    "imagenet": imagenet,
    "imagenet_k": imagenet_k,
    "scaled": scaled,
    "resnet18": resnet18,
    "control": control,
    "lottery": lottery,
}
