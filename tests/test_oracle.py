"""Ten steps of the trainer on CIFAR-10 against the same ten steps written anew, from the files to the masks.

Nothing here calls the package but to train and to read what it learnt. Streams, splits, augmentation,
initialisation, selection, the straight-through gradient and SGD are written again, in the plainest way,
from their descriptions.
"""

import hashlib
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from hiddenweights.flat import unflatten
from hiddenweights.masking.supermask import current_masks, frozen_weights, masks_of
from hiddenweights.training import train
from hiddenweights.training.train import Trainer

K, STEPS, BATCH, HELD_OUT, SEED = 0.5, 10, 8, 16, 4
USED = STEPS * BATCH + HELD_OUT
SHAPES = {
    "0.weight": (64, 3, 3, 3),
    "2.weight": (64, 64, 3, 3),
    "5.weight": (128, 64, 3, 3),
    "7.weight": (128, 128, 3, 3),
    "11.weight": (256, 8192),
    "13.weight": (256, 256),
    "15.weight": (10, 256),
}


def generator(*purpose) -> np.random.Philox:
    text = "/".join(str(part) for part in purpose)
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))


def shuffled(n: int, *purpose) -> list[int]:
    drawn = generator(*purpose).random_raw(n).tolist()
    return sorted(range(n), key=lambda i: drawn[i])


def lowest_bits(n: int, source: np.random.Philox) -> list[int]:
    """The bits of the words, the lowest of each first."""
    return [int(word) >> bit & 1 for word in source.random_raw(-(-n // 64)) for bit in range(64)][:n]


def low_and_high_halves(n: int, source: np.random.Philox) -> list[int]:
    words = source.random_raw(n // 2).tolist()
    return [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]


def read_cifar10(root) -> tuple[np.ndarray, list[int]]:
    pixels, labels = [], []
    for number in range(1, 6):
        with (root / "cifar-10-batches-py" / f"data_batch_{number}").open("rb") as file:
            part = pickle.load(file, encoding="bytes")
        pixels.append(part[b"data"].reshape(-1, 3, 32, 32))
        labels += part[b"labels"]
    return np.concatenate(pixels), labels


def draw_batches(root) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixels, labels = read_cifar10(root)
    used = shuffled(50_000, SEED, "split")[:USED]
    train = sorted(used[HELD_OUT:])
    source = generator(SEED, "augment", 0)
    offsets = [half * 9 >> 32 for half in low_and_high_halves(2 * len(train), source)]
    flips = lowest_bits(len(train), source)
    images = []
    for i, index in enumerate(train):
        picture = Image.fromarray(pixels[index].transpose(1, 2, 0))
        picture = TF.crop(TF.pad(picture, 4), offsets[i], offsets[len(train) + i], 32, 32)
        picture = TF.hflip(picture) if flips[i] else picture
        images.append(TF.normalize(TF.to_tensor(picture), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)))
    order = shuffled(len(train), SEED, "order", 0)
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [
        (torch.stack([images[i] for i in part]), torch.tensor([labels[train[i]] for i in part]))
        for part in parts
    ]


def signed_constant(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    bits = lowest_bits(math.prod(shape), generator(SEED, "weights", name))
    signs = torch.tensor([-1.0 if bit else 1.0 for bit in bits])
    return (signs * math.sqrt(2 / math.prod(shape[1:]))).reshape(shape)


def uniform_scores(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    n = math.prod(shape)
    halves = np.array(low_and_high_halves(n + n % 2, generator(SEED, "scores", name))[:n])
    uniform = torch.from_numpy((halves >> 8) / 2**24 * 2 - 1).float()
    return (uniform * math.sqrt(1 / math.prod(shape[1:]))).reshape(shape)


def top_k(scores: torch.Tensor) -> torch.Tensor:
    magnitudes = scores.abs().flatten().numpy()
    order = np.argsort(-magnitudes, kind="stable")
    mask = np.zeros(magnitudes.size, np.float32)
    mask[order[: round(K * magnitudes.size)]] = 1
    return torch.from_numpy(mask).reshape(scores.shape)


def conv4(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    # In the trainer's memory format, so that the same kernels add up in the same order.
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.relu(F.conv2d(x, weights["0.weight"], padding=1))
    x = F.max_pool2d(F.relu(F.conv2d(x, weights["2.weight"], padding=1)), 2)
    x = F.relu(F.conv2d(x, weights["5.weight"], padding=1))
    x = F.max_pool2d(F.relu(F.conv2d(x, weights["7.weight"], padding=1)), 2)
    x = F.relu(F.linear(x.flatten(1), weights["11.weight"]))
    return F.linear(F.relu(F.linear(x, weights["13.weight"])), weights["15.weight"])


def in_format(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def train_anew(root) -> tuple[dict, dict, float]:
    """Weights and scores after one epoch, and the epoch's mean loss."""
    weights = {name: signed_constant(name, shape) for name, shape in SHAPES.items()}
    scores = {name: uniform_scores(name, shape) for name, shape in SHAPES.items()}
    velocity = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    losses = []
    for images, labels in draw_batches(root):
        effective = {name: in_format(weights[name] * top_k(scores[name])).requires_grad_() for name in SHAPES}
        loss = F.cross_entropy(conv4(images, effective), labels)
        loss.backward()
        losses.append(loss.item())
        for name in SHAPES:
            gradient = scores[name].sign() * weights[name] * effective[name].grad
            velocity[name] = 0.9 * velocity[name] + gradient + 1e-4 * scores[name]
            scores[name] = scores[name] - 0.1 * velocity[name]
    return weights, scores, sum(losses) / len(losses)


@pytest.mark.slow(seconds=11)
@pytest.mark.arithmetic
def test_ten_steps_of_conv4_on_cifar10_are_those_written_anew(data_root, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *_: (0.0, 0.0))  # 10,000 images, not in question here
    trainer = Trainer(
        unflatten(
            {
                "model.arch": "conv4", "model.k": K, "data.name": "cifar10", "data.root": str(data_root),
                "data.subset": USED, "data.validation": HELD_OUT / USED, "optim.batch_size": BATCH,
                "train.epochs": 100, "train.device": "cpu", "train.precision": "float32", "seed": SEED,
            }
        )
    )  # fmt: skip
    record = next(trainer.epochs())
    weights, scores, loss = train_anew(data_root)
    assert record["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert [*masks_of(trainer.network)] == [*SHAPES]
    for name, mask in masks_of(trainer.network).items():
        assert torch.equal(frozen_weights(trainer.network)[name], weights[name])
        difference = (mask.scores.detach() - scores[name]).abs().max().item()
        magnitude = scores[name].abs()
        kept = top_k(scores[name]).bool()
        # Where the two sum in another order, scores closer to the cut than they differ may change sides.
        near = (magnitude - magnitude[kept].min()).abs() <= 2 * difference
        differing = (current_masks(trainer.network)[name] != kept) & ~near
        moved = (uniform_scores(name, SHAPES[name]) - scores[name]).abs().max().item()
        assert difference < 1e-6 < moved / 100, name
        assert not differing.any(), name
        assert near.float().mean() < 1e-3, name
