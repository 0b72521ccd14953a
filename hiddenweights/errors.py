"""Errors that several packages use, above all the one for bad input. Its message says what to correct."""

import difflib
import re
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Bad input. The message is one line: the field, the value, and what is allowed.

    Command lines print it and exit with status 2. It is raised before anything costly starts.
    """


class RankDied(ConnectionError):
    """One of the processes that train a cell together has died. The cell can be resumed."""


class StoreAway(OSError):
    """The store was unreachable for longer than the time limit. Finished cells are in it."""


class Unreachable(OSError):
    """A request to the store failed, and may succeed if it is repeated."""


def choices_error(field: str, value: object, choices: Iterable[object]) -> UserError:
    """The error for a `value` that is not among `choices`. It suggests the nearest ones."""
    names = [str(choice) for choice in choices]
    near = " or ".join(map(repr, nearest(str(value), names)))
    hint = f" (did you mean {near}?)" if near else ""
    return UserError(f"{field}: unknown value {value!r}{hint}; choices: {', '.join(names)}")


def nearest(value: str, names: Sequence[str]) -> list[str]:
    """The names that `value` most likely stands for: mostly one, or none.

    ``k`` stands for ``model.k``, and ``conv3`` for ``conv2`` or ``conv4``, the next numbers.
    """
    word = value.replace("-", "_")
    if whole := [name for name in names if name.rpartition(".")[2].replace("-", "_") == word]:
        return whole
    if numbered := re.fullmatch(r"(.*\D)(\d+)", value):
        stem, number = numbered[1], int(numbered[2])
        others = {name: int(name.removeprefix(stem)) for name in names if _is_numbered(name, stem)}
        least = min((abs(other - number) for other in others.values()), default=0)
        if others:
            return [name for name, other in others.items() if abs(other - number) == least]
    if near := difflib.get_close_matches(value, names, n=1):
        return near
    last = {name.rpartition(".")[2]: name for name in names}
    return [last[near] for near in difflib.get_close_matches(value, last, n=1)]


def _is_numbered(name: str, stem: str) -> bool:
    return name.startswith(stem) and name.removeprefix(stem).isdecimal()


def shown(text: object, most: int = 300) -> str:
    """`text` from a file as one line that is safe on a terminal: escaped, and cut after `most` characters."""
    line = str(text)[: most + 1]
    safe = escaped(line)
    return safe if len(line) <= most else safe[:most] + "..."


def escaped(text: str) -> str:
    """`text` as one line without control characters, because these can write anywhere on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
