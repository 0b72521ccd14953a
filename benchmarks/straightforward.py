"""The straightforward implementation, as one would write it first. The fast paths are compared with it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

from hiddenweights.masking.rng import stream
from hiddenweights.masking.supermask import set_weights, weight_layers
from hiddenweights.masking.weights import draw_scores
from hiddenweights.models import build_network


class SortAndIndex(torch.autograd.Function):
    """The mask of the largest scores by a full sort and two indexed assignments."""

    @staticmethod
    def forward(ctx: object, magnitudes: Tensor, kept: int) -> Tensor:
        mask = torch.empty_like(magnitudes)
        order = magnitudes.flatten().sort().indices
        flat = mask.view(-1)
        flat.index_fill_(0, order[:-kept], 0)  # like `flat[...] = 0`, which a CUDA graph cannot record
        flat.index_fill_(0, order[-kept:], 1)
        return mask

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class SortedMask(nn.Module):
    """A parametrization like `hiddenweights.masking.masks.EdgePopup`, by `SortAndIndex`."""

    def __init__(self, scores: Tensor, k: float) -> None:
        super().__init__()
        self.scores, self.kept = nn.Parameter(scores), round(k * scores.numel())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * SortAndIndex.apply(self.scores.abs(), self.kept)


def network(
    arch: str, *, channels: int, image_size: int, classes: int, width: float, k: float, seed: int = 0
) -> nn.Module:
    """A supermask network with the weights and scores that ours has for `seed`, masked by sorting."""
    model = build_network(arch, channels=channels, image_size=image_size, classes=classes, width=width)
    model.requires_grad_(False)
    for owner, attribute, name in weight_layers(model):
        weight = getattr(owner, attribute)
        set_weights(weight, name, "signed_constant", seed)
        scores = draw_scores(weight.shape, stream(seed, "scores", name))
        parametrize.register_parametrization(owner, attribute, SortedMask(scores, k))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str = "cpu") -> float:
    """Fraction of the images that are classified correctly, read batch by batch."""
    model.eval()
    right, n = 0, 0
    for images, labels in batches:
        right += (model(images.to(device)).argmax(1) == labels.to(device)).sum().item()
        n += len(labels)
    return right / n


def trainer(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """A float32 SGD step that reads its metrics in every step."""
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    sums = [0.0, 0.0, 0.0]

    def step(images: Tensor, labels: Tensor) -> None:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        best = logits.topk(5).indices == labels[:, None]
        for i, value in enumerate((loss, best[:, 0].float().mean(), best.any(1).float().mean())):
            sums[i] += value.item()

    return step


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images that pass one by one through torchvision's transforms, like those of its own data sets."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], augment: bool
    ) -> None:
        # here: it takes 3 s, because it imports half of torch, and most benchmarks need none of it
        from torchvision import transforms
        from torchvision.transforms.functional import to_pil_image

        self.images, self.labels = [to_pil_image(image) for image in pixels], labels.tolist()
        augmentation = [transforms.RandomCrop(pixels.shape[-1], 4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [*(augmentation if augment else []), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader(images: PilImages, batch: int, workers: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches."""
    return DataLoader(images, batch, shuffle=True, num_workers=workers)
