"""Image folders: ImageNet's layouts, what becomes of bad files, and batches for any number of processes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torchvision.transforms import v2

from hiddenweights.config import DataConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.images.dataset import load_dataset, split
from hiddenweights.images.decoding import Corrupt, Decoder, cut, random_crop, read_image
from hiddenweights.images.folder import ImageFiles, image_folder
from hiddenweights.images.stream import StreamedBatches
from hiddenweights.tickets.ticket import Ticket
from hiddenweights.training.train import Trainer

WNIDS = ("n01440764", "n01443537", "n02102040")
ZERO, ONE = (0.0,) * 3, (1.0,) * 3


def photograph(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """An image with structure at every scale, so that two cuts of it differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(root: Path, train: int = 4, val: int = 2) -> None:
    for part, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(WNIDS):
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                photograph(100 * label + i + (part == "val") * 50).save(folder / f"{wnid}_{i}.JPEG")


def flatten_val(root: Path) -> list[tuple[str, str]]:
    """Move val's images out of their class folders, in an order that mixes classes; (file, wnid)."""
    files = sorted((root / "val").rglob("*.JPEG"), key=lambda file: file.name[::-1])
    listed = []
    for number, file in enumerate(files):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        listed.append((name, file.parent.name))
        file.rename(root / "val" / name)
    for wnid in WNIDS:
        (root / "val" / wnid).rmdir()
    return listed


def write_devkit(root: Path, listed: list[tuple[str, str]]) -> None:
    """ILSVRC's numbers of the classes are in no order; beyond the classes it has inner nodes of WordNet."""
    folder = root / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    numbers = dict(zip(WNIDS, (2, 3, 1), strict=True))
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{numbers[wnid]}\n" for _, wnid in listed)
    )
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    rows = [(number, wnid) for wnid, number in numbers.items()] + [(1001, "n00001740")]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})


LISTS = {
    "synset_labels.txt": lambda listed: "".join(f"{wnid}\n" for _, wnid in listed),
    "val.txt": lambda listed: "".join(f"{name} {WNIDS.index(wnid)}\n" for name, wnid in reversed(listed)),
    "val_annotations.txt": lambda listed: "".join(f"{name}\t{wnid}\t0\t0\t9\t9\n" for name, wnid in listed),
    "LOC_val_solution.csv": lambda listed: (
        "ImageId,PredictionString\n"
        + "".join(f"{Path(name).stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n" for name, wnid in listed)
    ),
}


@pytest.mark.parametrize("kind", ["by class", *LISTS, "devkit"])
def test_every_layout_of_val_gives_each_image_its_class(kind: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "test").mkdir()  # ImageNet's own, which has no labels
    photograph(0).save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    by_class = image_folder(tmp_path, 16, True)[1]
    expected = [read_image(by_class.path(i)).sum().item() for i in range(len(by_class))]
    labels = dict(zip(expected, by_class.labels.tolist(), strict=True))
    if kind != "by class":
        listed = flatten_val(tmp_path)
        if kind == "devkit":
            write_devkit(tmp_path, listed)
        else:
            (tmp_path / "val" / kind).write_text(LISTS[kind](listed))
    train, test, classes = image_folder(tmp_path, 16, True)
    assert (len(train), len(test), classes) == (12, 6, 3)
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    found = {read_image(test.path(i)).sum().item(): int(test.labels[i]) for i in range(len(test))}
    assert found == labels


def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path: Path) -> None:
    write_images(tmp_path)
    for wnid in WNIDS:
        folder = tmp_path / "train" / wnid
        files = [*folder.iterdir()]
        (folder / "images").mkdir()
        for file in files:
            file.rename(folder / "images" / file.name)
        (folder / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    listed = flatten_val(tmp_path)
    for part in ("val", "test"):  # that of test/ has no labels
        (tmp_path / part / "images").mkdir(parents=True)
    for name, _ in listed:
        (tmp_path / "val" / name).rename(tmp_path / "val" / "images" / name)
    (tmp_path / "val" / "val_annotations.txt").write_text(LISTS["val_annotations.txt"](listed))
    photograph(0).save(tmp_path / "test" / "images" / "test_0.JPEG")
    train, test, classes = image_folder(tmp_path, 16, True)
    assert (len(train), classes) == (12, 3)
    assert [Path(test.path(i)).name for i in range(len(test))] == [name for name, _ in listed]
    assert test.labels.tolist() == [WNIDS.index(wnid) for _, wnid in listed]


def test_a_test_folder_of_classes_comes_before_val(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    flat = tmp_path / "val"
    flat.mkdir()
    photograph(0).save(flat / "some.JPEG")
    assert len(image_folder(tmp_path, 16, True)[1]) == 6
    (tmp_path / "test" / WNIDS[0]).rename(tmp_path / "test" / "other")
    with pytest.raises(UserError, match="different classes"):
        image_folder(tmp_path, 16, True)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: [file.unlink() for file in (root / "train" / WNIDS[1]).iterdir()], f"train/{WNIDS[1]}"),
        (lambda root: flatten_val(root), "list of labels"),
        (lambda root: (root / "val").rename(root / "validation"), "val/CLASS"),
        (lambda root: _list_labels(root, lambda listed: listed[1:]), "5 labels for the 6 images"),
        (lambda root: _list_labels(root, lambda listed: [*listed[1:], ("", "n99999999")]), "n99999999"),
        (lambda root: _list_labels(root, lambda listed: []), "is empty"),
    ],
)
def test_what_a_folder_lacks_is_named(damage, named: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=rf"data\.root.*{named}"):
        image_folder(tmp_path, 16, True)


