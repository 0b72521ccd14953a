"""Data sets as uint8 tensors, seeded disjoint splits, and batches that are functions of (seed, epoch).

A split is stored on the device; a batch is one gather, crop, flip and normalisation there. Only image folders
remain files, which are decoded during training.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hiddenweights import own
from hiddenweights.config import DataConfig
from hiddenweights.errors import UserError
from hiddenweights.images.decoding import try_sample
from hiddenweights.images.download import mark_of, read_or_download
from hiddenweights.images.folder import ImageFiles, image_folder
from hiddenweights.images.mapped import MapImages, content
from hiddenweights.images.sources import hugging_face_parts, own_parts, torchvision_parts
from hiddenweights.masking.rng import halves, permutation, signs, stream

PADDING = 4
GPU_BLOCK = 2**23  # numbers, 32 MB in float32: 21 batches of 128 images of CIFAR-10


@dataclass(frozen=True)
class Images:
    """Raw images, uint8 (n, channels, height, width), and their labels, int64 (n,).

    Images that were given as floats are float32, with 255 as the end of their range.
    The memory format is `torch.channels_last`, the fastest for convolutions and for making batches.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def image_size(self) -> int:
        return self.pixels.shape[2]

    def take(self, index: Tensor) -> "Images":
        """The images at `index`, int64 (m,)."""
        pixels = self.pixels.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
        return Images(pixels, self.labels[index])

    def to(self, device: torch.device) -> "Images":
        """The same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))


Part = Images | ImageFiles | MapImages


@dataclass(frozen=True)
class Dataset:
    """A data set: training and test images, and the constants that normalise them.

    `mean` and `std` have one value per channel, in units of the full range [0, 1].
    """

    train: Part
    test: Part
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sample: tuple[Tensor, ...] = ()
    """Pixels of a sample of the training and the test images if these are `MapImages`."""

    @functools.cached_property
    def digest(self) -> str:
        """128 bits of BLAKE2b, as hex, over all that training reads: pixels, labels, and the constants above.

        Of image folders it covers the names of the files instead of their pixels, and of `MapImages` a sample
        of them: reading all would take too long.
        """
        whole = hashlib.blake2b(repr((self.classes, self.mean, self.std)).encode(), digest_size=16)
        for part in (self.train, self.test):
            whole.update(part.labels.numpy().tobytes())
            if isinstance(part, ImageFiles):
                whole.update("\0".join(map(os.fsdecode, part.names)).encode("utf-8", "surrogateescape"))
            elif isinstance(part, Images):
                whole.update(part.pixels.permute(0, 2, 3, 1).contiguous().numpy().data)
        for pixels in self.sample:
            whole.update(pixels.numpy().tobytes())
        return whole.hexdigest()

    @property
    def channels(self) -> int:
        return self.train.channels

    @property
    def image_size(self) -> int:
        return self.train.image_size


@dataclass(frozen=True)
class Splits:
    """Disjoint images for training, validation (None under the paper's protocol) and testing."""

    train: Part
    validation: Part | None
    test: Part


# --- loading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The torchvision class of a data set, the folder that exists if it is present, and its statistics."""

    cls: str
    folder: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_SOURCES = {
    "mnist": _Source("MNIST", "MNIST/raw", 10, (0.1307,), (0.3081,)),
    "fashion_mnist": _Source("FashionMNIST", "FashionMNIST/raw", 10, (0.2860,), (0.3530,)),
    "cifar10": _Source("CIFAR10", "cifar-10-batches-py", 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": _Source("CIFAR100", "cifar-100-python", 100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_dataset(config: DataConfig, download: bool = True) -> Dataset:
    """The data set of `config`, on the CPU. A second call for the same files does not read them again.

    torchvision downloads missing data if there is a network, and only if `download`; data that is present is
    never downloaded. Processes that share the folder wait for the one that downloads. Raises `UserError` if
    the data is missing and is not downloaded, or cannot be read.
    """
    return _load(config.name, config.root, config.image_size, config.augment == "resized_crop_flip", download)


@functools.lru_cache(maxsize=2)
def _load(name: str, root: str, image_size: int | None, random_crop: bool, download: bool = True) -> Dataset:
    if name == "digits":
        return _digits()
    if name.startswith("folder:"):
        return _folder(Path(root), image_size or 224, random_crop)
    if name in _SOURCES:
        return _torchvision(name, Path(root), download)
    return _mapped(name, Path(root), image_size, download)


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels. A fixed fifth of them is the test set."""
    # Its file is read directly, because importing `load_digits` takes a second in every process.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels = np.rint(table[:, :64].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = Images(torch.from_numpy(pixels), torch.from_numpy(table[:, 64].astype(np.int64)))
    order = torch.from_numpy(permutation(stream(0, "digits test set"), len(images)))
    n_test = len(images) // 5
    return Dataset(images.take(order[n_test:]), images.take(order[:n_test]), 10, (0.305,), (0.376,))


def _torchvision(name: str, root: Path, download: bool) -> Dataset:
    source, mark = _SOURCES[name], mark_of(root, name)
    folder, missing = root / source.folder, f"no {name} in {root}"
    if not download and (mark.exists() or not folder.is_dir()):
        raise UserError(f"data.root: {missing}")

    def read(download: bool) -> Dataset:
        trouble = f"{missing}, no download" if download else f"{folder} does not read"
        return _read(source, root, trouble, download)

    try:
        return read_or_download(folder, mark, read)
    except OSError as error:
        raise UserError(f"data.root: {missing}, no download: {error}") from error


def _read(source: _Source, root: Path, trouble: str, download: bool) -> Dataset:
    """The data set as torchvision reads it. Raises `UserError` that begins with `trouble` if that fails."""
    from torchvision import datasets

    try:
        train, test = (
            getattr(datasets, source.cls)(root=str(root), train=part, download=download)
            for part in (True, False)
        )
        images = [_from_arrays(part.data, part.targets) for part in (train, test)]
    except Exception as error:  # torchvision raises many types
        raise UserError(f"data.root: {trouble}: {'; '.join(str(error).splitlines())}") from error
    return Dataset(images[0], images[1], source.classes, source.mean, source.std)


def _from_arrays(data: Any, targets: Any) -> Images:
    pixels = torch.as_tensor(data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Images(pixels, torch.as_tensor(targets, dtype=torch.int64))


def _folder(root: Path, image_size: int, random_crop: bool) -> Dataset:
    train, test, classes = image_folder(root, image_size, random_crop)
    for part in (train, test):
        try_sample(part)
    return Dataset(train, test, classes, *_IMAGENET)


def _mapped(name: str, root: Path, image_size: int | None, download: bool) -> Dataset:
    kind, _, rest = name.partition("/" if name.startswith("torchvision/") else ":")
    if kind == "torchvision":
        parts: Any = torchvision_parts(rest, root, download)
    elif kind == "hf":
        parts = hugging_face_parts(rest, root, download)
    else:
        parts = own_parts(name, root)
    found = content(parts, image_size, own.plain(name))
    train, test = (
        images
        if isinstance(images, MapImages)
        else Images(images.contiguous(memory_format=torch.channels_last), labels)
        for images, labels in zip(found.images, found.labels, strict=True)
    )
    return Dataset(train, test, found.classes, found.mean, found.std, found.sample)


# --- splits ------------------------------------------------------------------------------------------------


def split(dataset: Dataset, config: DataConfig, seed: int) -> Splits:
    """Disjoint training, validation and test images. The images held out are a function of `seed`.

    Under the paper's protocol all training images are used for training, and there is no validation split.
    Raises `UserError` if `data.subset` is larger than the number of training images, or if there are too few
    to hold one out.
    """
    n = len(dataset.train)
    if config.subset is not None and config.subset > n:
        raise UserError(f"data.subset: {config.subset} is more than the {n} training images of {config.name}")
    order = torch.from_numpy(permutation(stream(seed, "split"), n))[: config.subset]
    if config.protocol == "paper":
        return Splits(dataset.train.take(order.sort().values), None, dataset.test)
    if len(order) < 2:
        raise UserError("data.protocol: 'validation' needs 2 training images, of which it holds out one")
    held_out = min(max(1, round(config.validation * len(order))), len(order) - 1)
    return Splits(
        dataset.train.take(order[held_out:].sort().values),
        dataset.train.take(order[:held_out].sort().values),
        dataset.test,
    )


# --- batches -----------------------------------------------------------------------------------------------


def crop_flip(pixels: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int = PADDING) -> Tensor:
    """Random crops and flips for given random numbers, bit-identical to torchvision's.

    Each image of `pixels` (n, c, h, w), any dtype, is padded with `padding` zeros on each side. (The zeros
    are raw pixels, as torchvision pads before it normalises.) It is cut to h x w at row `top` and column
    `left` (int64 (n,), in [0, 2 * padding]), then mirrored if `flip` (bool (n,)) is set. Returns (n, c, h,
    w).
    """
    n, c, h, w = pixels.shape
    if not n:  # the empty share of a process in a small last batch has no window to view
        return pixels
    columns, rows = w + 2 * padding, h + 2 * padding
    images = pixels.permute(0, 2, 3, 1)
    both = torch.cat((images, images.flip(2))).reshape(2 * n, h, w * c)
    padded = F.pad(both, (padding * c, padding * c, padding, padding))
    # A view of every h x w window, indexed by its first pixel. The mirror image of a crop is a crop of the
    # mirrored image, so one gather of windows crops and flips. It is 10 times as fast as gathering pixels.
    starts = 2 * n * rows * columns - (h - 1) * columns - w + 1
    windows = padded.as_strided((starts, h, w * c), (c, columns * c, 1))
    image = torch.arange(n, device=pixels.device) + n * flip
    start = (image * rows + top) * columns + torch.where(flip, 2 * padding - left, left)
    return windows.index_select(0, start).view(n, h, w, c).permute(0, 3, 1, 2)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 or float32 (n, c, h, w) to float32: (pixel / 255 - mean) / std per channel, as in torchvision.

    The result is channels_last in memory.
    """
    n, c, h, w = pixels.shape
    rows = pixels.permute(0, 2, 3, 1).reshape(n, h, w * c)
    scaled = rows.div(255).sub_(_row(mean, w, pixels.device)).div_(_row(std, w, pixels.device))
    return scaled.view(n, h, w, c).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """One value per channel, repeated for a row of pixels: (width * channels,)."""
    return torch.tensor(values, device=device).repeat(width)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n images in an epoch, int64 (n,), as a function of (seed, epoch)."""
    return torch.from_numpy(permutation(stream(seed, "order", epoch), n))


def shares(order: Tensor, size: int, rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
    """The share of process `rank` of `ranks` in each batch of `size` of the images `order`.

    The shares of a batch differ in size by at most one image. If a batch has fewer than 2 * ranks images, the
    last processes get an empty share, because BatchNorm has no variance for a single image. For the same
    reason a last batch of a single image is left out.
    """
    n = len(order)
    for start in range(0, n, size):
        batch = order[start : start + size]
        if len(batch) == 1 < min(n, size):
            return
        parts = batch.tensor_split(min(ranks, max(1, len(batch) // 2)))
        yield parts[rank] if rank < len(parts) else batch[:0]


@dataclass(frozen=True)
class Batches:
    """Normalised batches of one split, on the device of its images.

    If several processes train together, each gets its share of every batch.
    """

    images: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rank: int = 0
    ranks: int = 1

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in stored order: float32 (b, c, h, w), int64 (b,); b = `size` but for the last.

        If several processes evaluate together, each gets some of these batches.
        """
        for start in range(self.rank * size, len(self.images), self.ranks * size):
            part = slice(start, start + size)
            yield normalise(self.images.pixels[part], self.mean, self.std), self.images.labels[part]

    def shuffled(self, size: int, *, seed: int, epoch: int, augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once. The order depends on (seed, epoch), the augmentation on (seed, epoch, image).

        See `shares` for the last batch, and for several processes.
        """
        n, device = len(self.images), self.images.pixels.device
        crop = crop_offsets(n, seed, epoch, device) if augment else None
        parts = shares(epoch_order(n, seed, epoch).to(device), size, self.rank, self.ranks)
        at_once = batches_at_once(size * self.images.pixels[0].numel(), device)
        while block := [*islice(parts, at_once)]:
            index = torch.cat(block)
            images = self.images.take(index)
            pixels = images.pixels
            if crop is not None:
                top, left, flip = crop
                pixels = crop_flip(pixels, top[index], left[index], flip[index])
            lengths = [len(part) for part in block]
            scaled = normalise(pixels, self.mean, self.std).split(lengths)
            yield from zip(scaled, images.labels.split(lengths), strict=True)


def batches_at_once(numbers: int, device: torch.device) -> int:
    """How many batches of this many numbers are made at once.

    On a GPU several, because it takes longer to start the kernels than to run them on one batch.
    """
    return max(1, GPU_BLOCK // numbers) if device.type == "cuda" else 1


def crop_offsets(n: int, seed: int, epoch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(top, left, flip) of every image in this epoch, each (n,)."""
    source = stream(seed, "augment", epoch)
    offsets = (halves(source, 2 * n).astype(np.uint64) * np.uint64(2 * PADDING + 1)) >> np.uint64(32)
    top, left = torch.from_numpy(offsets.astype(np.int64)).view(2, n).to(device)
    flip = torch.from_numpy(signs(source, n) < 0).to(device)
    return top, left, flip
