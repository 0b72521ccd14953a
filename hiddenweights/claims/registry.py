"""All claims, of every paper."""

from hiddenweights.claims.contrasts import Claim
from hiddenweights.claims.papers import ramanujan2020
from hiddenweights.errors import choices_error

CLAIMS: tuple[Claim, ...] = (*ramanujan2020.CLAIMS,)


def find(name: str) -> Claim:
    """The claim `name`. Raises `UserError` with the choices if there is none."""
    for claim in CLAIMS:
        if claim.name == name:
            return claim
    raise choices_error("claim", name, [claim.name for claim in CLAIMS])
