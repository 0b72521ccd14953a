"""All figures by name, and the figures that do not belong to a paper."""

from collections.abc import Mapping

from hiddenweights.analysis import study
from hiddenweights.analysis.papers import ramanujan2020
from hiddenweights.analysis.specs import Spec, over_k
from hiddenweights.errors import choices_error

FIGURES: Mapping[str, Spec] = {
    spec.name: spec
    for spec in (
        over_k("quickstart", "Subnetworks of randomly weighted networks, handwritten digits"),
        *ramanujan2020.FIGURES,
        over_k("shallow", "Where it stops working: shallow networks"),
        *study.FIGURES,
    )
}

# The packages that have published numbers. A figure shows those of all of them.
PACKAGES = (ramanujan2020.__name__, study.__name__)


def find_spec(name: str) -> Spec:
    """The figure `name`, or a `UserError` that lists the figures."""
    if name not in FIGURES:
        raise choices_error("figure", name, FIGURES)
    return FIGURES[name]
