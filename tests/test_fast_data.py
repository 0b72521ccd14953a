"""The fast input pipeline gives, bit for bit, what torchvision's transforms give for the same offsets."""

import pytest
import torch
from torch import Tensor

from hiddenweights.images.dataset import Batches, Images, crop_flip, normalise

LAYOUTS = (torch.contiguous_format, torch.channels_last)
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def torchvisions_way(pixels: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """RandomCrop and RandomHorizontalFlip, image by image, with their draws given."""
    from torchvision.transforms import functional as V  # here: it takes 2 s

    h, w = pixels.shape[2:]
    images = []
    for image, t, x, mirrored in zip(pixels, top.tolist(), left.tolist(), flip.tolist(), strict=True):
        cropped = V.crop(V.pad(image, [padding]), t, x, h, w)
        images.append(V.hflip(cropped) if mirrored else cropped)
    return torch.stack(images)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (5, 1, 8, 8), (1, 3, 6, 11), (4, 2, 7, 5)])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip(layout: torch.memory_format, shape: tuple[int, ...], padding: int) -> None:
    n = shape[0]
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    top, left = torch.randint(0, 2 * padding + 1, (2, n))
    top[-1] = left[-1] = 2 * padding  # the last window of the last image, at the end of memory
    flip = torch.rand(n) < 0.5
    for mirrored in (flip, torch.ones_like(flip), torch.zeros_like(flip)):
        result = crop_flip(pixels.contiguous(memory_format=layout), top, left, mirrored, padding)
        assert result.dtype == torch.uint8
        assert torch.equal(result, torchvisions_way(pixels, top, left, mirrored, padding))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_normalisation_of_every_pixel_value(layout: torch.memory_format) -> None:
    from torchvision.transforms import functional as V

    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    expected = V.normalize(values.float().div(255), list(MEAN), list(STD))
    result = normalise(values.contiguous(memory_format=layout), MEAN, STD)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_batches_do_not_depend_on_the_layout_of_the_images() -> None:
    pixels, labels = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8), torch.arange(50)
    ours, theirs = (
        list(
            Batches(Images(pixels.contiguous(memory_format=layout), labels), MEAN, STD).shuffled(
                16, seed=1, epoch=2, augment=True
            )
        )
        for layout in LAYOUTS
    )
    for (images, order), (other_images, other_order) in zip(ours, theirs, strict=True):
        assert torch.equal(order, other_order)
        assert torch.equal(images, other_images)
