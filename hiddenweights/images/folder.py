"""The images of a folder and their classes: image folders in general, and the layouts of ImageNet.

Only names are read here. The images are read during training.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiddenweights.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Common lists of the labels of a `val/` without class folders, in the order in which they are tried.
LABEL_LISTS = (
    "LOC_val_solution.csv",  # Kaggle: image, then wnid and boxes
    "val.txt",  # Caffe: file name and index of the class in the sorted wnids
    "val_annotations.txt",  # Tiny ImageNet: file name, wnid, box
    "synset_labels.txt",  # a wnid per line, in the order of the file names
    "imagenet_2012_validation_synset_labels.txt",
)
DEVKIT = "ILSVRC2012_devkit_t12/data"  # the original: one id per line, explained in meta.mat


@dataclass(frozen=True)
class ImageFiles:
    """Images that remain files until a batch is read, and their labels, int64 (n,)."""

    root: str
    names: NDArray[np.bytes_]
    """The path of each image below `root`, (n,)."""
    labels: Tensor
    image_size: int
    """Side in pixels of the squares that the images are cut to."""
    random_crop: bool
    """Whether they are cut as the paper cuts ImageNet's: see `decoding.cut`."""

    channels = 3

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "ImageFiles":
        """The images at `index`, int64 (m,)."""
        return replace(self, names=self.names[index.cpu().numpy()], labels=self.labels[index])

    def to(self, device: torch.device) -> "ImageFiles":
        """The same images with their labels on `device`; their batches will be there, too."""
        return replace(self, labels=self.labels.to(device))

    def path(self, index: int) -> str:
        """The file of image number `index`."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    item = named = path


def image_folder(root: Path, image_size: int, random_crop: bool) -> tuple[ImageFiles, ImageFiles, int]:
    """Training images, test images and number of classes of an image folder.

    Training images are in root/train/CLASS. Test images are in root/test/CLASS or root/val/CLASS, or directly
    in root/val together with one of `LABEL_LISTS` or ILSVRC's devkit in root or root/val. Classes are
    numbered in the order of their names; images are sorted by name.

    Raises `UserError` that names the missing part.
    """
    classes = _classes(root / "train")
    if len(classes) < 2:
        raise UserError(f"data.root: {root / 'train'} has {len(classes)} folders of images, one per class")
    train = _by_class(root, "train", classes)
    test = _test_images(root, classes)
    train_files, test_files = (
        ImageFiles(
            str(root), np.array([os.fsencode(name) for name, _ in images]),
            torch.tensor([label for _, label in images]), image_size, random_crop,
        )
        for images in (train, test)
    )  # fmt: skip
    return train_files, test_files, len(classes)


def _classes(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(f"data.root: {folder} is no folder of images by class: {error}") from error


def _by_class(root: Path, part: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    images = []
    for label, name in enumerate(classes):
        found = _images(root, root / part / name)
        if not found:
            raise UserError(f"data.root: {root / part / name} holds no image ({' '.join(SUFFIXES)})")
        images += [(file, label) for file in found]
    return images


def _images(root: Path, folder: Path) -> list[str]:
    """The paths below `root` of every image in `folder` and its subfolders, sorted."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        below = os.path.relpath(place, root)
        found += [os.path.join(below, name) for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(found)


def _test_images(root: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    # The test/ folders of ILSVRC and Tiny ImageNet have no classes: their labels were never published. (The
    # latter's has one folder, `images`.)
    folders = _classes(root / "test") if (root / "test").is_dir() else []
    labelled = not set(folders).isdisjoint(classes)
    part = "test" if labelled or (folders and not (root / "val").is_dir()) else "val"
    found = _classes(root / part) if (root / part).is_dir() else []
    if found == list(classes):
        return _by_class(root, part, classes)
    files = _images(root, root / part)
    if found and not set(found).isdisjoint(classes):
        raise UserError(f"data.root: {root}/train and {root}/{part} have different classes")
    if not files:
        raise UserError(
            f"data.root: {root} has no test images: neither test/CLASS, val/CLASS nor images in val/"
        )
    labels = _listed_labels(root, root / part, files, classes)
    return list(zip(files, labels, strict=True))


def _listed_labels(root: Path, folder: Path, files: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The labels of `files`, sorted images without class folders, from the first list that exists."""
    numbers = {name: number for number, name in enumerate(classes)}
    for source in (place / name for name in LABEL_LISTS for place in (folder, root)):
        if source.is_file():
            rows = [*_rows(source)]
            break
    else:
        source = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
        if not source.is_file():
            lists = ", ".join((*LABEL_LISTS, DEVKIT))
            raise UserError(f"data.root: {folder} has no class folders and no list of labels ({lists})")
        wnids = _devkit_wnids(source.with_name("meta.mat"))
        rows = [[wnids.get(row[0], row[0])] for row in _rows(source)]
    if not rows:
        raise UserError(f"data.root: {source} is empty")
    numbered = source.name == "val.txt"
    if len(rows[0]) == 1:  # in the order of the files
        if len(rows) != len(files):
            raise UserError(
                f"data.root: {source} has {len(rows)} labels for the {len(files)} images of {folder}"
            )
        return [_number(row[0], numbers, numbered, source) for row in rows]
    by_file = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
    missing = [file for file in files if Path(file).stem not in by_file]
    if missing:
        raise UserError(
            f"data.root: {source} has no label for {len(missing)} images, among them {missing[0]}"
        )
    return [_number(by_file[Path(file).stem], numbers, numbered, source) for file in files]


def _rows(source: Path) -> Iterator[list[str]]:
    """The words of each line, without the header of a CSV file."""
    with source.open(newline="") as lines:
        if source.suffix == ".csv":
            table = csv.reader(lines)
            next(table, None)
            yield from ([word for field in row for word in field.split()] for row in table if row)
        else:
            yield from (line.split() for line in lines if line.strip())


def _number(label: str, numbers: dict[str, int], numbered: bool, source: Path) -> int:
    if numbered and label.isdecimal() and int(label) < len(numbers):
        return int(label)
    if label not in numbers:
        raise UserError(f"data.root: {source} names class {label!r}, which train/ does not have")
    return numbers[label]


def _devkit_wnids(meta: Path) -> dict[str, str]:
    """The ILSVRC id of each class, as text, and its wnid."""
    from scipy.io import loadmat  # imported here, because the import is slow

    try:
        synsets: Iterable[NDArray[np.void]] = loadmat(meta, squeeze_me=True)["synsets"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.root: {meta} cannot be read: {error}") from error
    return {str(int(synset["ILSVRC2012_ID"])): str(synset["WNID"]) for synset in synsets}
