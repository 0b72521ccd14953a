"""Conv2, Conv4, Conv6 and Conv8: VGG-like networks scaled down for CIFAR-10 (paper, section 4)."""

from torch import nn

from hiddenweights.errors import UserError
from hiddenweights.models.scale import scaled_channels


def conv(depth: int, channels: int, image_size: int, classes: int, width: float) -> nn.Module:
    """`depth` 3x3 convolutions in pairs of 64, 128, 256, 512 channels, a 2x2 max pool after each pair.

    Then fully connected layers of 256, 256 and `classes`. ReLU throughout, no biases, no BatchNorm.
    """
    pairs = depth // 2
    side = image_size >> pairs
    if side < 1:
        raise UserError(
            f"model.arch: conv{depth} halves the image {pairs} times, too often for {image_size} pixels"
        )
    layers: list[nn.Module] = []
    previous = channels
    for pair in range(pairs):
        out = scaled_channels(64 << pair, width)
        layers += [
            nn.Conv2d(previous, out, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        previous = out
    hidden = scaled_channels(256, width)
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(previous * side**2, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, classes, bias=False),
    )
