"""Conversions of a config: a flat mapping of dotted fields, nested plain dicts, and values from text."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, get_type_hints

from hiddenweights import own
from hiddenweights.config import CellConfig, Scalar, own_code
from hiddenweights.errors import UserError, choices_error
from hiddenweights.fields import field_types


class Field(NamedTuple):
    """A leaf field: its allowed types, its choices, and whether it is part of the cell's id."""

    types: tuple[type, ...]
    choices: tuple[str, ...]
    identity: bool


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

    Raises `UserError` for a field that does not exist. It lists those that do.
    """
    base = base or CellConfig()
    parts: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in flat.items():
        field_of(name)
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
    """The inverse of `to_dict`. Missing fields take their defaults.

    Raises `UserError` for an unknown field, and for user code without a version: that comes from no cell.
    """
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{leaf}": inner for leaf, inner in value.items()})
        else:
            flat[name] = value
    config = unflatten(flat)
    for name, text in own_code(config).items():
        if not own.is_versioned(text):
            raise UserError(f"{name}: {text!r} is user code without a version")
    return config


def parse_value(name: str, text: str) -> Scalar:
    """The value of field `name` that `text` from a command line stands for ("none": use the recipe).

    Raises `UserError` if the field does not exist or the text does not fit its type.
    """
    kinds = field_of(name).types
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


def parse_conditions(texts: Sequence[str]) -> dict[str, tuple[Scalar, ...]]:
    """``["model.k=0.3,0.5"]`` of ``--where`` as ``{"model.k": (0.3, 0.5)}``: what a field may be.

    A repeated field may have any of its values. Raises `UserError` as `parse_value` does, and without values.
    """
    conditions: dict[str, tuple[Scalar, ...]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        if not listed.strip():
            raise UserError(f"--where {text!r}: must be FIELD=VALUE or FIELD=VALUE,VALUE")
        values = tuple(parse_value(name, value.strip()) for value in listed.split(","))
        conditions[name] = conditions.get(name, ()) + values
    return conditions


def field_of(name: str) -> Field:
    """The field named `name`. Raises `UserError` with the choices if there is none."""
    known = _fields()
    if name not in known:
        raise choices_error("field", name, known)
    return known[name]


@functools.cache
def _fields() -> dict[str, Field]:
    """Every leaf field by its dotted name."""
    found: dict[str, Field] = {}
    for f in fields(CellConfig):
        if (part := get_type_hints(CellConfig)[f.name]) is not int:
            for leaf in fields(part):
                types_, choices = field_types(part)[leaf.name]
                found[f"{f.name}.{leaf.name}"] = Field(types_, choices, leaf.metadata.get("identity", True))
        else:
            found[f.name] = Field(*field_types(CellConfig)[f.name], identity=True)
    return found
