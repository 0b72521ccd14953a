"""Data sets that come as map-style datasets or as tensors: torchvision's, Hugging Face's and the user's own.

The number of classes, channels and pixels, and the mean and standard deviation of the training images, are
computed from the images and labels.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiddenweights.errors import UserError
from hiddenweights.images.decoding import Corrupt, cut, pil_pixels

# In bytes: pixels of training and test images together. Larger map-style datasets are read during training.
IN_MEMORY = 2 * 2**30
SAMPLE = 256  # images per part of such a data set that are read before training
PARTS = ("training", "test")

Given = Mapping[str, Any]
"""The values that the user's function may give: `classes`, `mean`, `std` (per channel, in [0, 1])."""


@dataclass(frozen=True)
class MapImages:
    """Images of a map-style dataset that are read when a batch is made, and their labels, int64 (n,)."""

    sources: tuple[Any, Any]
    """The datasets of the training and of the test images."""
    part: int
    """The index of these images' dataset in `sources`."""
    index: Tensor
    """The index of each image in its dataset, int64 (n,)."""
    labels: Tensor
    channels: int
    image_size: int
    dtype: torch.dtype
    """uint8, or float32 for pixels that came as floats."""

    random_crop = False

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "MapImages":
        """The images at `index`, int64 (m,)."""
        return replace(self, index=self.index[index.cpu()], labels=self.labels[index])

    def to(self, device: torch.device) -> "MapImages":
        """The same images with their labels on `device`. Batches of them are put there as well."""
        return replace(self, labels=self.labels.to(device))

    def item(self, number: int) -> tuple[int, int]:
        """Part and index in it of image number `number`."""
        return self.part, int(self.index[number])

    def named(self, number: int) -> str:
        """Image number `number` for people."""
        return f"number {self.index[number]} of the {PARTS[self.part]} images"

    def read(self, item: tuple[int, int]) -> Tensor:
        """The image that `item` (part, index) names, (channels, height, width).

        Raises `Corrupt` if Pillow cannot decode it, `UserError` if it is unlike the others, and what else the
        dataset raises.
        """
        part, place = item
        try:
            return _alike(_pixels(self.sources[part][place][0]), self.channels, self.dtype)
        except (TypeError, ValueError) as error:
            raise UserError(f"data.name: the {PARTS[part]} images: number {place}: {error}") from error
        except (OSError, SyntaxError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of Pillow
                raise
            raise Corrupt(str(error) or type(error).__name__) from error


@dataclass(frozen=True)
class Content:
    """A data set. Images are uint8 or float32 (n, channels, side, side), or not read yet (`MapImages`)."""

    images: tuple[Any, Any]
    """Pixels, or `MapImages`, of the training and of the test images."""
    labels: tuple[Tensor, Tensor]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sample: tuple[Tensor, ...] = ()
    """Pixels of a sample of each part, if its images are not read yet."""


def content(parts: Any, side: int | None, name: str) -> Content:
    """The content of ``(train, test)`` or ``(train, test, given)``.

    Each part is a map-style dataset of (image, label), or a pair of tensors (images, labels). An image is a
    PIL image, a tensor (height, width) or (channels, height, width), or an array (height, width) or (height,
    width, channels). Its pixels are uint8, or floats in [0, 1]. `side`: cut them to squares of this side.

    Raises `UserError` that starts with ``data.name: NAME`` for anything else.
    """
    where = f"data.name: {name}"
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        raise UserError(f"{where}: returns {_kind(parts)}, not (train, test)")
    given = _given(parts[2], where) if len(parts) == 3 else {}
    read = [
        _Part(part, side, f"{where}: the {words} images") for part, words in zip(parts, PARTS, strict=False)
    ]
    train, test = read
    _check_alike(train, test, where)
    pixels: tuple[Any, Any]
    sample: tuple[Tensor, ...]
    if sum(part.bytes for part in read) > IN_MEMORY and all(part.mapped for part in read):
        sources = (train.source, test.source)
        labels = tuple(part.listed_labels() for part in read)
        sample = _coloured(*(part.sampled(own)[0] for part, own in zip(read, labels, strict=True)))
        channels, side = sample[0].shape[1:3]
        pixels = tuple(  # type: ignore[assignment]
            MapImages(sources, i, torch.arange(len(own)), own, channels, side, read[i].dtype)
            for i, own in enumerate(labels)
        )
    else:
        loaded = [part.loaded() for part in read]
        pixels, sample = _coloured(loaded[0][0], loaded[1][0]), ()
        labels = (loaded[0][1], loaded[1][1])
        channels = pixels[0].shape[1]
    _check_alike(train, test, where)  # now all images have been seen
    classes = int(given.get("classes", labels[0].max() + 1))
    for own, words in zip(labels, PARTS, strict=True):
        _check_labels(own, classes, f"{where}: the {words} images")
    mean, std = _statistics(sample[0] if sample else pixels[0])
    return Content(
        pixels, (labels[0], labels[1]), classes,
        _per_channel(given.get("mean", mean), channels, f"{where}: mean"),
        _per_channel(given.get("std", std), channels, f"{where}: std"), sample,
    )  # fmt: skip


class _Part:
    """The training or the test images as the user or the library gave them."""

    def __init__(self, source: Any, side: int | None, words: str) -> None:
        self.side, self.words = side, words
        self.mapped = not _is_pair(source)
        self.source = source
        if not self.mapped:
            images, self.labels = (_tensor(values, words) for values in source)
            if images.ndim == 4 and isinstance(source[0], np.ndarray):
                images = images.permute(0, 3, 1, 2)
            if len(images) != len(self.labels) or self.labels.ndim != 1:
                raise UserError(
                    f"{words}: {len(images)} images, but labels of shape {tuple(self.labels.shape)}"
                )
            self.images = images
        elif not (isinstance(source, Sized) and hasattr(source, "__getitem__")):
            raise UserError(f"{words}: {_kind(source)} is neither a map-style dataset nor (images, labels)")
        if not len(self):
            raise UserError(f"{words}: the data set has none")
        first = self._image(0)
        self.shape, self.dtype = tuple(first.shape), first.dtype
        if len(self.shape) != 3 or self.shape[1] != self.shape[2]:
            raise UserError(
                f"{words}: are {_by(self.shape)}, not square; data.image_size=SIDE cuts them to squares"
            )

    def __len__(self) -> int:
        return len(self.source) if self.mapped else len(self.images)

    @property
    def bytes(self) -> int:
        """The size of the pixels in memory."""
        return len(self) * int(np.prod(self.shape)) * self.dtype.itemsize

    def _item(self, place: int) -> tuple[Any, Any]:
        if not self.mapped:
            return self.images[place], self.labels[place]
        try:
            image, label = self.source[place][:2]
        except Exception as error:  # user code may raise anything
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{self.words}: number {place} is not (image, label): {line}") from error
        return image, label

    def _image(self, place: int) -> Tensor:
        return self._cut(self._item(place)[0], place)

    def _cut(self, image: Any, place: int) -> Tensor:
        try:
            pixels = _pixels(image)
            if self.mapped and place:  # like number 0, or if that is grey: like the first in colour
                if (self.shape[0], pixels.shape[0]) == (1, 3):
                    self.shape = (3, *self.shape[1:])
                pixels = _alike(pixels, self.shape[0], self.dtype)
        except (TypeError, ValueError, OSError, SyntaxError) as error:  # the last two of Pillow
            raise UserError(f"{self.words}: number {place}: {error}") from error
        return cut(pixels, self.side, "square") if self.side and pixels.ndim == 3 else pixels

    def loaded(self) -> tuple[Tensor, Tensor]:
        """All pixels (n, channels, side, side) and labels (n,)."""
        return self._stacked(range(len(self)))

    def sampled(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and labels of `SAMPLE` evenly spaced images. Their labels must be those of `labels`."""
        places = np.unique(np.linspace(0, len(self) - 1, SAMPLE).astype(int)).tolist()
        pixels, own = self._stacked(places)
        if not torch.equal(own, labels[places]):
            raise UserError(f"{self.words}: `targets` are not the labels of the items")
        return pixels, own

    def _stacked(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        if not self.mapped and not self.side:
            return _scaled(self.images, self.words).reshape(-1, *self.shape), _whole(self.labels, self.words)
        pixels = torch.empty((len(places), *self.shape), dtype=self.dtype)
        labels = []
        for row, place in enumerate(places):
            image, label = self._item(place)
            found = self._cut(image, place)
            if pixels.shape[1] != self.shape[0]:  # the first in colour
                pixels = pixels.repeat(1, 3, 1, 1)
            if tuple(found.shape) != self.shape:
                raise UserError(
                    f"{self.words}: number {place} is {_by(found.shape)}, number 0 {_by(self.shape)};"
                    " data.image_size=SIDE cuts them to one size"
                )
            pixels[row] = found
            labels.append(label)
        return pixels, _whole(labels, self.words)

    def listed_labels(self) -> Tensor:
        """The labels from the dataset's list of them, without reading the images."""
        samples = getattr(self.source, "_samples", None) or ()  # some of torchvision's: (file, label)
        for listed in (
            *(getattr(self.source, name, None) for name in ("targets", "labels", "_labels")),
            [sample[1] for sample in samples],
        ):
            if listed is not None and len(listed) == len(self):
                return _whole(listed, self.words)
        raise UserError(
            f"{self.words}: take {self.bytes / 2**30:.1f} GiB and are therefore read during training; the"
            " data set must have their labels as its attribute `targets`"
        )


def _check_alike(train: _Part, test: _Part, where: str) -> None:
    """Raise `UserError` unless both have one shape. (A grey map dataset gets three channels.)"""
    fewer, more = sorted((train, test), key=lambda part: part.shape[0])
    grows = fewer.mapped and (fewer.shape[0], more.shape[0]) == (1, 3)
    if fewer.shape[1:] != more.shape[1:] or not (fewer.shape[0] == more.shape[0] or grows):
        raise UserError(
            f"{where}: the training images are {_by(train.shape)} and the test images {_by(test.shape)}"
        )


def _is_pair(source: Any) -> bool:
    arrays = Tensor | np.ndarray
    return isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], arrays)


