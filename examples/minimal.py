r"""Edge-popup in one file: find a subnetwork of a random Conv2 that classifies CIFAR-10.

    python examples/minimal.py DATA_FOLDER

It needs torch, torchvision and numpy only. On one CPU thread it finds, bit for bit, the masks of the package:

    hiddenweights train --model.arch conv2 --model.width 0.25 --data.name cifar10 \
        --data.root DATA_FOLDER --data.subset 5000 --data.protocol paper --data.augment none \
        --optim.batch-size 64 --train.epochs 8 --train.precision float32

Method: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?" (CVPR 2020). Expect 46.8% on
the test images after 8 epochs, in less than a minute. A random mask stays near 10%.
"""

import hashlib
import math
import sys

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def stream(*purpose: str | int) -> np.random.Philox:
    """Random bits that depend on the seed and the purpose alone, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def signs(source: np.random.Philox, n: int) -> Tensor:
    """n values of -1 and +1: one bit each."""
    words = source.random_raw((n + 63) // 64).astype("<u8").view(np.uint8)
    return 1 - 2 * torch.from_numpy(np.unpackbits(words, bitorder="little")[:n]).float()


def uniforms(source: np.random.Philox, n: int) -> Tensor:
    """n values in [0, 1): the upper 24 bits of each half of a word."""
    halves = source.random_raw((n + 1) // 2).astype("<u8").view("<u4")[:n]
    return torch.from_numpy((halves >> 8).astype(np.float32)) * 2.0**-24


def permutation(source: np.random.Philox, n: int) -> Tensor:
    """A random order of 0..n-1."""
    return torch.from_numpy(np.argsort(source.random_raw(n), kind="stable"))


def conv2(channels: int, side: int, classes: int, width: float) -> nn.Sequential:
    """Two convolutions and three fully connected layers; no biases."""
    maps, hidden = int(64 * width), int(256 * width)
    return nn.Sequential(
        nn.Conv2d(channels, maps, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(maps, maps, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(maps * (side // 2) ** 2, hidden, bias=False), nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False), nn.ReLU(),
        nn.Linear(hidden, classes, bias=False),
    )  # fmt: skip


def top_k(scores: Tensor, k: float) -> Tensor:
    """1 for the fraction k of the scores with the largest magnitude, 0 for the others."""
    order = scores.abs().flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(scores.numel()).index_fill(0, order[: max(1, round(k * scores.numel()))], 1.0)
    return mask.view(scores.shape)


def find_masks(
    network: nn.Module, images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor,
    *, k: float = 0.5, epochs: int = 8, batch: int = 64, lr: float = 0.1, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Train the scores of `network` and return its masks by name. Images are normalised, (n, c, h, w)."""
    # Random weights that are never trained (signed constant, std sqrt(2 / fan_in)), and a score for each.
    weights, scores = {}, {}
    for name, parameter in network.named_parameters():
        n, fan_in = parameter.numel(), math.prod(parameter.shape[1:])
        weight = signs(stream(seed, "weights", name), n) * np.float32(math.sqrt(2 / fan_in))
        score = (2 * uniforms(stream(seed, "scores", name), n) - 1) * np.float32(math.sqrt(1 / fan_in))
        layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
        weights[name] = weight.view(parameter.shape).contiguous(memory_format=layout)
        scores[name] = score.view(parameter.shape).contiguous(memory_format=layout).requires_grad_()

    def forward(x: Tensor) -> Tensor:
        # `straight` is 1 or 0, with the gradient of |score|, for kept and dropped weights alike.
        masked = {}
        for name, score in scores.items():
            straight = top_k(score.detach(), k) + (score.abs() - score.abs().detach())
            masked[name] = weights[name] * straight
        return torch.func.functional_call(network, masked, (x,))

    optimizer = torch.optim.SGD(scores.values(), lr=lr, momentum=0.9, weight_decay=1e-4, fused=True)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr / 2 * (1 + math.cos(math.pi * epoch / epochs))
        for index in permutation(stream(seed, "order", epoch), len(images)).split(batch):
            loss = F.cross_entropy(forward(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            correct = sum(
                (forward(x).argmax(1) == y).sum().item()
                for x, y in zip(test_images.split(1000), test_labels.split(1000), strict=True)
            )
        print(f"epoch {epoch + 1}: test accuracy {correct / len(test_labels):.2%}")
    return {name: top_k(score.detach(), k) for name, score in scores.items()}


def load(root: str, train: bool) -> tuple[Tensor, Tensor]:
    """CIFAR-10, normalised, channels_last in memory."""
    data = torchvision.datasets.CIFAR10(root, train=train, download=True)
    pixels = torch.from_numpy(data.data) / 255
    images = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2), torch.tensor(data.targets)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    images, labels = load(sys.argv[1], train=True)
    chosen = permutation(stream(0, "split"), len(images))[:5000].sort().values
    find_masks(conv2(3, 32, 10, 0.25), images[chosen], labels[chosen], *load(sys.argv[1], train=False))
