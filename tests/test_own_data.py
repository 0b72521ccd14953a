"""Data that a user brings: a function in a file, torchvision's sets by name, and Hugging Face's."""

import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_files
from PIL import Image, UnidentifiedImageError
from torchvision import datasets as vision

from hiddenweights import own
from hiddenweights.__main__ import main
from hiddenweights.cells.store import Store
from hiddenweights.config import DataConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id, pinned, resolve
from hiddenweights.images import mapped
from hiddenweights.images.dataset import Dataset, Images, _load, load_dataset
from hiddenweights.images.decoding import Decoder, Request
from hiddenweights.images.mapped import MapImages, content
from hiddenweights.images.sources import EXCLUDED, TORCHVISION
from hiddenweights.images.stream import StreamedBatches
from hiddenweights.training.train import Trainer

DATA = '''
"""Data sets of a user."""

import numpy as np
import torch


def tensors(n=60, channels=2, side=6, classes=3):
    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    return torch.from_numpy(pixels), torch.arange(n) % classes


def make():
    return tensors(), tensors(30)


def rooted(root):
    return torch.load(root / "mine.pt"), tensors(30)


class Pictures:
    """A map dataset in the style of torchvision."""

    def __init__(self, n):
        self.pixels, labels = tensors(n)
        self.targets = labels.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, place):
        return self.pixels[place], self.targets[place]


def pictures():
    return Pictures(60), Pictures(30)


def fails():
    return 1 / 0


number = 3
'''
TINY = {"model.arch": "fc", "model.width": 0.1, "train.epochs": 1, "optim.batch_size": 16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, as the present one."""
    (tmp_path / "my_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str, **fields: Any) -> Dataset:
    config = pinned(unflatten({"data.name": name, **{f"data.{key}": value for key, value in fields.items()}}))
    return load_dataset(config.data)


def tensors(n: int = 12, shape: tuple[int, ...] = (1, 4, 4), classes: int = 3) -> tuple[Any, Any]:
    pixels = np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
    return torch.from_numpy(pixels), torch.arange(n) % classes


class Failing(list[Any]):
    """A map dataset that raises the exceptions among its items."""

    def __getitem__(self, place: Any) -> Any:
        image, label = super().__getitem__(place)
        if isinstance(image, Exception):
            raise image
        return image, label


class Items:
    """A map dataset of given items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


# --- a function of the user --------------------------------------------------------------------------------


def test_train_on_a_function_of_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    assert main(["train", *flags, "--data.name", "my_data.py:make", "--no-track"]) == 0
    cell = cell_id(unflatten({**TINY, "data.name": "my_data.py:make"}))
    result = Store("runs").result(cell)
    assert result is not None
    assert result["config"]["data"]["name"].startswith("my_data.py:make@")
    assert result["data_digest"] == load("my_data.py:make").digest
    assert result["summary"]["weights"] == 2 * 36 * 30 + 30 * 10 + 10 * 3  # its channels, pixels and classes

    # The ticket names code, which is imported only if the command names it, too.
    Path("found.ticket").write_bytes(Store("runs").ticket(cell) or b"")
    monkeypatch.setattr(own, "_NAMED", {})
    _load.cache_clear()
    assert main(["evaluate", "found.ticket"]) == 2
    assert "names it: my_data.py:make" in capsys.readouterr().err
    assert main(["evaluate", "found.ticket", "--data", "my_data.py:make"]) == 0
    assert "at the end of training" in capsys.readouterr().out


def test_statistics_and_classes_come_from_the_content(folder: Path) -> None:
    data = load("my_data.py:make")
    assert (data.classes, data.channels, data.image_size) == (3, 2, 6)
    assert (len(data.train), len(data.test)) == (60, 30)
    assert isinstance(data.train, Images)
    scaled = data.train.pixels.double() / 255
    assert data.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert data.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_the_root_is_given_and_its_content_has_a_digest(folder: Path, tmp_path: Path) -> None:
    digests, cells = [], []
    for name, n in (("one", 20), ("two", 21)):
        (tmp_path / name).mkdir()
        torch.save(tensors(n, (2, 6, 6)), tmp_path / name / "mine.pt")
        digests.append(load("my_data.py:rooted", root=str(tmp_path / name)).digest)
        cells.append(
            cell_id(unflatten({"data.name": "my_data.py:rooted", "data.root": str(tmp_path / name)}))
        )
    assert digests[0] != digests[1]
    assert cells[0] == cells[1]  # the root is no part of it: the digest is in the result


@pytest.mark.parametrize("kind", ["tensor", "array", "pil", "pair", "arrays", "float"])
def test_every_form_of_an_image_gives_the_same_pixels(kind: str) -> None:
    pixels, labels = tensors(shape=(3, 4, 4))
    last = pixels.permute(0, 2, 3, 1).numpy()
    forms: dict[str, Any] = {
        "tensor": Items([*zip(pixels, labels.tolist(), strict=True)]),
        "array": Items([*zip(last, labels.tolist(), strict=True)]),
        "pil": Items([(Image.fromarray(x), int(y)) for x, y in zip(last, labels, strict=True)]),
        "pair": (pixels, labels),
        "arrays": (last, labels.tolist()),
        "float": (pixels.double() / 255, labels),
    }
    found = content((forms[kind], forms[kind]), None, "x")
    torch.testing.assert_close(found.images[0].float(), pixels.float())
    assert torch.equal(found.labels[1], labels)
    assert found.mean == pytest.approx((pixels.double() / 255).mean((0, 2, 3)).tolist(), abs=1e-6)


def test_images_of_16_bits_are_not_cut_off_at_255() -> None:
    pixels, labels = tensors(shape=(1, 4, 4))
    deep = [Image.fromarray(x[0].numpy().astype(np.uint16) * 257) for x in pixels]
    part = Items([*zip(deep, labels.tolist(), strict=True)])
    assert torch.equal(content((part, part), None, "x").images[0], pixels)


def test_what_is_given_is_taken() -> None:
    part = tensors()
    found = content((part, part, {"classes": 7, "mean": [0.5], "std": [0.25]}), None, "x")
    assert (found.classes, found.mean, found.std) == (7, (0.5,), (0.25,))


def test_images_of_any_size_are_cut_to_squares() -> None:
    items = Items(
        [(np.full((h, w), 9, np.uint8), i % 2) for i, (h, w) in enumerate([(6, 8), (9, 5), (4, 4)])]
    )
    found = content((items, items), 4, "x")
    assert found.images[0].shape == (3, 1, 4, 4)
    assert bool((found.images[0] == 9).all())


PAIR = tensors()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (3, "not (train, test)"),
        ((PAIR,), "not (train, test)"),
        ((PAIR, tensors(shape=(3, 4, 4))), "1x4x4 and the test images 3x4x4"),
        ((PAIR, (PAIR[0], PAIR[1] + 1)), "test images: have labels from 1 to 3"),
        ((PAIR, (PAIR[0], PAIR[1] - 1)), "from -1"),
        ((PAIR, (PAIR[0], PAIR[1].float())), "not whole numbers"),
        ((PAIR, (PAIR[0], PAIR[1][:5])), "12 images"),
        ((PAIR, (PAIR[0][:0], PAIR[1][:0])), "has none"),
        ((PAIR, (PAIR[0].long(), PAIR[1])), "int64"),
        ((PAIR, (PAIR[0] / torch.zeros(1), PAIR[1])), "not finite"),
        ((tensors(shape=(1, 4, 5)),) * 2, "data.image_size"),
        ((Items([(np.zeros((4, 4), np.uint8), 0), (np.zeros((5, 5), np.uint8), 1)]),) * 2, "data.image_size"),
        ((Items(["?"]), PAIR), "not (image, label)"),
        ((Items([("?", 0)]), PAIR), "no image"),
        ((Items([(Image.new("F", (4, 4)), 0)]), PAIR), "mode F has no fixed range"),
        ((iter([]), PAIR), "neither a map-style dataset"),
        (((PAIR[0], PAIR[1] * 0),) * 2, "1 classes"),
        ((PAIR, PAIR, {"classes": 0}), "0 classes"),
        ((PAIR, (PAIR[0], ["cat"] * 12)), "test images: can't convert"),
        ((Items([(np.zeros((4, 4), np.uint8), "cat")]), PAIR), "training images: can't convert"),
        ((PAIR, PAIR, {"mean": [1, 2]}), "mean"),
        ((PAIR, PAIR, {"std": [0]}), "std"),
        ((PAIR, PAIR, {"mode": 3}), "classes, mean, std"),
    ],
)
def test_bad_content_is_one_line(parts: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        content(parts, None, "my_data.py:make")
    assert str(error.value).startswith("data.name: my_data.py:make")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:make", "nowhere.py"),
        ("my_data.py:absent", "tensors"),
        ("my_data.py:number", "not a function"),
        ("my_data.py:fails", "ZeroDivisionError"),
        ("my_data.py", "FILE.py:FUNCTION"),
        ("torchvision/SVNH", "torchvision/SVHN"),
        ("torchvision/Caltech101", "no fixed training and test images"),
        ("torchvision/EMNIST", "letters"),
        ("hf:./nowhere", "no such folder"),
    ],
)
def test_a_wrong_name_is_one_line(folder: Path, name: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        load(name)
    assert str(error.value).startswith("data.name: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_adds_data_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hiddenweights.data]\nnoise = their_data:make\n")
    (tmp_path / "their_data.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("noise").classes == 3
    with pytest.raises(UserError, match=r"cifar10.*noise"):
        DataConfig(name="nothing")


def test_own_code_is_not_augmented_for_its_name(folder: Path) -> None:
    (folder / "my_data.py").rename(folder / "cifar_mine.py")
    assert resolve(unflatten({"data.name": "cifar_mine.py:make"})).data.augment == "none"
    assert resolve(unflatten({"data.name": "cifar100"})).data.augment == "crop_flip"


# --- a large one is read during training -------------------------------------------------------------------


def test_a_large_map_dataset_is_read_during_training_with_the_same_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = unflatten({**TINY, "data.name": "my_data.py:pictures", "data.augment": "crop_flip"})
    (whole,) = Trainer(config).epochs()
    for loaders in (0, 1):
        monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
        _load.cache_clear()
        trainer = Trainer(config, loaders=loaders)
        assert isinstance(trainer.train_batches.images, MapImages)
        (streamed,) = trainer.epochs()
        trainer.close()
        for name in ("train_loss", "validation_accuracy", "test_loss", "mask_checksum"):
            assert streamed[name] == whole[name]
    _load.cache_clear()


def test_a_large_map_dataset_must_list_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", 10)
    items = Items([(image, int(label)) for image, label in zip(*tensors(), strict=True)])
    with pytest.raises(UserError, match="`targets`"):
        content((items, items), None, "x")
    items.targets = [0] * 12  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="not the labels of the items"):
        content((items, items), None, "x")


def pictures_of(grey: set[int]) -> tuple["Items", torch.Tensor]:
    """Twelve PIL images as a map dataset, those of these numbers grey; and their pixels in three channels."""
    colours, labels = tensors(shape=(3, 4, 4))
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in colours]
    images = [image.convert("L") if i in grey else image for i, image in enumerate(images)]
    items = Items([*zip(images, labels.tolist(), strict=True)])
    items.targets = labels.tolist()  # type: ignore[attr-defined]
    pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images]
    return items, torch.stack(pixels)


