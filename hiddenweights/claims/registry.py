"""Claims by name: those of the papers, those of installed packages, and the user's own."""

import re
from collections.abc import Sequence
from typing import Any

from hiddenweights import own
from hiddenweights.claims.contrasts import Claim
from hiddenweights.claims.papers import ramanujan2020
from hiddenweights.errors import UserError, choices_error

CLAIMS: tuple[Claim, ...] = (*ramanujan2020.CLAIMS,)

_NAME = re.compile("[A-Za-z0-9_-]+")  # it becomes part of a file's name


def registered() -> list[Claim]:
    """The claims of this package, and those under the entry points ``hiddenweights.claims``.

    An entry point is a `Claim` or a sequence of them. Raises `UserError` for anything else.
    """
    found = {claim.name: claim for claim in CLAIMS}
    for name, value in own.registered("claims").items():
        for claim in _claims(value, f"claims: {name}"):
            found.setdefault(claim.name, claim)
    return [*found.values()]


def find(name: str) -> Claim:
    """The claim `name`: a registered one, or ``FILE.py:NAME`` or ``module:NAME`` of the user.

    Raises `UserError` with the choices if there is none.
    """
    if own.is_own(name):
        loaded = _claims(own.load(name, "claim"), f"claim: {name}")
        if len(loaded) != 1:
            raise UserError(f"claim: {name} is {len(loaded)} claims; name one of them")
        return loaded[0]
    known = {claim.name: claim for claim in registered()}
    if name not in known:
        raise choices_error("claim", name, (*known, "FILE.py:NAME"))
    return known[name]


def _claims(value: Any, where: str) -> Sequence[Claim]:
    claims = [value] if isinstance(value, Claim) else value
    if not isinstance(claims, list | tuple) or not all(isinstance(claim, Claim) for claim in claims):
        raise UserError(f"{where} is a {type(value).__name__}, not a Claim")
    for claim in claims:
        if not _NAME.fullmatch(claim.name):
            raise UserError(f"{where}: the name {claim.name!r} must be of letters, digits, - and _")
    return claims
