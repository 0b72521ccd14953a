"""Checks of the config classes: types and choices, read from their annotations."""

import functools
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

from hiddenweights.errors import UserError, choices_error

# Marks a field that affects where or how fast a cell is computed, but not its result.
RUNTIME = {"identity": False}


def check(condition: bool, name: str, value: object, message: str) -> None:
    """Raise `UserError` about field `name` unless `condition` holds."""
    if not condition:
        raise UserError(f"{name}: {value!r} {message}")


def check_types(part: object, prefix: str) -> None:
    """Reject wrong types and choices, and convert an int in a float field to a float.

    The conversion keeps ids stable: ``width=1`` and ``width=1.0`` are the same cell.
    """
    leaves = field_types(type(part))  # type: ignore[arg-type]  # mypy takes no class as hashable
    for leaf, (kinds, choices) in leaves.items():
        value = getattr(part, leaf)
        # The common case is fast, because a plan may have 100,000 cells. Only NaN differs from itself.
        if value in choices if choices and value is not None else type(value) in kinds and value == value:
            continue
        if is_dataclass(value) and isinstance(value, kinds):
            continue
        name = f"{prefix}.{leaf}" if prefix else leaf
        if choices:
            raise choices_error(name, value, choices)
        if float in kinds and type(value) is int and abs(value) < 2**1000:
            object.__setattr__(part, leaf, float(value))
            continue
        expected = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
        raise UserError(f"{name}: {value!r} is not of type {expected}")


@functools.cache
def field_types(part: type) -> dict[str, tuple[tuple[type, ...], tuple[str, ...]]]:
    """For each field of a config class, its allowed types and, for a `Literal`, its choices."""
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