@pytest.mark.parametrize("in_memory", [10, 2**30])
@pytest.mark.parametrize("grey", [{3}, {0}, {0, 1, 2}, {*range(11)}, {*range(12)}])
def test_grey_images_among_coloured_ones_have_three_equal_channels(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, grey: set[int]
) -> None:
    """Wherever they are; the last case has coloured ones in the other part alone."""
    monkeypatch.setattr(mapped, "IN_MEMORY", in_memory)
    (items, pixels), (others, other_pixels) = pictures_of(grey), pictures_of(set())
    for order in (1, -1):
        both = content((items, others)[::order], None, "x")
        for part, (images, expected) in enumerate(
            zip(both.images, (pixels, other_pixels)[::order], strict=True)
        ):
            found = torch.stack([images.read((part, i)) for i in range(12)]) if in_memory == 10 else images
            assert torch.equal(found, expected)
        assert len(both.mean) == 3


def test_grey_images_stay_grey_and_a_coloured_one_found_in_training_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", 10)
    items, _ = pictures_of({*range(12)})
    images = content((items, items), None, "x").images[0]
    assert images.channels == 1
    coloured, _ = pictures_of(set())
    with pytest.raises(UserError, match=r"number 5: .*convert\('RGB'\)"):
        replace(images, sources=(coloured, coloured)).read((0, 5))


