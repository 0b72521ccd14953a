"""The id of a cell, and its config with every field filled in.

`cell_id` hashes the fields of the resolved config that are not at their default. Adding a field with a
default therefore keeps every existing id, and giving a value explicitly gives the same id as taking it from
the recipe.
"""

import functools
import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import Any

from hiddenweights import own
from hiddenweights.config import (
    DATASETS,
    GROUPS,
    SEEDS,
    TICKET_SUFFIX,
    Augment,
    CellConfig,
    DataConfig,
    Distribution,
    ModelConfig,
    OptimConfig,
    Optimizer,
    Scalar,
    Schedule,
    SeedsConfig,
    TrainConfig,
    own_code,
)
from hiddenweights.errors import UserError
from hiddenweights.fields import check
from hiddenweights.flat import field_of, flatten, unflatten
from hiddenweights.recipes import recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """`ModelConfig` with its method and its distribution.

    `k` is None only for `sampled`, and for `finetune` of a subnetwork that `sampled` has found.
    """

    method: str
    distribution: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedData(DataConfig):
    """`DataConfig` with its augmentation."""

    augment: Augment


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedOptim(OptimConfig):
    """`OptimConfig`, complete."""

    optimizer: Optimizer
    lr: float
    weight_decay: float
    momentum: float
    batch_size: int
    schedule: Schedule
    warmup_epochs: int
    label_smoothing: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(CellConfig):
    """The config of a cell with every field filled in, as returned by `resolve`."""

    model: ResolvedModel
    data: ResolvedData
    optim: ResolvedOptim


def pinned(config: CellConfig) -> CellConfig:
    """The config with the version of the user's code that it names: ``my_masks.py:Mine@0123456789ab``.

    Raises `UserError` if there is no such code.
    """
    named = {name: text for name, text in own_code(config).items() if not own.is_versioned(text)}
    if not named:
        return config
    return unflatten({name: own.versioned(text, name, GROUPS[name]) for name, text in named.items()}, config)


def resolve(config: CellConfig) -> Resolved:
    """The same cell with every field filled in, and fields without effect set to a fixed value.

    The user's own code gets its version (see `pinned`), so that two versions are two cells.

    Idempotent. Two configs that differ only in fields without effect resolve to equal configs, except for
    the fields that only say where a cell runs. A field has no effect if that follows from the method, the
    data, the protocol or the optimiser. This is not complete, and stays as it is because ids must not change:
    at k = 1 either selection keeps everything, and `random` trains nothing, but each selection, and each
    setting of the optimiser, gives its own cell.

    Raises `UserError` if `model.init_from` is a file: a cell is trained from a ticket in its store.
    """
    config = pinned(config)
    settled = _resolve_all_but_seeds(config.model, config.data, config.optim, config.train)
    model, idle = settled.model, set()  # seeds without effect
    if model.method == "dense":
        idle = {"scores"}
    elif model.method == "finetune":  # the ticket has the weights; the seed of the scores shuffles
        idle = {"weights"} if model.init_mask == "shuffled" else {"weights", "scores"}
    own = {purpose: getattr(config.seeds, purpose) for purpose in SEEDS if purpose not in idle}
    seeds = SeedsConfig(**{name: value for name, value in own.items() if value != config.seed})
    return replace(settled, seeds=seeds, seed=config.seed)


@functools.lru_cache(maxsize=1024)  # most cells of a sweep differ only in their seeds
def _resolve_all_but_seeds(
    model: ModelConfig, data: DataConfig, optim: OptimConfig, train: TrainConfig
) -> Resolved:
    settled = _resolve_model(model)
    return Resolved(
        model=settled, data=_resolve_data(data), optim=_resolve_optim(optim, settled, train), train=train
    )


def _resolve_model(model: ModelConfig) -> ResolvedModel:
    values = _values(model)
    if model.init_from is not None:
        cell = not model.init_from.endswith(TICKET_SUFFIX)
        check(cell, "model.init_from", model.init_from, "is a file, which `train` takes; name its cell")
    values["method"] = model.method_or_default
    # With weights of one magnitude biprop would equal edge-popup.
    normal = values["method"] in ("dense", "biprop")
    values["distribution"] = model.distribution or ("kaiming_normal" if normal else "signed_constant")
    if values["method"] == "dense":
        values |= {"k": 1.0, "selection": "layer", "scaled": False}
    elif values["method"] == "sampled":
        values |= {"k": None, "selection": "layer"}
    return ResolvedModel(**values)


