"""Decode images and cut them to squares, in this process or in separate ones.

The cut is a function of (seed, epoch, image) alone, so the number of processes does not change it.
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hiddenweights.errors import UserError
from hiddenweights.images.folder import ImageFiles
from hiddenweights.masking.rng import stream, uniforms

Cut = Literal["square", "centre", "random"]

CORRUPT_LIMIT = 0.001  # fraction of the images; ImageNet has no corrupt ones
SAMPLE = 32  # images of each part that are decoded before training, as a test
TRIES = 10
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


class Corrupt(ValueError):
    """A file was read but is not an intact image."""


# --- one image ---------------------------------------------------------------------------------------------


def read_image(path: str) -> Tensor:
    """The image as uint8 (3, height, width). Grey and CMYK images are converted; transparency is dropped.

    Raises `Corrupt` for content that is not an intact image, and OSError for a file that cannot be read.
    """
    from torchcodec.decoders import decode_image  # here, because only image folders need it

    data = np.fromfile(path, np.uint8)
    try:
        image: Tensor = decode_image(torch.from_numpy(data), mode="RGB")
    except (RuntimeError, ValueError):
        return _read_other_format(data.tobytes())
    image = image if image.ndim == 3 else image[0]  # the first frame of an animation
    return image if image.dtype == torch.uint8 else (image.to(torch.int32) // 257).to(torch.uint8)


def _read_other_format(data: bytes) -> Tensor:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = pil_pixels(image)
    except Exception as error:  # Pillow raises many types
        raise Corrupt(str(error) or type(error).__name__) from None
    return (
        torch.from_numpy(pixels).permute(2, 0, 1)
        if pixels.ndim == 3
        else torch.from_numpy(pixels).expand(3, -1, -1)
    )


def pil_pixels(image: Any) -> NDArray[np.uint8]:
    """The pixels of a PIL image, (height, width) if it is grey, else (height, width, 3).

    Pillow's own conversion would cut values of 16 bits off at 255. Raises `ValueError` for modes whose values
    have no fixed range (32-bit integers and floats).
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"an image of mode {image.mode} has no fixed range of values")
    if image.mode.startswith("I;16"):
        return (np.array(image) // 257).astype(np.uint8)
    grey = image.mode in ("1", "L")
    return np.array(image if image.mode in ("L", "RGB") else image.convert("L" if grey else "RGB"))


def cut(image: Tensor, size: int, how: Cut, numbers: NDArray[np.float32] | None = None) -> Tensor:
    """A square of side `size` of `image`, both uint8 (3, height, width).

    ``square``: the shorter side is resized to `size`, then the centre is cut. ``centre``: the same, but the
    shorter side is resized to 8/7 of `size` (256 for 224), as the paper does for testing. ``random``: as the
    paper does for training, a random part of the image (see `random_crop`) is resized, and mirrored half of
    the time. Its random numbers are `numbers`, 4 * TRIES + 1 values in [0, 1).
    """
    if how == "random":
        assert numbers is not None
        top, left, height, width = random_crop(image.shape[1], image.shape[2], numbers)
        part = _resize(image[:, top : top + height, left : left + width], size, size)
        return part.flip(2) if numbers[-1] < 0.5 else part
    shorter = round(size * 256 / 224) if how == "centre" else size
    height, width = image.shape[1:]
    least = min(height, width)
    resized = _resize(image, shorter * height // least, shorter * width // least)
    top, left = (round((side - size) / 2) for side in resized.shape[1:])
    return resized[:, top : top + size, left : left + size]


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize with antialias, like torchvision's and Pillow's.

    It does not use torchvision's module, because importing that takes a second.
    """
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def random_crop(height: int, width: int, numbers: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of an image, drawn like torchvision's RandomResizedCrop.

    The area is uniform in `AREA` of the image, the aspect ratio log-uniform in `ASPECT`, the position
    uniform. The first of `TRIES` that fits is taken. If none fits: the largest centred part with an allowed
    ratio.
    """
    low, high = (math.log(ratio) for ratio in ASPECT)
    for size, ratio, top, left in numbers[: 4 * TRIES].astype(float).reshape(TRIES, 4):
        area = height * width * (AREA[0] + size * (AREA[1] - AREA[0]))
        aspect = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    h, w = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


# --- a piece of work for a decoding process ----------------------------------------------------------------


class Request(NamedTuple):
    """Images to decode: one batch."""

    paths: list[Any]
    """The arguments for the decoder's `read`, for example paths of files."""
    size: int
    how: Cut
    seed: int
    epoch: int
    images: list[int]
    """The number of each image in its part of the data set. Its random numbers depend on it."""


Decoded = tuple[Tensor, list[tuple[int, str]]]
"""uint8 (n, 3, size, size), and of those that are corrupt the place and the reason."""

Read = Callable[[Any], Tensor]


def decode(request: Request, read: Read = read_image) -> Decoded:
    """Read and cut the images of `request`. Raises OSError for a file that cannot be read.

    Number of channels and dtype are those that `read` gives.
    """
    pixels = torch.zeros(0, 3, request.size, request.size, dtype=torch.uint8)
    corrupt = []
    for place in range(len(request.paths)):
        try:
            image = decode_one(request, place, read=read)
        except Corrupt as error:
            corrupt.append((place, str(error)))
            continue
        if not len(pixels):
            pixels = image.new_zeros(len(request.paths), *image.shape)
        pixels[place] = image
    return pixels if len(pixels) else pixels.new_zeros(len(request.paths), *pixels.shape[1:]), corrupt


def decode_one(request: Request, place: int, path: Any = None, read: Read = read_image) -> Tensor:
    """Image number `place` of `request`, uint8 (3, size, size); `path`: another image in its stead."""
    numbers = None
    if request.how == "random":
        source = stream(request.seed, "augment", request.epoch, request.images[place])
        numbers = uniforms(source, 4 * TRIES + 1)
    image = read(request.paths[place] if path is None else path)
    return cut(image, request.size, request.how, numbers)


class _Decode(torch.utils.data.Dataset[Decoded | UserError]):
    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, request: Request) -> Decoded | UserError:
        try:
            return decode(request, self.read)
        except UserError as error:  # torch would make its message a traceback of many lines
            return error


def _as_it_is(decoded: Any) -> Any:
    return decoded


def default_loaders(ranks: int) -> int:
    """The number of decoding processes per training process: the cores that `ranks` processes leave."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, cores // ranks - 1)


class Decoder:
    """Processes that decode requests. They start with the first request and live until `close`.

    `processes` = 0 decodes in this process. Only one iteration can run at a time.
    """

    def __init__(self, processes: int, *, pinned: bool = False, read: Read = read_image) -> None:
        """`pinned`: store results in page-locked memory, from which a GPU copies asynchronously.

        `read` makes an image, uint8 (channels, height, width), of an entry of `Request.paths`. If it is not
        `read_image`, it may be code that only a fork of this process can import.
        """
        self.read = read
        fork = processes and read is not read_image
        self._requests: Iterable[Request] = ()
        self._loader: DataLoader[Decoded | UserError] | None = DataLoader(
            _Decode(read),
            sampler=self,  # any iterable works
            batch_size=None,
            num_workers=processes,
            persistent_workers=processes > 0,
            multiprocessing_context="fork" if fork else None,
            pin_memory=pinned,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else it would use torch's generator, which the network may use
        )

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def close(self) -> None:
        """End the processes."""
        self._loader = None  # they end with it

    def __call__(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        """The decoded requests in order. The next ones are decoded while one is used.

        Raises `UserError` as `read` does, OSError if a process has died, and what else `read` raises with the
        traceback in its message.
        """
        assert self._loader is not None, "closed"
        self._requests = requests
        try:
            for decoded in self._loader:
                if isinstance(decoded, UserError):
                    raise decoded
                yield decoded
        except RuntimeError as error:
            if str(error).startswith("DataLoader worker (pid"):  # killed, probably for lack of memory
                raise OSError(f"a process that decodes images has died: {error}") from error
            raise


# --- corrupt files -----------------------------------------------------------------------------------------


def check_corrupt(corrupt: Mapping[str, str], images: int, field: str = "data.root") -> None:
    """Raise `UserError` if more than the fraction `CORRUPT_LIMIT` of `images` is `corrupt` (path: reason).

    `field`: the field that the images follow from.
    """
    if len(corrupt) > CORRUPT_LIMIT * images:
        first = "; ".join(f"{path}: {reason}" for path, reason in [*corrupt.items()][:3])
        raise UserError(
            f"{field}: {len(corrupt)} of {images} images do not read, above {CORRUPT_LIMIT:.1%}: {first}"
        )


def try_sample(images: ImageFiles) -> None:
    """Decode `SAMPLE` evenly spaced images. Raises `UserError` if too many of them are corrupt."""
    corrupt = {}
    for index in np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int)).tolist():
        try:
            read_image(images.path(index))
        except (Corrupt, OSError) as error:
            corrupt[images.path(index)] = str(error)
    check_corrupt(corrupt, len(images))