@pytest.mark.parametrize(
    ("odd", "words"),
    [(torch.zeros(2, 4, 4, dtype=torch.uint8), "2 channels"), (torch.zeros(3, 4, 4), "float32")],
)
def test_an_image_unlike_the_first_is_named_also_while_training(
    monkeypatch: pytest.MonkeyPatch, odd: torch.Tensor, words: str
) -> None:
    pixels, labels = tensors(shape=(3, 4, 4))
    pairs = [*zip(pixels, labels.tolist(), strict=True)]
    alike, unlike = Items(pairs), Items([*pairs[:5], (odd, pairs[5][1]), *pairs[6:]])
    alike.targets = labels.tolist()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=f"number 5: .*{words}"):
        content((unlike, alike), None, "x")
    monkeypatch.setattr(mapped, "IN_MEMORY", 10)
    streamed = content((alike, alike), None, "x").images[0]
    with pytest.raises(UserError, match=f"number 5: .*{words}"):
        replace(streamed, sources=(unlike, unlike)).read((0, 5))


@pytest.mark.parametrize("processes", [0, 1])
def test_what_the_dataset_raises_while_training_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, processes: int
) -> None:
    """A corrupt image gives way to the next; an error of the code or the system is none of a dead process."""
    monkeypatch.setattr(mapped, "IN_MEMORY", 10)
    monkeypatch.setattr("hiddenweights.images.decoding.CORRUPT_LIMIT", 0.1)
    colours, labels = tensors(shape=(3, 4, 4))
    pairs = [*zip(colours, labels.tolist(), strict=True)]
    items = Items(pairs)
    items.targets = labels.tolist()  # type: ignore[attr-defined]
    images = content((items, items), None, "x").images[0]

    def epoch_with(odd: Any) -> list[Any]:
        source = Failing([*pairs[:5], (odd, pairs[5][1]), *pairs[6:]])
        now = replace(images, sources=(source, source))
        decoder = Decoder(processes, read=now.read)
        try:
            return [*StreamedBatches(now, (0.0,) * 3, (1.0,) * 3, decoder).in_order(12)]
        finally:
            decoder.close()

    for corrupt in (UnidentifiedImageError("no image"), OSError("truncated"), SyntaxError("broken PNG")):
        ((pixels, found),) = epoch_with(corrupt)
        assert torch.equal(pixels[5], pixels[6])
        assert found[5] == labels[6]
        assert f"number 5 of the training images is no intact image ({corrupt})" in caplog.text
    with pytest.raises(RuntimeError, match="mine"):
        epoch_with(RuntimeError("mine"))
    with pytest.raises(FileNotFoundError):
        epoch_with(FileNotFoundError(2, "away"))
    with pytest.raises(UserError, match=r"^data\.name: .*number 5: .*float32.*$"):
        epoch_with(torch.zeros(3, 4, 4))


