"""The width multiplier."""

from hiddenweights.errors import UserError


def scaled_channels(n: int, width: float) -> int:
    """int(n * width): the number of channels at this width of a layer that has n at width 1.

    Raises `UserError` if that is zero.
    """
    scaled = int(n * width)
    if scaled < 1:
        raise UserError(f"model.width: {width!r} leaves none of the {n} channels of a layer")
    return scaled
