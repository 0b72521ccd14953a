"""Splits, subsets and batches; augmentation against torchvision's; what is missing or broken on disk."""

import gzip
import math
import pickle
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import MNIST
from torchvision.transforms import functional as TF

from hiddenweights.config import DataConfig
from hiddenweights.errors import UserError
from hiddenweights.images import dataset as data
from hiddenweights.images.dataset import Batches, Dataset, Images, crop_flip, load_dataset, normalise, split
from hiddenweights.images.stream import batches_of

CIFAR10_MEAN, CIFAR10_STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def numbered(n: int, n_test: int = 7, size: int = 8, channels: int = 3) -> Dataset:
    """Random images whose labels number them, so that they can be told apart."""

    def images(n: int, start: int) -> Images:
        generator = torch.Generator().manual_seed(start)
        pixels = torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)
        return Images(pixels, torch.arange(start, start + n))

    return Dataset(images(n, 0), images(n_test, 10**6), 10, CIFAR10_MEAN[:channels], CIFAR10_STD[:channels])


# --- splits ------------------------------------------------------------------------------------------------


@given(
    n=st.integers(2, 300),
    fraction=st.floats(0.001, 0.999),
    subset=st.integers(2, 300) | st.none(),
    seed=st.integers(0, 100),
)
def test_splits_are_disjoint_and_complete(n, fraction, subset, seed):
    subset = min(subset, n) if subset else None
    dataset = numbered(n, size=1)
    parts = split(dataset, DataConfig(validation=fraction, subset=subset), seed)
    train, validation = set(parts.train.labels.tolist()), set(parts.validation.labels.tolist())
    used = subset or n
    assert len(train) == len(parts.train) > 0
    assert len(validation) == len(parts.validation) == min(max(1, round(fraction * used)), used - 1)
    assert not train & validation
    assert len(train | validation) == used
    assert parts.test is dataset.test
    for part in (parts.train, parts.validation):
        assert torch.equal(part.pixels, dataset.train.pixels[part.labels])


def test_a_split_is_a_function_of_the_seed():
    dataset = numbered(100)
    held_out = [split(dataset, DataConfig(), seed).validation.labels.tolist() for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_subset_is_the_same_images_under_both_protocols_and_grows_with_its_size():
    dataset = numbered(100)

    def used(protocol: str, size: int) -> set[int]:
        parts = split(dataset, DataConfig(protocol=protocol, subset=size), 0)
        held_out = parts.validation.labels.tolist() if parts.validation else []
        return {*parts.train.labels.tolist(), *held_out}

    assert used("paper", 40) == used("validation", 40)
    assert used("paper", 40) < used("paper", 60)
    assert len(used("paper", 40)) == 40


def test_the_papers_protocol_trains_on_all_and_validates_on_none():
    dataset = numbered(100)
    parts = split(dataset, DataConfig(protocol="paper"), 3)
    assert parts.validation is None
    assert torch.equal(parts.train.pixels, dataset.train.pixels)
    assert torch.equal(parts.test.labels, dataset.test.labels)


def test_a_subset_of_more_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"data\.subset: 101 .*100"):
        split(numbered(100), DataConfig(subset=101), 0)


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match=r"data\.protocol"):
        split(numbered(1), DataConfig(), 0)
    assert len(split(numbered(1), DataConfig(protocol="paper"), 0).train) == 1


# --- batches -----------------------------------------------------------------------------------------------


def batches(dataset: Dataset) -> Batches:
    return Batches(dataset.train, dataset.mean, dataset.std)