def _resolve_data(data: DataConfig) -> ResolvedData:
    folder = data.name.startswith("folder:")
    values = _values(data)
    augmented = folder or data.name in ("cifar10", "cifar100")
    values["augment"] = data.augment or ("crop_flip" if augmented else "none")
    values["image_size"] = 224 if folder and data.image_size is None else data.image_size
    if data.name in DATASETS:
        values["image_size"] = None
    if data.protocol != "validation":
        values["validation"] = 0.1
    return ResolvedData(**values)


def _resolve_optim(optim: OptimConfig, model: ResolvedModel, train: TrainConfig) -> ResolvedOptim:
    values: dict[str, Any] = recipe(
        optim.optimizer, model.method, model.arch, batch_size=optim.batch_size, epochs=train.epochs
    )
    values |= {name: value for name, value in _values(optim).items() if value is not None}
    if values["optimizer"] == "adam":
        values["momentum"] = 0.0
    return ResolvedOptim(**values)


# The field that decides over another one, if it is not the method.
_CAUSES = {
    "model.method": "model.init_from",
    "data.image_size": "data.name",
    "data.validation": "data.protocol",
    "optim.momentum": "optim.optimizer",
}


def has(config: Resolved, name: str, value: Scalar) -> bool:
    """Whether the cell is trained with `value` in the field `name`. None stands for any value.

    So does the file or module of the user's own code: its name gets a version, but is never replaced.
    """
    part, _, leaf = name.rpartition(".")
    found = getattr(getattr(config, part) if part else config, leaf)
    if name in GROUPS and own.is_own(str(value)):
        return True
    if name in GROUPS:
        found = own.plain(found)
    if part == "seeds" and found is None:
        found = config.seed
    return value is None or bool(found == value)


def check_has(config: Resolved, name: str, value: Scalar) -> None:
    """Raise `UserError` if the cell is not trained with `value` in the field `name` (see `resolve`)."""
    if not has(config, name, value):
        flat = flatten(config)
        cause = _CAUSES.get(name, "model.method")
        instead = "" if flat[name] is None else f", where it is {flat[name]!r}"
        raise UserError(
            f"{name}: {value!r} has no effect with {cause} {flat[cause]!r}{instead}; leave out one of them"
        )


def _values(part: ModelConfig | DataConfig | OptimConfig) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in fields(part)}


def cell_id(config: CellConfig) -> str:
    """The id of the cell: 16 hex digits of a hash of the non-default fields of the resolved config."""
    return id_of(resolve(config))


def id_of(config: Resolved) -> str:
    """The `cell_id` of a config that is resolved."""
    relevant = _non_defaults(config.model, config.data, config.optim, config.train) | {
        name: value
        for name, value in (
            *((f"seeds.{purpose}", getattr(config.seeds, purpose)) for purpose in SEEDS),
            ("seed", config.seed or None),
        )
        if value is not None
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _non_defaults(
    model: ModelConfig, data: DataConfig, optim: OptimConfig, train: TrainConfig
) -> dict[str, Scalar]:
    """The fields that affect a result and are not at their default, without the seeds."""
    at_default = defaults()
    flat = flatten(CellConfig(model=model, data=data, optim=optim, train=train))
    return {
        name: value for name, value in flat.items() if value != at_default[name] and field_of(name).identity
    }


@functools.cache
def defaults() -> dict[str, Scalar]:
    """The values that do not count in the id of a cell."""
    return flatten(CellConfig()) | {"model.method": "edge_popup"}


def split_of(config: CellConfig) -> dict[str, Scalar]:
    """The fields that decide which training images are held out for validation, with their values."""
    data = config.data
    return {
        "data.protocol": data.protocol,
        "data.validation": data.validation,
        "data.subset": data.subset,
        "seeds.data": config.seed_of("data"),
    }


def same_data(config: CellConfig, other: CellConfig) -> bool:
    """Whether both name the same data set, in any version of the user's code."""
    return own.plain(config.data.name) == own.plain(other.data.name)


def short_name(config: Resolved) -> str:
    """A name for people: ``conv4 k=0.5 signed_constant seed=2``."""
    model = config.model
    words = [model.arch.removeprefix("torchvision/")]
    if model.width != 1:
        words.append(f"width={model.width:g}")
    if model.method != "edge_popup":
        words.append(model.method)
    if model.method == "dense":
        words.append(config.optim.optimizer)
    elif model.k is not None:
        words.append(f"k={model.k:g}")
    if model.init_mask == "shuffled":
        words.append("shuffled")
    if model.scaled:
        words.append("scaled")
    return " ".join([*words, model.distribution, f"seed={config.seed}"])
