"""Batches of images that are decoded while the network trains."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hiddenweights.errors import escaped, shown
from hiddenweights.images.dataset import (
    Batches,
    Images,
    Part,
    crop_flip,
    crop_offsets,
    epoch_order,
    normalise,
    shares,
)
from hiddenweights.images.decoding import (
    Corrupt,
    Cut,
    Decoder,
    Read,
    Request,
    check_corrupt,
    decode_one,
    default_loaders,
    read_image,
)
from hiddenweights.images.folder import ImageFiles
from hiddenweights.images.mapped import MapImages

EVALUATION_BATCH = 250  # images in one piece of work; shared memory holds two pieces per process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedBatches:
    """Normalised batches of image files or of map datasets, on the device of their labels: see `Batches`.

    A corrupt image is named in a warning, and the next intact image of the part takes its place. Raises
    `UserError` if more than `CORRUPT_LIMIT` of a part are corrupt.
    """

    images: ImageFiles | MapImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoder: Decoder
    rank: int = 0
    ranks: int = 1
    corrupt: dict[str, str] = field(default_factory=dict)
    """The corrupt images of the last pass by name, with the reasons."""
    named: set[str] = field(default_factory=set)
    """The corrupt images that a warning has named."""

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Like `Batches.in_order`, but in smaller batches."""
        how: Cut = "centre" if self.images.random_crop else "square"
        order = torch.arange(len(self.images))
        pieces = order.split(min(size, EVALUATION_BATCH))[self.rank :: self.ranks]
        for pixels, _, labels in self._decoded(pieces, how, 0, 0):
            yield normalise(pixels, self.mean, self.std), labels

    def shuffled(self, size: int, *, seed: int, epoch: int, augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Like `Batches.shuffled`. The augmentation is a random crop of any size, if the images have it."""
        n, device = len(self.images), self.images.labels.device
        random = augment and self.images.random_crop
        offsets = crop_offsets(n, seed, epoch, device) if augment and not random else None
        how: Cut = "random" if random else "centre" if self.images.random_crop else "square"
        pieces = shares(epoch_order(n, seed, epoch), size, self.rank, self.ranks)
        for pixels, index, labels in self._decoded(pieces, how, seed, epoch):
            if offsets is not None:
                top, left, flip = offsets
                pixels = crop_flip(pixels, top[index], left[index], flip[index])
            yield normalise(pixels, self.mean, self.std), labels

    def _decoded(
        self, pieces: Iterable[Tensor], how: Cut, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pixels uint8 (b, 3, size, size), channels_last, numbers and labels of the images `pieces`."""
        self.corrupt.clear()
        files, device = self.images, self.images.labels.device
        pending: deque[Request] = deque()

        def requests() -> Iterator[Request]:
            for piece in pieces:
                numbers = piece.tolist()
                paths = [files.item(number) for number in numbers]
                pending.append(Request(paths, files.image_size, how, seed, epoch, numbers))
                yield pending[-1]

        for pixels, corrupt in self.decoder(requests()):
            request = pending.popleft()
            index = torch.tensor(request.images, dtype=torch.int64)
            shown = index.clone()
            for place, reason in corrupt:
                shown[place], pixels[place] = self._instead(request, place, reason)
            pixels = pixels.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            yield pixels, index.to(device), files.labels[shown.to(device)]

    def _instead(self, request: Request, place: int, reason: str) -> tuple[int, Tensor]:
        """Number and pixels of the image that takes the place of a corrupt one."""
        number = request.images[place]
        while True:
            self._note(number, reason)
            number = (number + 1) % len(self.images)
            try:
                return number, decode_one(request, place, self.images.item(number), self.decoder.read)
            except Corrupt as error:
                reason = str(error)

    def _note(self, number: int, reason: str) -> None:
        name = self.images.named(number)
        if name not in self.named:
            logger.warning(
                "%s is no intact image (%s); the next one takes its place", escaped(name), shown(reason)
            )
        self.named.add(name)
        self.corrupt[name] = reason
        field = "data.name" if isinstance(self.images, MapImages) else "data.root"
        check_corrupt(self.corrupt, len(self.images), field)


def read_of(images: Part) -> Read:
    """The function with which a `Decoder` reads these images."""
    return images.read if isinstance(images, MapImages) else read_image


def batches_of(
    images: Part,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    decoder: Decoder | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Batches | StreamedBatches:
    """Batches of `images` on their device; of process `rank` of `ranks`, its share of each.

    `decoder` decodes files; None: a new one, with as many processes as the machine has cores to spare.
    """
    if isinstance(images, Images):
        return Batches(images, mean, std, rank, ranks)
    return StreamedBatches(
        images, mean, std, decoder or Decoder(default_loaders(1), read=read_of(images)), rank, ranks
    )
