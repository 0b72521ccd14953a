"""Tiny data sets in the layouts in which torchvision's constructors expect the real ones.

Each writer takes the folder, the part ("train" or "test") and its labels, 0 or 1. The pixels of an image have
the value `grey(label)`.
"""

import bz2
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Labels = Sequence[int]


def grey(label: int) -> int:
    return 60 + 120 * label


def _pixels(labels: Labels, *shape: int) -> NDArray[np.uint8]:
    return np.stack([np.full(shape, grey(label), np.uint8) for label in labels])


def _picture(path: Path, label: int, number: int) -> None:
    """A colour picture of a size of its own, in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12 + number, 10), (grey(label),) * 3).save(path)


def _idx(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = 8 if array.dtype == np.uint8 else 12
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def _mnist(name: str) -> Callable[[Path, str, Labels], None]:
    def write(root: Path, part: str, labels: Labels) -> None:
        start = root / name / "raw" / ("train" if part == "train" else "t10k")
        _idx(Path(f"{start}-images-idx3-ubyte"), _pixels(labels, 28, 28))
        _idx(Path(f"{start}-labels-idx1-ubyte"), np.array(labels, np.uint8))

    return write


def _emnist(name: str) -> Callable[[Path, str, Labels], None]:
    def write(root: Path, part: str, labels: Labels) -> None:
        start = root / "EMNIST/raw" / f"emnist-{name}-{part}"
        _idx(Path(f"{start}-images-idx3-ubyte"), _pixels(labels, 28, 28))
        _idx(Path(f"{start}-labels-idx1-ubyte"), np.array(labels, np.uint8))

    return write


def _qmnist(root: Path, part: str, labels: Labels) -> None:
    start = root / "QMNIST/raw" / f"qmnist-{part}"
    table = np.zeros((len(labels), 8), np.int32)
    table[:, 0] = labels
    _idx(Path(f"{start}-images-idx3-ubyte"), _pixels(labels, 28, 28))
    _idx(Path(f"{start}-labels-idx2-int"), table)


def _usps(root: Path, part: str, labels: Labels) -> None:
    value = {label: grey(label) / 255 * 2 - 1 for label in labels}
    lines = [
        f"{label + 1} " + " ".join(f"{place + 1}:{value[label]:.6f}" for place in range(256))
        for label in labels
    ]
    (root / ("usps.bz2" if part == "train" else "usps.t.bz2")).write_bytes(
        bz2.compress("\n".join(lines).encode())
    )


def _cifar(folder: Path, labels: Labels, files: Sequence[str], key: str) -> None:
    folder.mkdir(exist_ok=True)
    rows = _pixels(labels, 3072)
    for file, chosen in zip(files, np.array_split(np.arange(len(labels)), len(files)), strict=True):
        entry = {"data": rows[chosen], key: [labels[place] for place in chosen]}
        (folder / file).write_bytes(pickle.dumps(entry))


def _cifar10(root: Path, part: str, labels: Labels) -> None:
    files = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    _cifar(root / "cifar-10-batches-py", labels, files, "labels")
    (root / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))


def _cifar100(root: Path, part: str, labels: Labels) -> None:
    _cifar(root / "cifar-100-python", labels, [part], "fine_labels")
    (root / "cifar-100-python/meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b"]}))


def _svhn(root: Path, part: str, labels: Labels) -> None:
    pixels = _pixels(labels, 32, 32, 3).transpose(1, 2, 3, 0)
    marks = [[label or 10] for label in labels]  # 10 is the digit 0
    scipy.io.savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": np.array(marks, np.uint8)})


def _stl10(root: Path, part: str, labels: Labels) -> None:
    (root / "stl10_binary").mkdir(exist_ok=True)
    _pixels(labels, 3, 96, 96).tofile(root / f"stl10_binary/{part}_X.bin")
    (np.array(labels, np.uint8) + 1).tofile(root / f"stl10_binary/{part}_y.bin")
    (root / "stl10_binary/unlabeled_X.bin").touch()


def _fer2013(root: Path, part: str, labels: Labels) -> None:
    (root / "fer2013").mkdir(exist_ok=True)
    file = root / "fer2013/fer2013.csv"
    text = file.read_text() if file.exists() else "emotion,pixels,Usage\n"
    usage = "Training" if part == "train" else "PublicTest"
    rows = [f"{label},{' '.join([str(grey(label))] * 48 * 48)},{usage}\n" for label in labels]
    file.write_text(text + "".join(rows))


def _gtsrb(root: Path, part: str, labels: Labels) -> None:
    rows = ["Filename;ClassId"]
    for number, label in enumerate(labels):
        if part == "train":
            _picture(root / f"gtsrb/GTSRB/Training/{label:05d}/{number}.ppm", label, number)
        else:
            _picture(root / f"gtsrb/GTSRB/Final_Test/Images/{number}.ppm", label, number)
            rows.append(f"{number}.ppm;{label}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows))


def _food101(root: Path, part: str, labels: Labels) -> None:
    files: dict[str, list[str]] = {"a": [], "b": []}
    for number, label in enumerate(labels):
        files["ab"[label]].append(f"{'ab'[label]}/{part}{number}")
        _picture(root / f"food-101/images/{'ab'[label]}/{part}{number}.jpg", label, number)
    (root / "food-101/meta").mkdir(exist_ok=True)
    (root / f"food-101/meta/{part}.json").write_text(json.dumps(files))


def _flowers102(root: Path, part: str, labels: Labels) -> None:
    folder = root / "flowers-102"
    files = folder / "setid.mat", folder / "imagelabels.mat"
    ids, marks = {"trnid": [], "valid": [], "tstid": []}, []
    if files[0].exists():
        ids |= {name: value for name, value in scipy.io.loadmat(files[0]).items() if name in ids}
        marks = scipy.io.loadmat(files[1])["labels"][0].tolist()
    numbers = range(len(marks) + 1, len(marks) + len(labels) + 1)
    for number, label in zip(numbers, labels, strict=True):
        _picture(folder / f"jpg/image_{number:05d}.jpg", label, number)
    ids["trnid" if part == "train" else "tstid"] = list(numbers)
    scipy.io.savemat(files[0], ids)
    scipy.io.savemat(files[1], {"labels": marks + [label + 1 for label in labels]})


def _dtd(root: Path, part: str, labels: Labels) -> None:
    names = [f"{'ab'[label]}/{part}{number}.jpg" for number, label in enumerate(labels)]
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        _picture(root / "dtd/dtd/images" / name, label, number)
    (root / "dtd/dtd/labels").mkdir(exist_ok=True)
    (root / f"dtd/dtd/labels/{part}1.txt").write_text("\n".join(names))


def _clevr(root: Path, part: str, labels: Labels) -> None:
    """The label is the number of objects."""
    folder, split = root / "clevr/CLEVR_v1.0", "train" if part == "train" else "val"
    scenes = []
    for number, label in enumerate(labels):
        _picture(folder / f"images/{split}/{number}.png", label, number)
        scenes.append({"image_filename": f"{number}.png", "objects": [{}] * label})
    (folder / "scenes").mkdir(exist_ok=True)
    (folder / f"scenes/CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))


def _folders(place: str, train: str, test: str, names: tuple[str, str], kind: str) -> Callable[..., None]:
    """A folder for each class."""

    def write(root: Path, part: str, labels: Labels) -> None:
        for number, label in enumerate(labels):
            split = train if part == "train" else test
            _picture(root / place / split / names[label] / f"{number}.{kind}", label, number)

    return write


def _aircraft(root: Path, part: str, labels: Labels) -> None:
    folder, split = root / "fgvc-aircraft-2013b/data", "trainval" if part == "train" else "test"
    for number, label in enumerate(labels):
        _picture(folder / f"images/{part}{number}.jpg", label, number)
    (folder / "variants.txt").write_text("kind a\nkind b\n")
    lines = [f"{part}{number} kind {'ab'[label]}" for number, label in enumerate(labels)]
    (folder / f"images_variant_{split}.txt").write_text("\n".join(lines))


def _pets(root: Path, part: str, labels: Labels) -> None:
    folder, split = root / "oxford-iiit-pet", "trainval" if part == "train" else "test"
    for number, label in enumerate(labels):
        _picture(folder / f"images/{'ab'[label]}_{part}{number}.jpg", label, number)
    (folder / "annotations").mkdir(exist_ok=True)
    lines = [f"{'ab'[label]}_{part}{number} {label + 1} 1 1" for number, label in enumerate(labels)]
    (folder / f"annotations/{split}.txt").write_text("\n".join(lines))


def _cars(root: Path, part: str, labels: Labels) -> None:
    folder = root / "stanford_cars"
    for number, label in enumerate(labels):
        _picture(folder / f"cars_{part}/{number}.jpg", label, number)
    (folder / "devkit").mkdir(exist_ok=True)
    table = np.array(
        [(f"{number}.jpg", label + 1) for number, label in enumerate(labels)],
        dtype=[("fname", object), ("class", np.uint8)],
    )
    place = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
    scipy.io.savemat(folder / place, {"annotations": table})
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["a", "b"], object)})


def _pcam(root: Path, part: str, labels: Labels) -> None:
    (root / "pcam").mkdir(exist_ok=True)
    arrays = {"x": _pixels(labels, 96, 96, 3), "y": np.array(labels, np.uint8).reshape(-1, 1, 1, 1)}
    for name, array in arrays.items():
        with (root / f"pcam/camelyonpatch_level_2_split_{part}_{name}.h5").open("wb") as file:
            np.savez(file, **{name: array})


def h5py() -> ModuleType:
    """As far as it is used for `_pcam`, whose files it reads: h5py is no dependency of ours."""
    module = ModuleType("h5py")
    module.__spec__ = ModuleSpec("h5py", None)
    module.File = np.load  # type: ignore[attr-defined]
    return module


WRITERS: dict[str, Callable[[Path, str, Labels], None]] = {
    **{name: _mnist(name) for name in ("FashionMNIST", "KMNIST", "MNIST")},
    **{
        f"EMNIST/{name}": _emnist(name)
        for name in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
    },
    "CIFAR10": _cifar10,
    "CIFAR100": _cifar100,
    "CLEVRClassification": _clevr,
    "Country211": _folders("country211", "train", "test", ("AD", "AE"), "jpg"),
    "DTD": _dtd,
    "FER2013": _fer2013,
    "FGVCAircraft": _aircraft,
    "Flowers102": _flowers102,
    "Food101": _food101,
    "GTSRB": _gtsrb,
    "Imagenette": _folders("imagenette2", "train", "val", ("n01440764", "n02102040"), "jpeg"),
    "OxfordIIITPet": _pets,
    "PCAM": _pcam,
    "QMNIST": _qmnist,
    "RenderedSST2": _folders("rendered-sst2", "train", "test", ("negative", "positive"), "png"),
    "STL10": _stl10,
    "SVHN": _svhn,
    "StanfordCars": _cars,
    "USPS": _usps,
}
