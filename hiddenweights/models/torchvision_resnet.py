"""torchvision's ResNets at other widths."""

from typing import Any

from torch import nn
from torchvision.models import resnet as torchvision_resnets

from hiddenweights.errors import UserError
from hiddenweights.models.scale import scaled_channels

# The arguments of torchvision's constructors: block, stages, and the width of the bottlenecks.
TORCHVISION_RESNETS: dict[str, tuple[Any, list[int], dict[str, int]]] = {
    "resnet18": (torchvision_resnets.BasicBlock, [2, 2, 2, 2], {}),
    "resnet34": (torchvision_resnets.BasicBlock, [3, 4, 6, 3], {}),
    "resnet50": (torchvision_resnets.Bottleneck, [3, 4, 6, 3], {}),
    "resnet101": (torchvision_resnets.Bottleneck, [3, 4, 23, 3], {}),
    "resnet152": (torchvision_resnets.Bottleneck, [3, 8, 36, 3], {}),
    "wide_resnet50_2": (torchvision_resnets.Bottleneck, [3, 4, 6, 3], {"width_per_group": 128}),
    "wide_resnet101_2": (torchvision_resnets.Bottleneck, [3, 4, 23, 3], {"width_per_group": 128}),
}


def torchvision_resnet(name: str, classes: int, width: float) -> nn.Module:
    """torchvision's ResNet `name` with every channel count multiplied by `width`."""
    if name not in TORCHVISION_RESNETS:
        raise UserError(
            f"model.width: {width!r}, but of torchvision's networks only ResNets scale:"
            f" {', '.join(TORCHVISION_RESNETS)}"
        )
    block, stages, extra = TORCHVISION_RESNETS[name]

    class ScaledResNet(torchvision_resnets.ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            if planes == 64:  # the input of the first stage is the stem, replaced below
                self.inplanes = scaled_channels(64, width)
            stage: nn.Sequential = super()._make_layer(block, scaled_channels(planes, width), *args, **kwargs)
            return stage

    network = ScaledResNet(block, stages, num_classes=classes, **extra)
    stem = scaled_channels(64, width)
    network.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(stem)
    network.fc = nn.Linear(network.inplanes, classes)
    return network