def _list_labels(root: Path, change) -> None:
    (root / "synset_labels.txt").write_text(LISTS["synset_labels.txt"](change(flatten_val(root))))


# --- one image ---------------------------------------------------------------------------------------------


def test_any_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    image = photograph(1)
    for mode in ("RGB", "L", "CMYK"):
        image.convert(mode).save(tmp_path / f"{mode}.jpeg", quality=95)
    for mode in ("RGBA", "P", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
    image.save(tmp_path / "bitmap.bmp")
    for name in ("deep.png", "deep.tif"):  # 16 bits
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / name)
    image.save(tmp_path / "png.jpeg", format="PNG")  # ImageNet has one such
    for path in tmp_path.iterdir():
        expected = np.asarray(image if path.stem == "deep" else Image.open(path).convert("RGB"))
        if path.stem == "deep":
            expected = np.repeat(np.asarray(image.convert("L"))[..., None], 3, 2)
        got = read_image(str(path))
        assert (got.dtype, got.shape) == (torch.uint8, (3, 48, 64)), path
        assert np.abs(got.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 3, path


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_what_is_no_image_is_corrupt(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpeg"
    photograph(1).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(Corrupt):
        read_image(str(path))
    with pytest.raises(FileNotFoundError):  # a share that has gone is another matter
        read_image(str(tmp_path / "absent.jpeg"))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (10, 200), (7, 7), (40, 40)])
def test_the_cuts_are_torchvisions(height: int, width: int) -> None:
    image = torch.from_numpy(np.array(photograph(3, height, width))).permute(2, 0, 1)
    for how, shorter in (("square", 28), ("centre", 32)):
        expected = v2.CenterCrop(28)(v2.Resize(shorter, antialias=True)(image))
        assert_same_pixels(cut(image, 28, how), expected)
    numbers = np.random.default_rng(0).random(41, dtype=np.float32)
    box = random_crop(height, width, numbers)
    expected = v2.functional.resized_crop(image, *box, [28, 28], antialias=True)
    expected = expected.flip(2) if numbers[-1] < 0.5 else expected
    assert_same_pixels(cut(image, 28, "random", numbers), expected)


def assert_same_pixels(ours: Tensor, torchvisions: Tensor) -> None:
    """Without AVX2 torchvision resizes in float32, and its pixels are up to one level of 255 different."""
    assert ours.shape == torchvisions.shape
    levels = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1
    assert (ours.int() - torchvisions.int()).abs().max() <= levels


def test_random_crops_are_distributed_as_torchvisions() -> None:
    height, width, n = 300, 400, 3000
    rng = np.random.default_rng(0)
    ours = np.array([random_crop(height, width, rng.random(41, dtype=np.float32)) for _ in range(n)])
    torch.manual_seed(0)
    drawn = v2.RandomResizedCrop(8)
    boxes = (drawn.make_params([torch.empty(3, height, width)]) for _ in range(n))
    theirs = np.array([[box[name] for name in ("top", "left", "height", "width")] for box in boxes])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
    error = np.sqrt((ours.var(0) + theirs.var(0)) / n)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.08)


# --- batches -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    write_images(tmp_path)
    return image_folder(tmp_path, 16, True)[0]


