"""A workaround for a bug of torch in strided 1x1 convolutions of few channels."""

from torch import Tensor, nn


class Subsampled(nn.Conv2d):
    """A strided 1x1 convolution that drops rows and columns of its input first. The result is the same.

    With AVX2 (not AVX-512), torch 2.15's strided 1x1 convolution of fewer than 8 channels in the memory
    format channels_last writes outside its memory, which gives wrong numbers or ends the process.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


def subsample_first(network: nn.Module) -> None:
    """Turn every convolution of `network` that the bug affects into a `Subsampled` one."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_affected(module):
            module.__class__ = Subsampled


def _is_affected(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride != (1, 1)
        and convolution.padding in ((0, 0), "valid")
        and convolution.groups == 1
        and convolution.in_channels < 8
    )
