"""The sweeps behind the figures: functions whose docstrings state claim, command, cost and expectation.

To add a sweep, write its function and add it to `SWEEPS`. The costs are GPU hours of one mid-range GPU.
They were estimated from the multiply-adds of the networks, not measured. `--dry-run` shows the measured
cost if the store has finished cells of the same kind.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

from hiddenweights.config import Scalar
from hiddenweights.errors import choices_error
from hiddenweights.sweeps.grid import Arm, Draw, Sweep, arm
from hiddenweights.sweeps.study import (
    study,
    study_deep,
    study_depth,
    study_rates,
    study_rates_more,
    study_small,
)

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


def quickstart() -> list[Arm]:
    """Figure 3 in miniature: untrained weights classify real digits.

    Claim: some subnetwork of a random network does nearly as well as the trained network.
    Command: hiddenweights sweeps launch quickstart
    Cells: 72 (60 edge-popup, 12 dense), about 3 s each on one core of 2026.
    Expect: about 98% at k = 0.5, a fall towards k = 0.1 and k = 0.9; dense about 98.5%.
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


def depth() -> list[Arm]:
    """Figure 3: the deeper the random network, the better its best subnetwork.

    Claim: at Conv6 and Conv8 a subnetwork of untrained weights matches the trained network.
    Command: hiddenweights sweeps launch depth --set data.root=DIR
    Cells: 240 (200 edge-popup, 40 dense); about 60 GPU-hours.
    Expect: Conv8, signed constant, k .9/.7/.5/.3/.1: 71, 87.5, 89, 88, 68%; dense SGD 88, Adam 88.3%.
    """
    distributions = ("signed_constant", "kaiming_normal")
    return [
        arm(CIFAR, {"model.arch": CONVS, "model.distribution": distributions, "model.k": KS, "seed": SEEDS}),
        arm({**CIFAR, **DENSE}, {"model.arch": CONVS, "optim.optimizer": BOTH, "seed": SEEDS}),
    ]


WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def width() -> list[Arm]:
    """Figure 4: the wider the random network, the better its best subnetwork.

    Claim: with width, edge-popup reaches the dense networks and gains more than they do.
    Command: hiddenweights sweeps launch width --set data.root=DIR
    Cells: 240 (120 edge-popup, 120 dense), 40 of them depth's; about 70 GPU-hours.
    Expect: Conv4 at width 1 about 86% (dense 86.5%); the gap to dense closes as the width grows.
    """
    archs = ("conv4", "conv6")
    distributions = ("signed_constant", "kaiming_normal")
    grid: Axes = {"model.arch": archs, "model.width": WIDTHS, "seed": SEEDS}
    return [
        arm({**CIFAR, "model.k": 0.5}, {**grid, "model.distribution": distributions}),
        arm({**CIFAR, **DENSE}, {**grid, "optim.optimizer": BOTH}),
    ]


def fixed_weights() -> list[Arm]:
    """Figure 5: a larger random network to choose the same number of weights from is better.

    Claim: at a constant number of kept weights, accuracy grows with the network's width.
    Command: hiddenweights sweeps launch fixed_weights --set data.root=DIR
    Cells: 70 (65 edge-popup, 5 dense), 20 of them depth's; about 25 GPU-hours.
    Expect: each curve rises with width.
    """
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


def sampled() -> list[Arm]:
    """Figure 6: edge-popup against the supermasks of Zhou et al. (2019).

    Claim: choosing the top k by score beats sampling each weight with a learnt probability.
    Command: hiddenweights sweeps launch sampled --set data.root=DIR
    Cells: 120 (100 edge-popup, all of them depth's, 20 sampled); about 30 GPU-hours.
    Expect: sampled Conv2/4/6: 66.0, 72.5, 76.5%; edge-popup far above, at the same fraction kept too.
    """
    return [
        arm(CIFAR, {"model.arch": CONVS, "model.k": KS, "seed": SEEDS}),
        arm({**CIFAR, "model.method": "sampled"}, {"model.arch": CONVS, "seed": SEEDS}),
    ]


def distributions() -> list[Arm]:
    """Figure 7: the distribution of the random weights matters.

    Claim: the distribution matters, and signed constant is the best of them.
    Command: hiddenweights sweeps launch distributions --set data.root=DIR
    Cells: 450, 150 of them depth's; about 80 GPU-hours.
    Expect: Conv4's best curve, signed constant, peaks at about 86%.
    """
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