def _pixels(image: Any) -> Tensor:
    """The image as uint8 or float32 (channels, height, width); floats are multiplied by 255."""
    if not isinstance(image, Tensor | np.ndarray):
        if not hasattr(image, "convert"):
            raise TypeError(f"{_kind(image)} is no image: neither PIL's nor a tensor")
        image = pil_pixels(image)
    pixels = torch.as_tensor(image)
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and isinstance(image, np.ndarray):
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3:
        raise ValueError(f"{_by(pixels.shape)} is no (channels, height, width)")
    return _scaled(pixels, "it")


def _alike(pixels: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """`pixels` with as many channels: a grey image among coloured ones gets three equal ones.

    Raises ValueError if they cannot be like the others.
    """
    if pixels.shape[0] == 1 and channels == 3:
        pixels = pixels.expand(3, -1, -1)
    if pixels.shape[0] != channels:
        advice = "; give all of them as image.convert('RGB')" if (channels, len(pixels)) == (1, 3) else ""
        raise ValueError(f"it has {len(pixels)} channels, the others have {channels}{advice}")
    if pixels.dtype != dtype:
        raise ValueError(f"it is {pixels.dtype}, the others are {dtype}")
    return pixels


def _coloured(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both (n, channels, side, side). The grey one gets three equal channels if the other is coloured."""
    most = max(train.shape[1], test.shape[1])
    grown = [part if part.shape[1] == most else part.repeat(1, most, 1, 1) for part in (train, test)]
    return grown[0], grown[1]


def _scaled(pixels: Tensor, words: str) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise UserError(f"{words}: {pixels.dtype} is neither uint8 nor floats of the range [0, 1]")
    if not bool(torch.isfinite(pixels).all()):
        raise UserError(f"{words}: a pixel is not finite")
    return pixels.to(torch.float32) * 255


def _tensor(values: Any, words: str) -> Tensor:
    try:
        return torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{words}: {' '.join(str(error).split())}") from error


def _whole(labels: Any, words: str) -> Tensor:
    found = _tensor(labels, words)
    if found.is_floating_point() or found.is_complex() or found.ndim != 1:
        raise UserError(f"{words}: labels are {found.dtype} of shape {tuple(found.shape)}, not whole numbers")
    return found.to(torch.int64)


def _check_labels(labels: Tensor, classes: int, words: str) -> None:
    if classes < 2:
        raise UserError(f"{words}: have {classes} classes; at least 2 are needed")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"{words}: have labels from {low} to {high}, not 0 to {classes - 1}")


def _statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in units of the full range, rounded to 6 digits.

    Sums of uint8 are exact, so the result is the same on every machine. A constant channel has std 1.
    """
    n = pixels.numel() // pixels.shape[1]
    sums = torch.zeros(2, pixels.shape[1], dtype=torch.float64 if pixels.is_floating_point() else torch.int64)
    for rows in _chunks(pixels):
        wide = rows.to(sums.dtype).transpose(0, 1).flatten(1)
        sums += torch.stack([wide.sum(1), wide.square().sum(1)])
    first, second = ([value / n for value in row] for row in sums.tolist())
    spread = [max(0.0, square - mean**2) ** 0.5 for mean, square in zip(first, second, strict=True)]
    return (
        tuple(round(mean / 255, 6) for mean in first),
        tuple(round(sd / 255, 6) or 1.0 for sd in spread),
    )


def _chunks(pixels: Tensor) -> Iterator[Tensor]:
    yield from pixels.split(1024)


def _given(given: Any, where: str) -> Given:
    known = {"classes", "mean", "std"}
    if not isinstance(given, Mapping) or not given.keys() <= known:
        raise UserError(f"{where}: the third part must be a dict with any of {', '.join(sorted(known))}")
    if type(classes := given.get("classes", 0)) is not int:
        raise UserError(f"{where}: classes: {classes!r} is not a whole number")
    return given


def _per_channel(values: Any, channels: int, words: str) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if len(found) != channels or not np.isfinite(found).all() or (words.endswith("std") and min(found) <= 0):
        raise UserError(f"{words}: {values!r} is not one number for each of the {channels} channels")
    return found


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _kind(value: Any) -> str:
    return type(value).__name__
