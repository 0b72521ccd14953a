"""The kind of a cell. Cells of one kind take about the same time, whatever their seed and k."""

from operator import attrgetter

from hiddenweights.identity import Resolved

KIND = (
    "model.arch", "model.width", "model.method", "data.name", "data.subset", "data.image_size",
    "optim.batch_size", "train.epochs", "train.precision",
)  # fmt: skip
Kind = tuple[object, ...]

_fields = attrgetter(*KIND)


def kind(config: Resolved) -> Kind:
    """The values of the fields `KIND`."""
    found: Kind = _fields(config)
    return found
