"""ImageNet: images that a core decodes per second, and the steps of a GPU.

`python -m benchmarks.imagenet decode`: a minute on any machine. It makes JPEGs of ImageNet's usual size and
compares our reading, random crop, flip and resize with the usual transforms on Pillow, and with other
decoders if they are installed.

`python -m benchmarks.imagenet step`: a minute on an H100. ResNet-50 and Wide ResNet-50 on random images,
masked against dense, as the trainer takes the step. tests/test_fast_gpu.py runs it on a CPU in miniature.
"""

import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, step
from benchmarks.measure import Row, compare, race, readable, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.images.dataset import Dataset, Images
from hiddenweights.images.decoding import Cut, Request, decode_one

IMAGES = 100

# Name: architecture, width, images per step, side, classes.
CASES = {
    "resnet50": ("torchvision/resnet50", 1.0, 256, 224, 1000),
    "wide_resnet50": ("torchvision/wide_resnet50_2", 1.0, 256, 224, 1000),
}


# --- decoding ----------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int = IMAGES) -> list[str]:
    """Write JPEGs of 500 x 375 pixels and about 87 kB, with smooth shapes and fine noise like a camera's."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(float)
        noisy = (smooth + 26 * rng.normal(size=(375, 500, 1))).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number}.JPEG"))
        Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(0.5)).save(paths[-1], quality=90)
    return paths


def pillow_transforms() -> Callable[[str], Any]:
    """torchvision's usual training transforms, up to the tensor of bytes."""
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    return lambda path: transform(Image.open(path).convert("RGB"))


def decoders() -> dict[str, Callable[[str], Any]]:
    """Only decoding, from file to RGB pixels, with each installed library."""
    from torchcodec.decoders import decode_image

    found: dict[str, Callable[[str], Any]] = {
        "torchcodec": lambda path: decode_image(path, mode="RGB"),
        "Pillow": lambda path: np.asarray(Image.open(path).convert("RGB")),
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda path: simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB")
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda path: cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    return found


def decode(rounds: int = 7, count: int = IMAGES) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), count)

        def ours(how: Cut) -> Callable[[], None]:
            request = Request(paths, 224, how, seed=0, epoch=0, images=[*range(count)])
            return lambda: _all(lambda place: decode_one(request, place), range(count))

        usual = pillow_transforms()
        times = race(
            {"Pillow": lambda: _all(usual, paths), "training": ours("random"), "test": ours("centre")},
            rounds=rounds,
        )
        alone = race(
            {name: (lambda run=run: _all(run, paths)) for name, run in decoders().items()}, rounds=rounds
        )
    rows = [compare("read, decode, crop, flip: Pillow / ours", times, "Pillow", "training", "")]
    for name, what in (("training", "training"), ("test", "test")):
        seconds = statistics.median(times[name]) / count
        rows.append(
            Row(
                what=f"images per second and core, {what}",
                ratio=round(1 / seconds),
                goal="",
                baseline="500 x 375 pixels to 224 x 224",
                ours=f"an image: {readable(seconds)}",
                rounds=rounds,
            )
        )
    rows += [
        compare(f"read and decode alone: {name} / torchcodec", alone, name, "torchcodec", "")
        for name in alone
        if name != "torchcodec"
    ]
    report("decode", rows)
    return rows


def _all(run: Callable[[Any], Any], of: Any) -> None:
    for one in of:
        run(one)


# --- steps on a GPU ----------------------------------------------------------------------------------------


def random_dataset(side: int, classes: int, n: int) -> Dataset:
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    images = Images(pixels.contiguous(memory_format=torch.channels_last), torch.randint(0, classes, (n,)))
    return Dataset(images, images, classes, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def steps_of(case: str, peak: float, device: str = "cuda", rounds: int = 10, repeats: int = 5) -> list[Row]:
    """The time of a masked step over a dense one, images per second, memory, and share of `peak` (FLOP/s)."""
    arch, width, batch, side, classes = CASES[case]
    dataset = random_dataset(side, classes, batch)
    contestants: dict[str, Callable[[], object]] = {}
    memory: dict[str, float] = {}
    for name, method in (("dense", "dense"), ("supermask", "edge_popup")):
        config = CellConfig(
            model=ModelConfig(arch=arch, width=width, method=method, k=0.3),  # type: ignore[arg-type]
            data=DataConfig(name="cifar10"),  # the random images take its place
            optim=OptimConfig(batch_size=batch),
            train=TrainConfig(precision="bfloat16", device=device),
        )
        before = _allocated(device)
        contestants[name] = step.our_step(config, dataset)
        contestants[name]()
        memory[name] = (_most_allocated(device) - before) / 2**30
    with FlopCounterMode(display=False) as counter:
        contestants["dense"]()
    times = race(contestants, rounds=rounds, repeats=repeats, device=device)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    masked = f"a step of {batch}: {readable(seconds['supermask'])}"
    figures = [
        ("images per second", batch / seconds["supermask"], "", f"dense: {batch / seconds['dense']:.0f}"),
        ("memory, GiB", memory["supermask"], "", f"dense: {memory['dense']:.2f}"),
        (
            "share of the matrix rate, %",
            100 * counter.get_total_flops() / seconds["supermask"] / peak,
            "",
            f"matrix product: {peak / 1e12:.3g} TFLOP/s",
        ),
    ]
    return [
        # `compare` gives baseline / ours: the masked step is the baseline here, so that 1.05 is 5% slower.
        compare(f"{case}: supermask / dense", times, "supermask", "dense", "<= 1.05, aim 1.02"),
        *(
            Row(
                what=f"{case}: {what}",
                ratio=round(value, 3),
                goal=goal,
                baseline=base,
                ours=masked,
                rounds=rounds,
            )
            for what, value, goal, base in figures
        ),
    ]


def _allocated(device: str) -> float:
    if device != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _most_allocated(device: str) -> float:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0.0


def main(parts: list[str]) -> int:
    if not parts or set(parts) - {"decode", "step"}:
        print(__doc__, file=sys.stderr)
        return 2
    if "decode" in parts:
        torch.set_num_threads(1)
        decode()
    if "step" in parts:
        if not torch.cuda.is_available():
            print("no GPU here; no step was measured", file=sys.stderr)
            return 1
        peak = gpu.matrix_rate()
        report("imagenet_gpu", [row for case in CASES for row in steps_of(case, peak)], "cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