def epoch(
    images: ImageFiles, epoch: int = 0, processes: int = 0, ranks: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch, those of all ranks put together again."""
    decoder = Decoder(processes)
    parts = [
        [
            *StreamedBatches(images, ZERO, ONE, decoder, rank, ranks).shuffled(
                5, seed=3, epoch=epoch, augment=True
            )
        ]
        for rank in range(ranks)
    ]
    return [
        (torch.cat([x for x, _ in batch]), torch.cat([y for _, y in batch]))
        for batch in zip(*parts, strict=True)
    ]


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


def test_an_epoch_is_the_same_for_any_number_of_processes(files: ImageFiles) -> None:
    alone = epoch(files)
    assert [len(labels) for _, labels in alone] == [5, 5, 2]
    assert sorted(torch.cat([labels for _, labels in alone]).tolist()) == sorted(files.labels.tolist())
    for ranks in (2, 3, 4):
        assert same(alone, epoch(files, ranks=ranks))
    assert same(alone, epoch(files, processes=2))
    assert not same(alone, epoch(files, epoch=1))


def test_decoding_processes_stay_and_take_one_pass_after_the_other(files: ImageFiles) -> None:
    decoder = Decoder(2)
    batches = StreamedBatches(files, ZERO, ONE, decoder)
    state, before = torch.get_rng_state(), set(psutil.Process().children())

    def passes() -> Iterator[list[tuple[Tensor, Tensor]]]:
        for number in range(2):
            yield [*batches.shuffled(5, seed=3, epoch=number, augment=True)]
            yield [*batches.in_order(4)]

    next(batches.in_order(4))  # begun and left
    trained, tested, trained_more, tested_again = passes()
    assert len(set(psutil.Process().children()) - before) == 2
    assert same(trained, epoch(files, 0))
    assert same(trained_more, epoch(files, 1))
    assert same(tested, tested_again)
    assert torch.equal(torch.get_rng_state(), state)  # which sampled masks and dropout draw from
    decoder.close()
    assert not set(psutil.Process().children()) - before


def test_a_corrupt_file_gives_way_to_the_next_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path)
    intact = image_folder(tmp_path, 16, True)[0]
    bad = Path(intact.path(3))
    bad.write_bytes(bad.read_bytes()[:300])
    monkeypatch.setattr("hiddenweights.images.decoding.CORRUPT_LIMIT", 0.1)
    batches = StreamedBatches(intact, ZERO, ONE, Decoder(0))
    with caplog.at_level(logging.WARNING):
        ((images, labels),) = batches.in_order(12)
    assert labels.tolist() == [0, 0, 0, 1] + [1] * 4 + [2] * 4
    assert torch.equal(images[3], images[4])
    assert [*batches.corrupt] == [str(bad)]
    assert str(bad) in caplog.text
    assert same(epoch(intact), epoch(intact, processes=1))
    assert same(epoch(intact), epoch(intact, ranks=2))

    Path(intact.path(4)).write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 12 images do not read") as refused:
        _ = [*batches.in_order(12)]
    assert str(bad) in str(refused.value)


def test_a_corrupt_file_of_any_name_leaves_the_checkpoint_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    monkeypatch.setattr("hiddenweights.images.decoding.CORRUPT_LIMIT", 0.5)
    for part in ("train", "val"):  # one of them is held out or not, whatever the seed
        (tmp_path / part / WNIDS[0] / "Screenshot 9.41\u202fAM.png").write_bytes(b"")
    config = unflatten({
        "data.name": "folder:pets", "data.root": str(tmp_path), "data.image_size": 8, "model.arch": "fc",
        "model.width": 0.1, "train.epochs": 1,
    })  # fmt: skip
    folder = tmp_path / "checkpoint"
    ((record,), trainer) = ([*(made := Trainer(config, folder, loaders=0)).epochs()], made)
    assert record["corrupt_images"] == 2
    assert "u202f" in record["first_corrupt_image"]
    assert Trainer(config, folder, loaders=0).restored == 1
    assert Ticket.from_bytes(trainer.ticket(record).to_bytes()).record["corrupt_images"] == 2


def test_a_sample_is_tried_before_training(tmp_path: Path) -> None:
    write_images(tmp_path)
    config = DataConfig(name="folder:pets", root=str(tmp_path), image_size=8, augment="resized_crop_flip")
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (12, 6, 3)
    parts = split(dataset, config, seed=1)
    assert parts.validation is not None
    names = [
        set(part.names.tolist()) for part in (parts.train, parts.validation) if isinstance(part, ImageFiles)
    ]
    assert [len(part) for part in names] == [11, 1]
    assert not names[0] & names[1]


def test_the_augmentation_is_for_image_folders_and_an_identity_of_its_own() -> None:
    with pytest.raises(UserError, match=r"data\.augment.*cifar10"):
        unflatten({"data.name": "cifar10", "data.augment": "resized_crop_flip"})
    plain = {"data.name": "folder:imagenet"}
    kinds = [{}, {"data.augment": "resized_crop_flip"}, {"data.augment": "none"}]
    assert len({cell_id(unflatten({**plain, **kind})) for kind in kinds}) == 3
