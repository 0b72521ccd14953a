"""The config of a cell (one training run): frozen, validated, with help under each field.

A field left at ``None`` is filled by `hiddenweights.identity.resolve`.
"""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from hiddenweights import own
from hiddenweights.errors import choices_error
from hiddenweights.fields import RUNTIME, check, check_types

Method = Literal["edge_popup", "sampled", "random", "iterand", "biprop", "dense", "finetune"]
Distribution = Literal[
    "signed_constant",
    "unsigned_constant",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "signed_xavier_constant",
    "default",
]
Selection = Literal["layer", "global"]
InitMask = Literal["found", "shuffled"]
Protocol = Literal["validation", "paper"]
Augment = Literal["none", "crop_flip", "resized_crop_flip"]
Optimizer = Literal["sgd", "adam"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]
Arithmetic = Literal["float32", "bfloat16"]

NETWORKS = (
    "linear",
    "fc",
    "conv2",
    "conv4",
    "conv6",
    "conv8",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
)
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
METHODS: tuple[str, ...] = get_args(Method)
# The fields that may name user code, with the group of its entry points.
GROUPS = {"model.arch": "networks", "model.method": "methods", "data.name": "data"}

# The fields of `model` that the ticket of a subnetwork determines.
SUBNETWORK = ("arch", "width", "k", "selection", "distribution", "scaled")

