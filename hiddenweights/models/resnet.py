"""ResNets (He et al. 2016), the variant for small images."""

from torch import Tensor, nn

from hiddenweights.models.scale import scaled_channels


class Block(nn.Module):
    """A residual block: (batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""

    def __init__(self, body: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


def basic_block(inputs: int, planes: int, stride: int) -> tuple[Block, int]:
    """Two 3x3 convolutions; returns the block and its number of output channels."""
    body = nn.Sequential(
        nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        nn.Conv2d(planes, planes, 3, padding=1, bias=False),
        nn.BatchNorm2d(planes),
    )
    return Block(body, inputs, planes, stride), planes


def bottleneck(inputs: int, planes: int, stride: int) -> tuple[Block, int]:
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide; returns block and output channels."""
    body = nn.Sequential(
        nn.Conv2d(inputs, planes, 1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        nn.Conv2d(planes, 4 * planes, 1, bias=False),
        nn.BatchNorm2d(4 * planes),
    )
    return Block(body, inputs, 4 * planes, stride), 4 * planes


# Per depth: the block, and its number in each of the four stages.
RESNETS = {
    18: (basic_block, (2, 2, 2, 2)),
    34: (basic_block, (3, 4, 6, 3)),
    50: (bottleneck, (3, 4, 6, 3)),
    101: (bottleneck, (3, 4, 23, 3)),
}


def resnet(depth: int, channels: int, image_size: int, classes: int, width: float) -> nn.Module:
    """ResNet for small images: a 3x3 stem, no max pool, 1x1-convolution shortcuts, no bias at the end."""
    block, stages = RESNETS[depth]
    planes = scaled_channels(64, width)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, planes, 3, padding=1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
    ]
    for stage, count in enumerate(stages):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            layer, planes = block(planes, scaled_channels(64 << stage, width), stride)
            layers.append(layer)
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(planes, classes, bias=False)
    )
