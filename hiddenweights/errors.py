"""Errors that several packages use, above all the one for bad input. Its message says what to correct."""

import difflib
from collections.abc import Iterable


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
    """The error for a `value` that is not among `choices`. It suggests the nearest choice."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"{field}: unknown value {value!r}{hint}; choices: {', '.join(names)}")


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