def test_a_decoding_process_that_dies_is_an_error_of_the_host() -> None:
    decoder = Decoder(1, read=lambda path: os._exit(1))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="died"):
        next(decoder([Request(["x"], 8, "square", 0, 0, [0])]))
    decoder.close()


def test_an_image_that_pillow_cannot_decode_is_named() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "jpeg")
    half = io.BytesIO(file.getvalue()[:2000])
    items = Items([(Image.new("RGB", (64, 64)), 0), (Image.open(half), 1)])  # Pillow decodes it later
    with pytest.raises(UserError, match=r"number 1: .*truncated"):
        content((items, items), None, "x")


# --- libraries ---------------------------------------------------------------------------------------------


@pytest.fixture
def torchvision_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for tiny files, whose digests are not compared with those of the real ones."""
    monkeypatch.setitem(sys.modules, "h5py", torchvision_files.h5py())
    for module in [module for key, module in sys.modules.items() if key.startswith("torchvision.datasets.")]:
        if hasattr(module, "check_integrity"):
            monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    return tmp_path


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_set_of_torchvision(name: str, torchvision_root: Path) -> None:
    """Each in its own layout; an image of label 1 is lighter."""
    for part, labels in (("train", [0, 0, 1, 0, 1, 1]), ("test", [1, 0, 1])):
        torchvision_files.WRITERS[name](torchvision_root, part, labels)
    data = load(f"torchvision/{name}", root=str(torchvision_root), image_size=10)
    assert (data.classes, data.image_size, len(data.train), len(data.test)) == (2, 10, 6, 3)
    for images, ones in ((data.train, 3), (data.test, 2)):
        assert isinstance(images, Images)
        assert int(images.labels.sum()) == ones
        expected = torch.tensor([torchvision_files.grey(label) for label in images.labels.tolist()])
        torch.testing.assert_close(images.pixels.double().mean((1, 2, 3)), expected.double(), atol=1, rtol=0)


@pytest.mark.parametrize("name", ["Country211", "GTSRB", "PCAM", "SVHN"])
def test_a_large_set_of_torchvision_is_read_during_training(
    name: str, torchvision_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", 10)
    for part, labels in (("train", [0, 0, 1, 0, 1, 1]), ("test", [1, 0, 1])):
        torchvision_files.WRITERS[name](torchvision_root, part, labels)
    data = load(f"torchvision/{name}", root=str(torchvision_root), image_size=10)
    assert isinstance(data.train, MapImages)
    assert data.train.labels.sum() == 3


def test_a_set_of_torchvision_that_is_missing_or_is_not_used_by_name(tmp_path: Path) -> None:
    assert all(hasattr(vision, name) for name in EXCLUDED)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^data.root: no SVHN"):
        load("torchvision/SVHN", root=str(tmp_path / "file"))


def test_a_set_of_hugging_face_in_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    from datasets import ClassLabel, DatasetDict, Features
    from datasets import Dataset as Table
    from datasets import Image as Picture

    pixels, labels = tensors(12, (8, 8))
    columns = Features({"img": Picture(), "kind": ClassLabel(names=["a", "b", "c", "d"])})
    rows = {"img": [Image.fromarray(x.numpy()) for x in pixels], "kind": labels.tolist()}
    table = Table.from_dict(rows, features=columns)
    DatasetDict({"train": table, "test": table}).save_to_disk(folder / "saved")
    for part in ("train", "test"):
        (folder / "parquet").mkdir(exist_ok=True)
        table.to_parquet(folder / f"parquet/{part}-0.parquet")
    for name in ("hf:./saved", "hf:parquet"):
        data = load(name, root=".")
        assert isinstance(data.train, Images)
        assert torch.equal(data.train.pixels[:, 0], pixels)
        assert torch.equal(data.test.labels, labels)
        assert data.classes == 4  # one of which no image has


def test_existing_sets_keep_their_image_size() -> None:
    assert resolve(unflatten({"data.name": "cifar10", "data.image_size": 16})).data.image_size is None