@pytest.mark.parametrize("size", [1, 2, 7, 30, 31, 100])
@pytest.mark.parametrize("n", [1, 2, 30, 31])
def test_every_image_comes_once_but_for_a_last_one_alone(n, size):
    source = batches(numbered(n))
    drawn = [*source.shuffled(size, seed=0, epoch=0, augment=False)]
    labels = torch.cat([labels for _, labels in drawn]).tolist()
    assert len(set(labels)) == len(labels)
    assert len(labels) == (n - 1 if n > 1 and size > 1 and n % size == 1 else n)
    assert len(drawn) == math.ceil(len(labels) / size)
    for images, numbers in drawn:
        assert torch.equal(images, normalise(source.images.pixels[numbers], source.mean, source.std))
    in_order = [labels for _, labels in source.in_order(size)]
    assert torch.cat(in_order).tolist() == [*range(n)]


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 3), (2, 3)])
@pytest.mark.parametrize("augment", [False, True])
def test_batches_made_together_equal_those_made_one_by_one(monkeypatch, augment, rank, ranks):
    """A GPU makes several at once. 7 batches of 8 and one of 3, in blocks of 3."""
    source = replace(batches(numbered(59)), rank=rank, ranks=ranks)
    alone = [*source.shuffled(8, seed=1, epoch=2, augment=augment)]
    monkeypatch.setattr(data, "batches_at_once", lambda numbers, device: 3)
    together = [*source.shuffled(8, seed=1, epoch=2, augment=augment)]
    assert len(together) == len(alone) == 8
    for (images, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
        assert images.stride() == others.stride()


def test_a_gpu_makes_as_many_batches_at_once_as_fit_and_at_least_one():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [data.batches_at_once(n, gpu) for n in (1, data.GPU_BLOCK // 2, 2 * data.GPU_BLOCK)] == [
        data.GPU_BLOCK,
        2,
        1,
    ]
    assert data.batches_at_once(1, cpu) == 1


def test_the_order_is_a_function_of_seed_and_epoch():
    source = batches(numbered(50))

    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(
            [labels for _, labels in source.shuffled(8, seed=seed, epoch=epoch, augment=False)]
        ).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_an_image_is_augmented_by_seed_epoch_and_itself_alone():
    """Not by the batch it is in: other batch sizes give each image the same crop."""
    source = batches(numbered(60))

    def by_number(size: int, epoch: int = 4) -> dict[int, torch.Tensor]:
        drawn = source.shuffled(size, seed=1, epoch=epoch, augment=True)
        return {int(n): image for images, labels in drawn for image, n in zip(images, labels, strict=True)}

    small, large = by_number(7), by_number(60)
    assert all(torch.equal(small[n], large[n]) for n in small)
    assert not all(torch.equal(small[n], by_number(7, epoch=5)[n]) for n in small)


def test_offsets_and_flips_are_uniform():
    top, left, flip = data.crop_offsets(90_000, 0, 0, torch.device("cpu"))
    for offsets in (top, left):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 35  # chi-square, 8 degrees: 1 in 30,000
    joint = np.bincount(top * 9 + left, minlength=81)
    assert ((joint - 90_000 / 81) ** 2 / (90_000 / 81)).sum() < 140
    assert flip.float().mean().item() == pytest.approx(0.5, abs=4 / 600)
    assert abs(np.corrcoef(top[:-1], top[1:])[0, 1]) < 0.015


# --- augmentation and normalisation ------------------------------------------------------------------------


def torchvisions(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    """RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize with their draws given."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture = TF.crop(TF.pad(picture, 4), top, left, image.shape[1], image.shape[2])
    if flip:
        picture = TF.hflip(picture)
    return TF.normalize(TF.to_tensor(picture), CIFAR10_MEAN, CIFAR10_STD)


def test_augmentation_is_torchvisions_bit_for_bit_at_every_offset():
    generator = torch.Generator().manual_seed(0)
    n = 9 * 9 * 2
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    number = torch.arange(n)
    top, left, flip = number % 9, number // 9 % 9, number >= 81
    ours = normalise(crop_flip(pixels, top, left, flip), CIFAR10_MEAN, CIFAR10_STD)
    assert ours.dtype == torch.float32
    for i in range(n):
        assert torch.equal(ours[i], torchvisions(pixels[i], int(top[i]), int(left[i]), bool(flip[i])))


@settings(max_examples=30)
@given(
    n=st.integers(1, 5), c=st.integers(1, 4), h=st.integers(1, 9), w=st.integers(1, 9),
    padding=st.integers(0, 5), seed=st.integers(0, 999),
)  # fmt: skip
def test_cropping_any_shape_is_padding_slicing_and_mirroring(n, c, h, w, padding, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, c, h, w), dtype=np.uint8)
    top, left = rng.integers(0, 2 * padding + 1, (2, n))
    flip = rng.random(n) < 0.5
    result = crop_flip(*(torch.from_numpy(x) for x in (pixels, top, left, flip)), padding=padding)
    padded = np.pad(pixels, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    for i in range(n):
        expected = padded[i, :, top[i] : top[i] + h, left[i] : left[i] + w]
        assert np.array_equal(result[i].numpy(), expected[:, :, ::-1] if flip[i] else expected)


def test_the_images_themselves_are_never_written_to():
    dataset = numbered(20)
    before = dataset.train.pixels.clone()
    for images, _ in batches(dataset).shuffled(5, seed=0, epoch=0, augment=True):
        images.zero_()
    for images, _ in batches(dataset).in_order(5):
        images.zero_()
    assert torch.equal(dataset.train.pixels, before)


# --- loading -----------------------------------------------------------------------------------------------


def test_digits_need_no_files_and_have_a_fixed_test_set():
    dataset = load_dataset(DataConfig(name="digits", root="/nowhere"))
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (1438, 359, 10)
    assert dataset.train.pixels.shape[1:] == (1, 8, 8)
    assert dataset.train.pixels.dtype == torch.uint8
    assert dataset.train.labels.bincount().min() > 100
    pixels = normalise(dataset.train.pixels, dataset.mean, dataset.std)
    assert pixels.mean().abs() < 0.02
    assert pixels.std().item() == pytest.approx(1, abs=0.02)


def test_digits_are_those_that_scikit_learn_loads():
    from sklearn.datasets import load_digits  # here, because the import is slow

    dataset, bunch = load_dataset(DataConfig(name="digits")), load_digits()
    pixels = torch.cat([dataset.train.pixels, dataset.test.pixels])[:, 0].float().mul(16 / 255).round()
    labels = torch.cat([dataset.train.labels, dataset.test.labels])
    ours = sorted(
        (int(label), tuple(image.flatten().tolist())) for image, label in zip(pixels, labels, strict=True)
    )
    theirs = zip(bunch.target, bunch.images, strict=True)
    assert ours == sorted((int(label), tuple(image.flatten().tolist())) for label, image in theirs)


def test_cifar10_is_whole_and_normalised_as_the_paper_does(data_root):
    dataset = load_dataset(DataConfig(name="cifar10", root=str(data_root)))
    assert dataset.train.pixels.shape == (50_000, 3, 32, 32)
    assert dataset.test.pixels.shape == (10_000, 3, 32, 32)
    assert dataset.train.labels.bincount().tolist() == [5_000] * 10
    assert (dataset.mean, dataset.std) == (CIFAR10_MEAN, CIFAR10_STD)
    assert dataset.train.pixels.float().mean((0, 2, 3)).div(255).numpy() == pytest.approx(
        dataset.mean, abs=1e-3
    )
    with (data_root / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")
    assert torch.equal(dataset.test.pixels[17].flatten(), torch.from_numpy(raw[b"data"][17]))
    assert dataset.test.labels[:50].tolist() == raw[b"labels"][:50]


def test_fashion_mnist_is_whole_and_normalised(data_root):
    dataset = load_dataset(DataConfig(name="fashion_mnist", root=str(data_root)))
    assert dataset.train.pixels.shape == (60_000, 1, 28, 28)
    assert dataset.test.labels.bincount().tolist() == [1_000] * 10
    pixels = dataset.train.pixels.float() / 255
    assert pixels.mean().item() == pytest.approx(dataset.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(dataset.std[0], abs=1e-3)


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a connection fails, and is counted."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data._load.cache_clear()
    yield attempts
    data._load.cache_clear()


def test_what_is_there_is_not_fetched(data_root, no_network):
    load_dataset(DataConfig(name="fashion_mnist", root=str(data_root)))
    assert no_network == []


@pytest.mark.parametrize("root", [".", "data", "far/below"])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_without_a_network_is_named_and_leaves_nothing(name, root, tmp_path, no_network):
    for _ in range(2):
        with pytest.raises(UserError, match=rf"data\.root.*no {name}") as caught:
            load_dataset(DataConfig(name=name, root=str(tmp_path / root)))
        assert "\n" not in str(caught.value)
        assert not [*tmp_path.iterdir()]


class SlowDownload(MNIST):
    """torchvision's class, whose download takes a while and may fail."""

    calls: ClassVar[list[str]] = []
    outcomes: ClassVar[list[str]] = []
    half = threading.Event()

    def __init__(self, root, train, download) -> None:
        if download and not self._check_exists_in(root):
            self.calls.append(root)
            raw = Path(root) / "MNIST" / "raw"
            raw.mkdir(parents=True)
            self.half.set()
            time.sleep(0.3)
            if self.outcomes and self.outcomes.pop(0) == "fails":
                raise OSError("the network went away")
            raw.rmdir()
            write_mnist(Path(root))
        super().__init__(root, train=train)

    @staticmethod
    def _check_exists_in(root) -> bool:
        return (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


SlowDownload.__name__ = "MNIST"  # which names the folder


@pytest.fixture
def slow_download(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", SlowDownload)
    SlowDownload.calls.clear()
    SlowDownload.half.clear()
    data._load.cache_clear()
    yield SlowDownload
    data._load.cache_clear()


@pytest.mark.parametrize("first", ["works", "fails"])
def test_who_comes_during_a_download_waits_for_it(first, tmp_path, slow_download):
    """As two processes do; each thread opens and locks the file anew."""
    slow_download.outcomes[:] = [first, "works"]
    config = DataConfig(name="mnist", root=str(tmp_path / "fresh"))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(data._load.__wrapped__, "mnist", config.root, None, False)
        assert slow_download.half.wait(10)
        two = pool.submit(data._load.__wrapped__, "mnist", config.root, None, False)
        assert len(two.result().train) == 4
        if first == "works":
            assert len(one.result().train) == 4
        else:
            with pytest.raises(UserError, match="went away"):
                one.result()
    assert len(slow_download.calls) == (1 if first == "works" else 2)
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["MNIST"]


def test_what_a_killed_download_left_is_downloaded_again(tmp_path, slow_download):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / ".mnist.download").write_text("downloading\n")
    with pytest.raises(UserError, match="no mnist"):
        load_dataset(DataConfig(name="mnist", root=str(tmp_path)), download=False)
    assert len(load_dataset(DataConfig(name="mnist", root=str(tmp_path))).train) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_reading_data_that_is_there_writes_nothing(tmp_path, slow_download):
    write_mnist(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    for download in (True, False):
        assert len(load_dataset(DataConfig(name="mnist", root=str(tmp_path)), download=download).train) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    assert slow_download.calls == []


def write_mnist(root, images: int = 4) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", images), ("t10k", 2)):
        pixels = bytes(range(n)) * 784
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, n, 28, 28) + pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + bytes(n))


def test_mnist_in_torchvisions_layout(tmp_path, no_network):
    write_mnist(tmp_path)
    dataset = load_dataset(DataConfig(name="mnist", root=str(tmp_path)))
    assert dataset.train.pixels.shape == (4, 1, 28, 28)
    assert no_network == []


@pytest.mark.parametrize("damage", ["cut short", "not a number", "gone", "empty"])
def test_broken_files_are_named_and_not_fetched_again(damage, tmp_path, no_network):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    if damage == "gone":
        file.unlink()
    else:
        content = {"cut short": file.read_bytes()[:500], "not a number": b"no idx file", "empty": b""}
        file.write_bytes(content[damage])
    with pytest.raises(UserError, match=r"data\.root.*MNIST"):
        load_dataset(DataConfig(name="mnist", root=str(tmp_path)))
    assert no_network == []


def test_a_damaged_cifar10_is_named(tmp_path, no_network):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(gzip.compress(b"not a batch"))
    with pytest.raises(UserError, match=r"data\.root.*cifar-10-batches-py"):
        load_dataset(DataConfig(name="cifar10", root=str(tmp_path)))
    assert no_network == []


# --- folders of images -------------------------------------------------------------------------------------


def write_folder(root, classes=("cat", "dog"), sizes=((40, 30), (20, 50))) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                mode, colour = ("RGB", (60 * label, 10 * i, 200)) if i else ("L", 100)
                Image.new(mode, sizes[i % 2], colour).save(folder / f"{i}.png")


def folder_config(root, **options) -> DataConfig:
    return DataConfig(name="folder:pets", root=str(root), **options)


def test_a_folder_of_images_becomes_square_tensors(tmp_path):
    write_folder(tmp_path)
    dataset = load_dataset(folder_config(tmp_path, image_size=16))
    assert (dataset.channels, dataset.image_size, dataset.classes) == (3, 16, 2)
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    ((images, labels),) = batches_of(dataset.train, (0.0,) * 3, (1 / 255,) * 3).in_order(10)
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[4, :, 8, 8].round().tolist() == [60, 10, 200]
    assert images[0, :, 0, 0].round().tolist() == [100, 100, 100]  # grey becomes RGB


def test_folders_at_two_sizes_are_two_data_sets(tmp_path):
    write_folder(tmp_path)
    sides = [load_dataset(folder_config(tmp_path, image_size=side)).image_size for side in (16, 24)]
    assert sides == [16, 24]


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="train"):
        load_dataset(folder_config(tmp_path / "absent"))
    write_folder(tmp_path / "mixed")
    (tmp_path / "mixed" / "test" / "dog").rename(tmp_path / "mixed" / "test" / "wolf")
    with pytest.raises(UserError, match="different classes"):
        load_dataset(folder_config(tmp_path / "mixed"))
    write_folder(tmp_path / "broken")
    (tmp_path / "broken" / "train" / "cat" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"1\.png"):
        load_dataset(folder_config(tmp_path / "broken", image_size=8))
