"""Training and test images of torchvision (``torchvision/NAME``), Hugging Face (``hf:NAME``), user code."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hiddenweights import own
from hiddenweights.errors import UserError, choices_error
from hiddenweights.images.download import downloading, mark_of

# Classification data sets of torchvision. Those with an argument `train`:
_BY_TRAIN = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS")
# Those with an argument `split`, and its values for the training and the test images:
_BY_SPLIT = {
    "CLEVRClassification": ("train", "val"),  # its test images have no labels
    "Country211": ("train", "test"),
    "DTD": ("train", "test"),
    "FER2013": ("train", "test"),
    "FGVCAircraft": ("trainval", "test"),
    "Flowers102": ("train", "test"),
    "Food101": ("train", "test"),
    "GTSRB": ("train", "test"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "PCAM": ("train", "test"),
    "RenderedSST2": ("train", "test"),
    "STL10": ("train", "test"),
    "SVHN": ("train", "test"),
    "StanfordCars": ("train", "test"),
}
_EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
# Per data set: the constructor's arguments for the training and for the test images.
TORCHVISION: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    **{name: ({"train": True}, {"train": False}) for name in _BY_TRAIN},
    **{
        f"EMNIST/{name}": ({"split": name, "train": True}, {"split": name, "train": False})
        for name in _EMNIST
    },
    **{name: ({"split": train}, {"split": test}) for name, (train, test) in _BY_SPLIT.items()},
}
_FOLDER = "unpack it and use folder:NAME"
# Classification data sets that are not supported by name, with the reason.
EXCLUDED = {
    **dict.fromkeys(
        ("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"),
        "has no fixed training and test images; split it in a function of your own (FILE.py:FUNCTION)",
    ),
    "EMNIST": f"is {len(_EMNIST)} data sets; name one as torchvision/EMNIST/NAME: {', '.join(_EMNIST)}",
    "FakeData": "is random noise",
    "INaturalist": f"has millions of images; {_FOLDER}",
    "ImageNet": f"has a million images; {_FOLDER}",
    "LFWPeople": "has other people in its test images",
    "Omniglot": "has other classes in its test images",
    "Places365": f"has millions of images; {_FOLDER}",
}
_NEEDS = {"PCAM": "h5py"}  # packages that are not installed with this one


def torchvision_parts(name: str, root: Path, download: bool = True) -> tuple[Any, Any]:
    """The training and test images of torchvision's data set `name`. `download`: missing data is downloaded.

    Raises `UserError` for an unknown name, a missing package, or data that is missing and cannot be loaded.
    """
    from torchvision import datasets

    if name in EXCLUDED:
        raise UserError(f"data.name: torchvision/{name} {EXCLUDED[name]}")
    if name not in TORCHVISION:
        raise choices_error(
            "data.name", f"torchvision/{name}", [f"torchvision/{known}" for known in TORCHVISION]
        )
    if name in _NEEDS and find_spec(_NEEDS[name]) is None:
        raise UserError(f"data.name: torchvision/{name} needs {_NEEDS[name]}: pip install {_NEEDS[name]}")
    constructor = getattr(datasets, name.partition("/")[0])
    train, test = (_constructed(constructor, root, arguments, download) for arguments in TORCHVISION[name])
    if name == "PCAM":  # too large for memory, and without a list of its labels
        train.targets, test.targets = _pcam_labels(train), _pcam_labels(test)
    return train, test


def _pcam_labels(part: Any) -> Any:
    with part.h5py.File(part._base_folder / part._FILES[part._split]["targets"][0]) as file:
        return file["y"][:].reshape(-1)


def _constructed(constructor: Any, root: Path, arguments: Mapping[str, Any], download: bool) -> Any:
    parameters = inspect.signature(constructor).parameters
    downloads = "download" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    downloads = downloads and download
    mark = mark_of(root, constructor.__name__)
    try:
        try:
            if mark.exists():
                raise FileExistsError(f"{mark} is there: a download goes on, or was interrupted")
            return constructor(root=str(root), **arguments)
        except (RuntimeError, OSError):
            if not downloads:
                raise
        with downloading(mark):  # another process may have just downloaded it, which torchvision sees
            return constructor(root=str(root), **arguments, download=True)
    except Exception as error:  # torchvision raises many types
        where = f"data.root: no {constructor.__name__} in {root}" + (", no download" if downloads else "")
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _offline(config: Any) -> Iterator[None]:
    """Let Hugging Face's `datasets`, which has this `config`, read only what it has already."""
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


class _Column:
    """A split of Hugging Face `datasets` as a map-style dataset of (image, label)."""

    def __init__(self, split: Any, image: str, label: str) -> None:
        self._split, self._image, self._label = split, image, label
        self.targets = split[label][:]

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        row = self._split[place]
        return row[self._image], row[self._label]


def hugging_face_parts(name: str, root: Path, download: bool = True) -> tuple[Any, ...]:
    """Training images, test images and number of classes of a data set of Hugging Face `datasets`.

    `name` is a folder (in `root`, or a path) that `save_to_disk` wrote or that contains images or Parquet
    files, or else a name on the hub. The test images are the split ``test``, else ``validation``. The images
    are the first column of that type, the labels the first column of class labels, else the column ``label``.
    `download`: what is neither in a folder nor in the package's cache is downloaded.

    Raises `UserError` if the package is missing, the data cannot be loaded, or a split or column is missing.
    """
    where = f"data.name: hf:{name}"
    if find_spec("datasets") is None:
        raise UserError(f"{where}: needs datasets: pip install 'hiddenweights[hf]'")
    import datasets

    datasets.disable_progress_bars()
    places = [place.resolve() for place in (root / name, Path(name)) if place.is_dir()]
    if not places and name.startswith((".", "/")):
        raise UserError(f"{where}: there is no such folder")
    try:
        if places and (places[0] / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(places[0]))
        else:
            with _offline(datasets.config) if not download else contextlib.nullcontext():
                splits = datasets.load_dataset(str(places[0]) if places else name)
    except Exception as error:  # the package raises many types
        raise UserError(
            f"{where}: cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    tests = [split for split in ("test", "validation") if split in splits]
    if "train" not in splits or not tests:
        raise UserError(f"{where}: needs the splits train and test; it has: {', '.join(splits)}")
    columns = splits["train"].features
    images = [column for column, kind in columns.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in columns.items() if isinstance(kind, datasets.ClassLabel)]
    labels += [column for column in ("label",) if column in columns]
    if not images or not labels:
        raise UserError(f"{where}: needs a column of images and one of labels; it has: {', '.join(columns)}")
    parts = [_Column(splits[split], images[0], labels[0]) for split in ("train", tests[0])]
    classes = getattr(columns[labels[0]], "num_classes", None)
    return (*parts, {"classes": classes} if classes else {})


def own_parts(name: str, root: Path) -> Any:
    """Call the user's function `name` (with its version), with `root` if it takes an argument.

    Raises `UserError` if it cannot be imported or called.
    """
    make = own.code(name, "data.name")
    plain = own.plain(name)
    if not callable(make):
        raise UserError(f"data.name: {plain} is a {type(make).__name__}, not a function")
    try:
        arguments = (root,) if inspect.signature(make).parameters else ()
        return make(*arguments)
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"data.name: {plain} fails: {line}") from error
