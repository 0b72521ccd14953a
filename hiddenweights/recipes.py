"""The papers' optimiser settings, as a table.

Sources: Ramanujan et al. 2020, section 4 and appendix; Zhou et al. 2019 for `sampled`; Frankle & Carbin
2019 for dense Adam. `iterand`, `biprop` and `random` use the settings of edge-popup, `finetune` those of
dense.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

Settings = Mapping[str, str | int | float]

_SGD: Settings = {
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 1e-4,
    "momentum": 0.9,
    "batch_size": 128,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "label_smoothing": 0.0,
}
_ADAM: Settings = {
    **_SGD,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "momentum": 0.0,
    "batch_size": 60,
    "schedule": "constant",
}
_SAMPLED: Settings = {**_SGD, "weight_decay": 0.0}
_IMAGENET: Settings = {
    **_SGD,
    "lr": 0.256,
    "weight_decay": 2**-15,
    "momentum": 0.875,
    "batch_size": 256,
    "warmup_epochs": 5,
    "label_smoothing": 0.1,
}

# Not "resnet*": a file of the user may have such a name.
_RESNETS = ("resnet[0-9][0-9]", "resnet[0-9][0-9][0-9]")
# Patterns for optimiser, methods and architectures. The first row that matches applies.
_TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...], Settings], ...] = (
    ("adam", ("*",), ("linear", "fc"), {**_ADAM, "lr": 1.2e-3}),
    ("adam", ("*",), ("conv2",), {**_ADAM, "lr": 2e-4}),
    ("adam", ("*",), ("*",), {**_ADAM, "lr": 3e-4}),
    (
        "*",
        ("sampled",),
        (*_RESNETS, "torchvision/*"),
        {**_SAMPLED, "lr": 400.0, "batch_size": 256},
    ),
    ("*", ("sampled",), ("conv8",), {**_SAMPLED, "lr": 800.0}),
    ("*", ("sampled",), ("*",), {**_SAMPLED, "lr": 200.0}),
    ("*", ("*",), ("torchvision/*",), _IMAGENET),
    ("*", ("*",), _RESNETS, {**_SGD, "weight_decay": 5e-4, "batch_size": 256}),
    ("*", ("dense", "finetune"), ("conv[2-8]",), {**_SGD, "lr": 0.01}),
    ("*", ("*",), ("*",), _SGD),
)


def recipe(
    optimizer: str | None, method: str, arch: str, *, batch_size: int | None, epochs: int
) -> dict[str, str | int | float]:
    """Every field of `optim` for this optimiser (None: SGD), method and architecture.

    The learning rate of ImageNet's row follows a given batch size, and its warm-up is shorter than `epochs`.
    """
    settings = next(
        settings
        for optimizers, methods, archs, settings in _TABLE
        if fnmatchcase(optimizer or "sgd", optimizers)
        and any(fnmatchcase(method, pattern) for pattern in methods)
        and any(fnmatchcase(arch, pattern) for pattern in archs)
    )
    if settings is not _IMAGENET:
        return {**settings}
    rate = 0.256 * (batch_size or 256) / 256
    return {**settings, "lr": rate, "warmup_epochs": min(5, epochs - 1)}
