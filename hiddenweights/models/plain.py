"""Networks without convolutions. They have no biases, like all small networks of the paper."""

from torch import nn

from hiddenweights.errors import UserError
from hiddenweights.models.scale import scaled_channels


def linear(channels: int, image_size: int, classes: int, width: float) -> nn.Module:
    """Logistic regression: one matrix from pixels to classes."""
    if width != 1:
        raise UserError(f"model.width: {width!r}, but linear has no hidden layer to scale")
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes, bias=False))


def fc(channels: int, image_size: int, classes: int, width: float) -> nn.Module:
    """LeNet-300-100: two hidden layers of 300 and 100 (LeCun et al. 1998)."""
    first, second = scaled_channels(300, width), scaled_channels(100, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * image_size**2, first, bias=False),
        nn.ReLU(),
        nn.Linear(first, second, bias=False),
        nn.ReLU(),
        nn.Linear(second, classes, bias=False),
    )