def imagenet() -> list[Arm]:
    """Figure 8: subnetworks of random ResNets on ImageNet, by number of weights.

    Claim: a subnetwork of a random Wide ResNet-50 does as well as a trained ResNet-34.
    Command: hiddenweights sweeps launch imagenet --set data.root=DIR --gpus 8
    Cells: 50 (30 edge-popup, 20 dense); about 4,000 GPU-hours.
    Expect: top-1 at k = 0.3, Kaiming normal / signed constant: ResNet-50 61.7 / 68.6, ResNet-101
    66.15 / 72.3, Wide ResNet-50 67.9 / 73.3%.
    """
    archs = ("torchvision/resnet50", "torchvision/resnet101", "torchvision/wide_resnet50_2")
    dense = ("torchvision/resnet18", "torchvision/resnet34", "torchvision/resnet50", "torchvision/resnet101")
    names = ("signed_constant", "kaiming_normal")
    return [
        arm({**IMAGENET, "model.k": 0.3}, {"model.arch": archs, "model.distribution": names, "seed": SEEDS}),
        arm({**IMAGENET, **DENSE}, {"model.arch": dense, "seed": SEEDS}),
    ]


def imagenet_modern() -> list[Arm]:
    """Networks of after the paper on ImageNet: EfficientNet-B0 and ViT-B/16.

    Claim: none; it asks whether they hide good subnetworks, too.
    Command: hiddenweights sweeps launch imagenet_modern --set data.root=DIR --gpus 8
    Cells: 30 (20 edge-popup, 10 dense); about 2,500 GPU-hours.
    Expect: unknown. The recipe is ours, not the paper's, and nobody has run it: the paper's ResNet recipe
    for all but the trained ViT-B/16, which has Adam at 1e-3, batch 1024, and the same warm-up and cosine.
    """
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


def imagenet_k() -> list[Arm]:
    """Figure 9: ResNet-50 on ImageNet over k.

    Claim: the best k lies between the extremes.
    Command: hiddenweights sweeps launch imagenet_k --set data.root=DIR --gpus 8
    Cells: 50, 10 of them imagenet's; about 3,500 GPU-hours.
    Expect: at k = 0.3 Kaiming normal 61.7, signed constant 68.6%; a fall towards both ends.
    """
    base = {**IMAGENET, "model.arch": "torchvision/resnet50"}
    names = ("signed_constant", "kaiming_normal")
    return [arm(base, {"model.distribution": names, "model.k": KS, "seed": SEEDS})]


def scaled() -> list[Arm]:
    """Figure 10: scaling the weights' standard deviation by sqrt(1/k), ResNet-50 on ImageNet.

    Claim: scaling helps.
    Command: hiddenweights sweeps launch scaled --set data.root=DIR --gpus 8
    Cells: 100, 50 of them imagenet_k's; about 7,000 GPU-hours.
    Expect: scaled above unscaled, the more so the smaller k (at k = 1 they are one).
    """
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


def resnet18() -> list[Arm]:
    """ResNet-18 on CIFAR-10 over k, against the trained network.

    Claim: above 90% without training a weight.
    Command: hiddenweights sweeps launch resnet18 --set data.root=DIR
    Cells: 55 (50 edge-popup, 5 dense); about 45 GPU-hours.
    Expect: above 90% at k = 0.3; dense about 94%.
    """
    base = {**CIFAR, "model.arch": "resnet18"}
    names = ("signed_constant", "kaiming_normal")
    return [
        arm(base, {"model.distribution": names, "model.k": KS, "seed": SEEDS}),
        arm({**base, **DENSE}, {"seed": SEEDS}),
    ]


def shallow() -> list[Arm]:
    """Where does it stop working: logistic regression, a fully connected network, Conv2.

    Claim: a hidden subnetwork needs depth to hide in; logistic regression has none.
    Command: hiddenweights sweeps launch shallow --set data.root=DIR
    Cells: 90 (75 edge-popup, 15 dense), 30 of them depth's; about 8 GPU-hours.
    Expect: linear far below its trained self, FC closer, Conv2 within some points.
    """
    archs = ("linear", "fc", "conv2")
    return [
        arm(CIFAR, {"model.arch": archs, "model.k": KS, "seed": SEEDS}),
        arm({**CIFAR, **DENSE}, {"model.arch": archs, "seed": SEEDS}),
    ]


