"""The config of a cell (one training run): frozen, validated, and with an id derived from it.

A field left at ``None`` is filled by `resolve` from the recipe of its method and architecture.
`cell_id` hashes the resolved config's non-default fields, so adding a field with a default keeps
every old identity, and a value written out by hand names the same cell as the recipe's own.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from hiddenweights.errors import UserError, choices_error

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

TICKET_SUFFIX = ".ticket"

Scalar = str | int | float | bool | None


class Field(NamedTuple):
    """A leaf field: its allowed types, its choices, and whether it is part of the cell's id."""

    types: tuple[type, ...]
    choices: tuple[str, ...]
    identity: bool


# Marks a field that affects where or how fast a cell is computed, but not its result.
RUNTIME = {"identity": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network and the method that finds its subnetwork."""

    arch: str = "conv4"
    """Network: linear, fc, conv2/4/6/8, resnet18/34/50/101, torchvision/NAME, or your own module:callable."""
    width: float = 1.0
    """Factor by which the number of channels of every hidden layer is multiplied."""
    method: Method = "edge_popup"
    """How to find the subnetwork. `dense` trains all weights, `finetune` those of a found subnetwork."""
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
        _check_types(self, "model")
        _check_arch(self.arch)
        _check(0 < self.width < math.inf, "model.width", self.width, "must be above 0")
        if self.method == "sampled":
            _check(not self.scaled, "model.scaled", self.scaled, "needs a given k; sampled has none")
        elif self.method not in ("dense", "finetune") and self.init_from is None:
            _check(self.k is not None, "model.k", self.k, f"is needed by method {self.method}")
        if self.k is not None:
            _check(0 < self.k <= 1, "model.k", self.k, "is the fraction of weights kept, in (0, 1]")
        self._check_init()

    def _check_init(self) -> None:
        parent = self.init_from
        if parent is None:
            _check(self.method != "finetune", "model.init_from", parent, "is needed by method finetune")
            _check(self.init_mask == "found", "model.init_mask", self.init_mask, "needs model.init_from")
            return
        whole = bool(re.fullmatch("[0-9a-f]{16}", parent)) or parent.endswith(TICKET_SUFFIX)
        _check(whole, "model.init_from", parent, "is neither a cell's id (16 hex digits) nor a .ticket file")
        fine = self.method in ("finetune", "edge_popup")  # the default; `resolve` makes it finetune
        _check(fine, "model.init_from", parent, f"is for method finetune, not {self.method}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The images, and their split into training, validation and test images."""

    name: str = "digits"
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, or folder:NAME for a folder of images."""
    root: str = field(default="data", metadata=RUNTIME)
    """Folder of the data, in torchvision's layout. For folder:NAME it contains train/ and test/ (or val/)."""
    protocol: Protocol = "validation"
    """`validation` holds out some training images; `paper` trains on all of them, as the paper did."""
    validation: float = 0.1
    """Fraction of the training images that the protocol `validation` holds out, in (0, 1)."""
    subset: int | None = None
    """Use only this many training images, including those held out. If not given: all."""
    augment: Augment | None = None
    """Augmentation of the training images. If not given: crop_flip for CIFAR and image folders, else none.
    resized_crop_flip is ImageNet's, for image folders; test images are then cropped as is usual there."""
    image_size: int | None = None
    """Side in pixels to which the images of a folder are resized. If not given: 224."""

    def __post_init__(self) -> None:
        _check_types(self, "data")
        if self.name.startswith("folder:"):
            label = self.name.removeprefix("folder:")
            _check(
                label.replace("-", "").replace("_", "").isalnum(),
                "data.name",
                self.name,
                "must be folder:NAME, NAME of letters, digits, - and _",
            )
        elif self.name not in DATASETS:
            raise choices_error("data.name", self.name, (*DATASETS, "folder:NAME"))
        _check(
            self.augment != "resized_crop_flip" or self.name.startswith("folder:"),
            "data.augment",
            self.augment,
            f"is for image folders (folder:NAME), not for {self.name}",
        )
        _check(0 < self.validation < 1, "data.validation", self.validation, "must lie in (0, 1)")
        _check(self.subset is None or self.subset > 1, "data.subset", self.subset, "must be above 1")
        _check(
            self.image_size is None or self.image_size > 0,
            "data.image_size",
            self.image_size,
            "must be above 0",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The optimiser. Settings that are not given come from the recipe of the method and the network."""

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
        _check_types(self, "optim")
        for name in ("lr", "weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < math.inf, f"optim.{name}", value, "must be at least 0")
        _check(
            self.batch_size is None or self.batch_size > 0,
            "optim.batch_size",
            self.batch_size,
            "must be above 0",
        )
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < 1, f"optim.{name}", value, "must lie in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Duration, precision and hardware."""

    epochs: int = 100
    """Number of passes over the training images."""
    precision: Precision = "auto"
    """Precision of the network; scores and their selection are always float32.
    auto is bfloat16 if the device computes it natively, else float32. It is part of the run's id.
    Set float32 or bfloat16 explicitly to get the same run on machines of both kinds."""
    device: str = field(default="auto", metadata=RUNTIME)
    """cpu, cuda, cuda:N, or auto (cuda if available)."""
    threads: int = field(default=1, metadata=RUNTIME)
    """Number of CPU threads. Results repeat bit for bit only between equal numbers."""

    def __post_init__(self) -> None:
        _check_types(self, "train")
        _check(self.epochs > 0, "train.epochs", self.epochs, "must be above 0")
        _check(self.threads > 0, "train.threads", self.threads, "must be above 0")
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
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
        _check_types(self, "seeds")
        for name in ("weights", "scores", "data"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < 2**64, f"seeds.{name}", value, "must lie in [0, 2^64)")


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
        _check_types(self, "")
        _check(0 <= self.seed < 2**64, "seed", self.seed, "must lie in [0, 2^64)")
        warmup = self.optim.warmup_epochs
        _check(
            warmup is None or warmup < self.train.epochs,
            "optim.warmup_epochs",
            warmup,
            f"must be below train.epochs ({self.train.epochs})",
        )

    def seed_of(self, purpose: Literal["weights", "scores", "data"]) -> int:
        """The seed in force for `purpose`: the one of its own, else `seed`."""
        own: int | None = getattr(self.seeds, purpose)
        return self.seed if own is None else own


SEEDS = tuple(f.name for f in fields(SeedsConfig))


# --- recipes ---------------------------------------------------------------------------------------


def recipe(config: CellConfig) -> OptimConfig:
    """The paper's optimiser settings for the config's (method, architecture, optimiser), complete.

    Sources: Ramanujan et al. 2020, section 4 and appendix; Zhou et al. 2019 for `sampled`. Frankle &
    Carbin 2019 for dense Adam. `iterand`, `biprop` and `random` take edge-popup's, `finetune` dense's.
    """
    arch, method = config.model.arch, config.model.method
    base = OptimConfig(
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        momentum=0.9,
        batch_size=128,
        schedule="cosine",
        warmup_epochs=0,
        label_smoothing=0.0,
    )
    if config.optim.optimizer == "adam":
        lr = {"linear": 1.2e-3, "fc": 1.2e-3, "conv2": 2e-4}.get(arch, 3e-4)
        return replace(
            base, optimizer="adam", lr=lr, weight_decay=0.0, momentum=0.0, batch_size=60, schedule="constant"
        )
    if method == "sampled":
        if arch.startswith(("resnet", "torchvision/")):
            return replace(base, lr=400.0, weight_decay=0.0, batch_size=256)
        return replace(base, lr=800.0 if arch == "conv8" else 200.0, weight_decay=0.0)
    if arch.startswith("torchvision/"):
        warmup = min(5, config.train.epochs - 1)
        rate = 0.256 * (config.optim.batch_size or 256) / 256
        return replace(
            base, lr=rate, weight_decay=2**-15, momentum=0.875, batch_size=256, warmup_epochs=warmup,
            label_smoothing=0.1,
        )  # fmt: skip
    if arch.startswith("resnet"):
        return replace(base, weight_decay=5e-4, batch_size=256)
    if method in ("dense", "finetune") and arch.startswith("conv"):
        return replace(base, lr=0.01)
    return base


def resolve(config: CellConfig) -> CellConfig:
    """The same cell with every field filled in, and fields without effect set to one fixed value.

    Idempotent. Two configs that compute the same thing resolve to equal configs, up to the fields
    that only say where a cell runs.

    Raises `UserError` where `model.init_from` is a file: a cell is trained from what its store holds.
    """
    settled = _resolve_all_but_seeds(config.model, config.data, config.optim, config.train)
    model, idle = settled.model, set()  # seeds that nothing is drawn from
    if model.method == "dense":
        idle = {"scores"}
    elif model.method == "finetune":  # the weights are the ticket's; the scores' seed shuffles
        idle = {"weights"} if model.init_mask == "shuffled" else {"weights", "scores"}
    own = {purpose: getattr(config.seeds, purpose) for purpose in SEEDS if purpose not in idle}
    seeds = SeedsConfig(**{name: value for name, value in own.items() if value != config.seed})
    return replace(settled, seeds=seeds, seed=config.seed)


@functools.lru_cache(maxsize=1024)  # most cells of a sweep differ in nothing but their seeds
def _resolve_all_but_seeds(
    model: ModelConfig, data: DataConfig, optim: OptimConfig, train: TrainConfig
) -> CellConfig:
    if model.init_from is not None:
        cell = not model.init_from.endswith(TICKET_SUFFIX)
        _check(cell, "model.init_from", model.init_from, "is a file, which `train` takes; name its cell")
        model = replace(model, method="finetune")
    filled = {f.name: getattr(optim, f.name) for f in fields(optim) if getattr(optim, f.name) is not None}
    optim = replace(recipe(CellConfig(model=model, optim=optim, train=train)), **filled)
    if optim.optimizer == "adam":
        optim = replace(optim, momentum=0.0)
    # Over weights of one magnitude biprop would be edge-popup over again.
    normal = model.method in ("dense", "biprop")
    distribution = model.distribution or ("kaiming_normal" if normal else "signed_constant")
    model = replace(model, distribution=distribution)
    if model.method == "dense":
        model = replace(model, k=1.0, selection="layer", scaled=False)
    elif model.method == "sampled":
        model = replace(model, k=None, selection="layer")
    folder = data.name.startswith("folder:")
    data = replace(
        data,
        augment=data.augment or ("crop_flip" if folder or data.name.startswith("cifar") else "none"),
        image_size=(data.image_size or 224) if folder else None,
        validation=data.validation if data.protocol == "validation" else 0.1,
    )
    return CellConfig(model=model, data=data, optim=optim, train=train)


# --- identity and the flat form ----------------------------------------------------------------------


def cell_id(config: CellConfig) -> str:
    """The cell's identity: 16 hex digits of a hash of the resolved config's non-default fields."""
    resolved = resolve(config)
    relevant = _non_defaults(resolved.model, resolved.data, resolved.optim, resolved.train) | {
        name: value
        for name, value in (
            *((f"seeds.{purpose}", getattr(resolved.seeds, purpose)) for purpose in SEEDS),
            ("seed", resolved.seed or None),
        )
        if value is not None
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _non_defaults(
    model: ModelConfig, data: DataConfig, optim: OptimConfig, train: TrainConfig
) -> dict[str, Scalar]:
    """The fields that decide a result and are not at their default, but for the seeds."""
    defaults = _defaults()
    flat = flatten(CellConfig(model=model, data=data, optim=optim, train=train))
    return {
        name: value for name, value in flat.items() if value != defaults[name] and _field_of(name).identity
    }


@functools.cache
def _defaults() -> dict[str, Scalar]:
    return flatten(CellConfig())


def flatten(config: CellConfig) -> dict[str, Scalar]:
    """The config as ``{"model.arch": "conv4", ..., "seed": 0}``, in the order of its fields."""
    flat: dict[str, Scalar] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        if is_dataclass(value):
            flat.update({f"{part.name}.{f.name}": getattr(value, f.name) for f in fields(value)})
        else:
            flat[part.name] = value
    return flat


def unflatten(flat: Mapping[str, Any], base: CellConfig | None = None) -> CellConfig:
    """`base` (default: a default config) with the named fields replaced.

    Raises `UserError` for a field that does not exist, naming those that do.
    """
    base = base or CellConfig()
    parts: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in flat.items():
        _field_of(name)
        part, dot, leaf = name.partition(".")
        if dot:
            parts.setdefault(part, {})[leaf] = value
        else:
            top[part] = value
    return replace(
        base, **top, **{part: replace(getattr(base, part), **leaf) for part, leaf in parts.items()}
    )


def to_dict(config: CellConfig) -> dict[str, Any]:
    """The config as nested plain dicts, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(nested: Mapping[str, Any]) -> CellConfig:
    """The inverse of `to_dict`; missing fields take their defaults, unknown ones raise `UserError`."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{leaf}": inner for leaf, inner in value.items()})
        else:
            flat[name] = value
    return unflatten(flat)


def parse_value(name: str, text: str) -> Scalar:
    """`text` from a command line as the value of field `name` ("none" leaves it to the recipe).

    Raises `UserError` when the field does not exist or the text does not fit its type.
    """
    kinds = _field_of(name).types
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds:
        if text.lower() not in ("true", "false"):
            raise choices_error(name, text, ("true", "false"))
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in kinds:
        return text
    raise UserError(f"{name}: {text!r} is not a number")


def short_name(config: CellConfig) -> str:
    """A name for people: ``conv4 k=0.5 signed_constant seed=2``."""
    model = resolve(config).model
    words = [model.arch.removeprefix("torchvision/")]
    if model.width != 1:
        words.append(f"width={model.width:g}")
    if model.method != "edge_popup":
        words.append(model.method)
    if model.method == "dense":
        words.append(str(resolve(config).optim.optimizer))
    elif model.k is not None:
        words.append(f"k={model.k:g}")
    words += ["shuffled"] * (model.init_mask == "shuffled")
    words += ["scaled"] * model.scaled + [str(model.distribution), f"seed={config.seed}"]
    return " ".join(words)


# --- validation ----------------------------------------------------------------------------------------


def _check(condition: bool, name: str, value: object, message: str) -> None:
    if not condition:
        raise UserError(f"{name}: {value!r} {message}")


def _check_arch(arch: str) -> None:
    user_module = ":" in arch and all(part for part in arch.split(":", 1))
    if arch not in NETWORKS and not user_module and not arch.startswith("torchvision/"):
        raise choices_error("model.arch", arch, (*NETWORKS, "torchvision/NAME", "module:callable"))


def _check_types(part: object, prefix: str) -> None:
    """Reject wrong types and choices; turn an int given for a float field into a float.

    The last keeps identities stable: ``width=1`` and ``width=1.0`` are one cell.
    """
    leaves = _field_types(type(part))  # type: ignore[arg-type]  # mypy takes no class as hashable
    for leaf, (kinds, choices) in leaves.items():
        value = getattr(part, leaf)
        if value in choices if choices and value is not None else type(value) in kinds and value == value:
            continue  # the common case, cheap: a plan may hold 100,000 cells
        name = f"{prefix}.{leaf}" if prefix else leaf
        if choices:
            raise choices_error(name, value, choices)
        if float in kinds and type(value) is int and abs(value) < 2**1000:
            object.__setattr__(part, leaf, float(value))
            continue
        expected = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
        raise UserError(f"{name}: {value!r} is not of type {expected}")


@functools.cache
def _field_types(part: type) -> dict[str, tuple[tuple[type, ...], tuple[str, ...]]]:
    """For each field of a config class, the types it may have and, for a `Literal`, the choices."""
    hints = get_type_hints(part)
    return {f.name: (_leaf_types(hints[f.name]), _choices(hints[f.name])) for f in fields(part)}


def _leaf_types(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for arg in get_args(hint) for kind in _leaf_types(arg))
    if typing.get_origin(hint) is Literal:
        return (str,)
    return (hint,)


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for arg in get_args(hint) for choice in _choices(arg))


@functools.cache
def _fields() -> dict[str, Field]:
    """Every leaf field by its dotted name."""
    found: dict[str, Field] = {}
    for f in fields(CellConfig):
        if (part := get_type_hints(CellConfig)[f.name]) is not int:
            for leaf in fields(part):
                types_, choices = _field_types(part)[leaf.name]
                found[f"{f.name}.{leaf.name}"] = Field(types_, choices, leaf.metadata.get("identity", True))
        else:
            found[f.name] = Field(*_field_types(CellConfig)[f.name], identity=True)
    return found


def _field_of(name: str) -> Field:
    known = _fields()
    if name not in known:
        raise choices_error("field", name, known)
    return known[name]
