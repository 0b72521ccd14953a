"""How exact the scores' first gradient is: `python -m benchmarks.gradients`, 3 minutes on one core.

A network with many layers and few weights kept passes on least before training. One batch of CIFAR-10, from
the folder HIDDENWEIGHTS_DATA, full width, signed constant weights; the gradient in float32 and in bfloat16
against that in float64.
"""

import copy
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.training.train import Trainer


def gradient(network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of all scores as one vector, in float64. `dtype` is that of the layers."""
    network = copy.deepcopy(network)
    if dtype == torch.float64:
        network, images = network.double(), images.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = network(images)
    logits = logits.float() if dtype == torch.bfloat16 else logits
    F.cross_entropy(logits, labels).backward()
    gradients = [p.grad.double().flatten() for p in network.parameters() if p.grad is not None]
    return logits.detach().double(), torch.cat(gradients)


def run() -> list[Row]:
    rows = []
    for arch in ("conv2", "conv4", "conv6", "conv8"):
        for k in (0.1, 0.3, 0.5):
            config = CellConfig(
                model=ModelConfig(arch=arch, k=k),
                data=DataConfig(name="cifar10", root=os.environ["HIDDENWEIGHTS_DATA"]),
                optim=OptimConfig(batch_size=128),
                train=TrainConfig(device="cpu"),
            )
            trainer = Trainer(config)
            batch = next(trainer.train_batches.shuffled(128, seed=0, epoch=0, augment=False))
            logits, exact = gradient(trainer.network, *batch, torch.float64)
            cosines = {
                dtype: F.cosine_similarity(gradient(trainer.network, *batch, dtype)[1], exact, dim=0).item()
                for dtype in (torch.float32, torch.bfloat16)
            }
            rows.append(
                Row(
                    what=f"{arch}, k = {k}: cosine of bfloat16's gradient and float64's",
                    ratio=round(cosines[torch.bfloat16], 4),
                    goal="1",
                    baseline=f"standard deviation of the logits: {logits.std():.1e}",
                    ours=f"float32: {cosines[torch.float32]:.4f}",
                    rounds=1,
                )
            )
    report("gradients", rows)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    run()