def control() -> list[Arm]:
    """The control of edge-popup: a random mask at the same k.

    Claim: it is the choice of the mask that matters, not masking.
    Command: hiddenweights sweeps launch control --set data.root=DIR
    Cells: 400 (200 edge-popup, all of them depth's, 200 random); about 20 GPU-hours beyond depth.
    Expect: random masks near chance (10%), at every k.
    """
    axes: Axes = {
        "model.arch": CONVS,
        "model.distribution": ("signed_constant", "kaiming_normal"),
        "model.k": KS,
        "seed": SEEDS,
    }
    return [arm(CIFAR, axes), arm({**CIFAR, "model.method": "random"}, axes)]


def lottery() -> list[Arm]:
    """Are they lottery tickets: found subnetworks trained, against random ones.

    Claim: none; it asks whether a subnetwork that edge-popup finds trains better than one with as many
    weights of each layer at random places (the control of the paper's appendix).
    Command: hiddenweights sweeps launch lottery --set data.root=DIR
    Cells: 155 (50 edge-popup and 5 dense, all of them depth's, 100 fine-tuned); about 25 GPU-hours beyond
    depth.
    Expect: all above edge-popup itself; which of the two is better is the question.
    """
    found = arm(
        {**CIFAR, "model.arch": "conv4"},
        {"model.distribution": ("signed_constant", "kaiming_normal"), "model.k": KS, "seed": SEEDS},
    )
    return [
        found,
        arm({}, {"model.init_mask": ("found", "shuffled")}, found_by=found),
        arm({**CIFAR, **DENSE, "model.arch": "conv4", "optim.optimizer": "sgd"}, {"seed": SEEDS}),
    ]


def tune_lr() -> list[Arm]:
    """The learning rate of each side of depth's comparison, found under one budget.

    Claim: edge-popup and the dense networks are compared each at its own best rate.
    Command: hiddenweights sweeps launch tune_lr --set data.root=DIR
    Cells: 192 (64 edge-popup, 128 dense), most of them stopped early; about 15 GPU-hours.
    Expect: edge-popup near 0.1, dense SGD near 0.01, dense Adam near 3e-4. `--tuned tune_lr` applies them.
    """
    rates, slow = Draw("loguniform", (0.001, 1.0)), Draw("loguniform", (1e-5, 0.01))
    archs: Axes = {"model.arch": CONVS}
    dense: Mapping[str, Scalar] = {**CIFAR, **DENSE}
    return [
        arm({**CIFAR, "model.k": 0.5}, {**archs, "optim.lr": rates}),
        arm({**dense, "optim.optimizer": "sgd"}, {**archs, "optim.lr": rates}),
        arm({**dense, "optim.optimizer": "adam"}, {**archs, "optim.lr": slow}),
    ]


SWEEPS: Mapping[str, Callable[[], list[Arm]]] = {
    "quickstart": quickstart,
    "depth": depth,
    "width": width,
    "fixed_weights": fixed_weights,
    "sampled": sampled,
    "distributions": distributions,
    "imagenet": imagenet,
    "imagenet_modern": imagenet_modern,
    "imagenet_k": imagenet_k,
    "scaled": scaled,
    "resnet18": resnet18,
    "shallow": shallow,
    "control": control,
    "lottery": lottery,
    "tune_lr": tune_lr,
    "study_rates": study_rates,
    "study_rates_more": study_rates_more,
    "study_small": study_small,
    "study_depth": study_depth,
    "study_deep": study_deep,
    "study": study,
}


def sweep(name: str) -> Sweep:
    """The registered sweep `name`; `UserError` with the choices when there is none."""
    if name not in SWEEPS:
        raise choices_error("sweep", name, SWEEPS)
    function = SWEEPS[name]
    return Sweep(name=name, about=inspect.getdoc(function) or "", arms=tuple(function()))


@functools.cache
def memberships() -> Mapping[str, tuple[str, ...]]:
    """For each cell of any registered sweep, the names of the sweeps it belongs to."""
    found: dict[str, tuple[str, ...]] = {}
    for name in SWEEPS:
        for cell in sweep(name).cells():
            found[cell] = (*found.get(cell, ()), name)
    return found