TICKET_SUFFIX = ".ticket"
MOST_THREADS = 1024  # torch ends the process if the system refuses a thread

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network and the method that finds its subnetwork."""

    arch: str = "conv4"
    """Network: linear, fc, conv2/4/6/8, resnet18/34/50/101, torchvision/NAME, or your own function as
    FILE.py:FUNCTION or module:FUNCTION, called with num_classes."""
    width: float = 1.0
    """Factor by which the number of channels of every hidden layer is multiplied."""
    method: str | None = None
    """How to find the subnetwork: edge_popup, sampled, random, iterand, biprop, or your own subclass of Mask
    as FILE.py:CLASS or module:CLASS. `dense` trains all weights, `finetune` those of a found subnetwork.
    If not given: finetune with init_from, else edge_popup."""
    k: float | None = 0.5
    """Fraction of the weights that is kept, in (0, 1]. `dense` keeps all; `sampled` learns the fraction."""
    selection: Selection = "layer"
    """Select the top k in each layer (as in the paper), or in all layers together (`global`)."""
    distribution: Distribution | None = None
    """Weight distribution. If not given: kaiming_normal for dense and biprop, else signed_constant."""
    scaled: bool = False
    """Multiply the weights' standard deviation by sqrt(1/k) (paper, section 4.1)."""
    init_from: str | None = None
    """For `finetune`: the id of the cell whose subnetwork is trained, or (`train` only) a .ticket file."""
    init_mask: InitMask = "found"
    """For `finetune`: the mask of the ticket, or a random one of the same size as control (`shuffled`)."""

    def __post_init__(self) -> None:
        check_types(self, "model")
        _check_arch(self.arch)
        named = self.method_or_default
        if named not in METHODS and not own.is_name(named, "methods"):
            choices = (*METHODS, *own.names("methods"), "FILE.py:CLASS", "module:CLASS")
            raise choices_error("model.method", self.method, choices)
        check(0 < self.width < math.inf, "model.width", self.width, "must be above 0")
        if named == "sampled":
            check(not self.scaled, "model.scaled", self.scaled, "needs a given k; sampled has none")
        elif named not in ("dense", "finetune"):
            check(self.k is not None, "model.k", self.k, f"is needed by method {named}")
        if self.k is not None:
            percent = f"; for {self.k:g}% write {self.k / 100:g}" if 2 <= self.k <= 100 else ""
            check(0 < self.k <= 1, "model.k", self.k, f"must lie in (0, 1]; k is the fraction kept{percent}")
        self._check_init()

    @property
    def method_or_default(self) -> str:
        """`method`, or the one that is used if it is None."""
        return self.method or ("edge_popup" if self.init_from is None else "finetune")

    def _check_init(self) -> None:
        parent = self.init_from
        if parent is None:
            check(self.method != "finetune", "model.init_from", parent, "is needed by method finetune")
            check(self.init_mask == "found", "model.init_mask", self.init_mask, "needs model.init_from")
            return
        whole = bool(re.fullmatch("[0-9a-f]{16}", parent)) or parent.endswith(TICKET_SUFFIX)
        check(whole, "model.init_from", parent, "is neither a cell's id (16 hex digits) nor a .ticket file")
        fine = self.method in ("finetune", None)
        check(fine, "model.init_from", parent, f"is for method finetune, not {self.method}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The images, and their split into training, validation and test images."""

    name: str = "digits"
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, torchvision/NAME (such as torchvision/SVHN),
    hf:NAME for one of Hugging Face, folder:NAME for a folder of images, or your own function as
    FILE.py:FUNCTION or module:FUNCTION."""
    root: str = field(default="data", metadata=RUNTIME)
    """Folder of the data, in torchvision's layout. For folder:NAME it contains train/ and test/ (or val/)."""
    protocol: Protocol = "validation"
    """`validation` holds out some training images; `paper` trains on all of them, as the paper did."""
    validation: float = 0.1
    """Fraction of the training images that the protocol `validation` holds out, in (0, 1)."""
    subset: int | None = None
    """Use only this many training images, including those held out. If not given: all."""
    augment: Augment | None = None
    """Augmentation of the training images. If not given: crop_flip for cifar10, cifar100 and image folders,
    else none. resized_crop_flip is ImageNet's, for image folders; test images are then cropped as is usual
    there."""
    image_size: int | None = None
    """Side in pixels of the squares to which images are cut. If not given: 224 for image folders, else their
    own size. digits, mnist, fashion_mnist and CIFAR have a fixed size."""

    def __post_init__(self) -> None:
        check_types(self, "data")
        if self.name.startswith("folder:"):
            label = self.name.removeprefix("folder:")
            check(
                label.replace("-", "").replace("_", "").isalnum(),
                "data.name",
                self.name,
                "must be folder:NAME, NAME of letters, digits, - and _",
            )
        elif not (self.name in DATASETS or _in_a_library(self.name) or own.is_name(self.name, "data")):
            forms = ("torchvision/NAME", "hf:NAME", "folder:NAME", "FILE.py:FUNCTION", "module:FUNCTION")
            raise choices_error("data.name", self.name, (*DATASETS, *own.names("data"), *forms))
        check(
            self.augment != "resized_crop_flip" or self.name.startswith("folder:"),
            "data.augment",
            self.augment,
            f"is for image folders (folder:NAME), not for {self.name}",
        )
        check(0 < self.validation < 1, "data.validation", self.validation, "must lie in (0, 1)")
        check(self.subset is None or self.subset > 1, "data.subset", self.subset, "must be above 1")
        check(
            self.image_size is None or self.image_size > 0,
            "data.image_size",
            self.image_size,
            "must be above 0",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The optimiser. Settings that are not given come from the recipe of the method and the network, see
    docs/method.md."""

    optimizer: Optimizer | None = None
    """sgd or adam. If not given: sgd. The choice also selects the recipe of a dense network."""
    lr: float | None = None
    """Learning rate after warm-up."""
    weight_decay: float | None = None
    """Weight decay of the trained parameters: the scores, or the weights for dense and finetune."""
    momentum: float | None = None
    """Momentum of SGD, in [0, 1)."""
    batch_size: int | None = None
    """Batch size."""
    schedule: Schedule | None = None
    """Learning-rate schedule, applied once per epoch: cosine decays to zero, constant does not change."""
    warmup_epochs: int | None = None
    """Number of epochs of linear warm-up before the schedule."""
    label_smoothing: float | None = None
    """Label smoothing of the training loss, in [0, 1)."""

    def __post_init__(self) -> None:
        check_types(self, "optim")
        for name in ("lr", "weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            check(value is None or 0 <= value < math.inf, f"optim.{name}", value, "must be at least 0")
        check(
            self.batch_size is None or self.batch_size > 0,
            "optim.batch_size",
            self.batch_size,
            "must be above 0",
        )
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, f"optim.{name}", value, "must lie in [0, 1)")
        for name in ("lr", "weight_decay", "momentum", "label_smoothing"):
            if getattr(self, name) == 0:  # -0.0 is equal to it, but would have another id
                object.__setattr__(self, name, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Duration, precision and hardware."""

    epochs: int = 100
    """Number of passes over the training images."""
    precision: Precision = "auto"
    """Precision of the network; scores and their selection are always float32.
    auto is bfloat16 if the device computes it natively, else float32. It is part of the cell's id.
    Set float32 or bfloat16 explicitly to get the same result on machines of both kinds."""
    device: str = field(default="auto", metadata=RUNTIME)
    """cpu, cuda, cuda:N, or auto (cuda if available)."""
    threads: int = field(default=1, metadata=RUNTIME)
    """Number of CPU threads. Results repeat bit for bit only between equal numbers."""

    def __post_init__(self) -> None:
        check_types(self, "train")
        check(self.epochs > 0, "train.epochs", self.epochs, "must be above 0")
        check(
            0 < self.threads <= MOST_THREADS, "train.threads", self.threads, f"is not in [1, {MOST_THREADS}]"
        )
        if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", self.device):
            raise choices_error("train.device", self.device, ("auto", "cpu", "cuda", "cuda:N"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedsConfig:
    """Separate seeds. A seed that is not given equals `seed`."""

    weights: int | None = None
    """Seed of the random weights."""
    scores: int | None = None
    """Seed of the initial scores."""
    data: int | None = None
    """Seed of the validation split, and of the order and augmentation of the images."""

    def __post_init__(self) -> None:
        check_types(self, "seeds")
        for name in ("weights", "scores", "data"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 2**64, f"seeds.{name}", value, "must lie in [0, 2^64)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellConfig:
    """One cell (training run): all settings that affect its result, and a few about where it runs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    seed: int = 0
    """Seed of the weights, the scores and the data."""

    def __post_init__(self) -> None:
        check_types(self, "")
        check(0 <= self.seed < 2**64, "seed", self.seed, "must lie in [0, 2^64)")
        warmup = self.optim.warmup_epochs
        check(
            warmup is None or warmup < self.train.epochs,
            "optim.warmup_epochs",
            warmup,
            f"must be below train.epochs ({self.train.epochs})",
        )

    def seed_of(self, purpose: Literal["weights", "scores", "data"]) -> int:
        """The seed for `purpose`: its own if it is set, else `seed`."""
        own: int | None = getattr(self.seeds, purpose)
        return self.seed if own is None else own


def own_code(config: CellConfig) -> dict[str, str]:
    """The fields that name user code which affects the result, with these names."""
    arch, method, data = config.model.arch, config.model.method, config.data.name
    named = {} if method is None or method in METHODS else {"model.method": method}
    if data not in DATASETS and not data.startswith("folder:") and not _in_a_library(data):
        named["data.name"] = data
    if own.is_versioned(arch) or arch.partition(":")[0].endswith(".py"):  # a module never had a version
        named["model.arch"] = arch
    return named


SEEDS = tuple(f.name for f in fields(SeedsConfig))


def _check_arch(arch: str) -> None:
    user_module = ":" in arch and all(part for part in arch.split(":", 1))
    if arch not in NETWORKS and not user_module and not arch.startswith("torchvision/"):
        raise choices_error(
            "model.arch", arch, (*NETWORKS, "torchvision/NAME", "FILE.py:FUNCTION", "module:FUNCTION")
        )


def _in_a_library(data: str) -> bool:
    return any(len(data) > len(place) and data.startswith(place) for place in ("torchvision/", "hf:"))
