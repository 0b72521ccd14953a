"""What must never change: cells' identities and tickets' bytes, pinned to what earlier versions made."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.sweeps import experiments
from hiddenweights.tickets.ticket import read_ticket

CELLS = [
    ({}, "d26539757e118e13"),
    ({"seed": 3, "seeds.data": 4}, "44b0f388b0d9f005"),
    ({"model.arch": "resnet18", "model.k": 0.3, "data.name": "cifar10"}, "392911ba9215f2dc"),
    ({"model.method": "dense", "optim.optimizer": "adam", "model.arch": "conv6"}, "a52f42fdaac2b86c"),
    ({"model.method": "sampled", "model.arch": "conv8", "data.name": "cifar10"}, "831fd963dd73e483"),
    ({"model.method": "iterand", "model.arch": "conv4", "model.width": 2}, "f31d53b7ab24f989"),
    ({"model.method": "biprop", "model.k": 0.2}, "3ebda2e4617b5657"),
    (
        {"model.selection": "global", "model.distribution": "kaiming_normal", "model.scaled": True},
        "5f017cbf0b93ba84",
    ),
    (
        {"model.method": "finetune", "model.init_from": "0" * 16, "model.init_mask": "shuffled"},
        "123d5a8efd5b683e",
    ),
    ({"model.init_from": "0" * 16}, "703abc3108547621"),
    (
        {"model.arch": "torchvision/resnet50", "data.name": "folder:imagenet", "train.epochs": 5},
        "6da46fd9a540600a",
    ),
    ({"model.arch": "my.code:network", "data.subset": 500, "data.protocol": "paper"}, "a8d426a407421cea"),
    ({"optim.batch_size": 60, "optim.lr": 1, "optim.label_smoothing": 0.1}, "435910eb8de470b2"),
    ({"train.precision": "bfloat16", "train.threads": 4, "train.device": "cuda:1"}, "4a31e6bd64753c0f"),
]


@pytest.mark.parametrize(("fields", "cell"), CELLS)
def test_a_cells_identity(fields: dict[str, object], cell: str) -> None:
    assert cell_id(unflatten(fields)) == cell


# Without those of the study, which grow with it.
SWEEPS = {
    "quickstart": "72 86f6b5cd3e1e2ffc",
    "depth": "240 e127a3f543a858ff",
    "width": "240 6cc4ddd3fb61cb2f",
    "fixed_weights": "70 be518fdca6063e95",
    "sampled": "120 b66acaeff5d5313e",
    "distributions": "450 78e7c95ffd1e77e0",
    "imagenet": "50 18e28221950f9fc7",
    "imagenet_modern": "30 676d9cd2a1c31de8",
    "imagenet_k": "50 70193a4c65722e2a",
    "scaled": "100 dea18612a24f103d",
    "resnet18": "55 7244cd6047a8ce15",
    "shallow": "90 82c91e2c5783ee53",
    "control": "400 f5cdc88714a1587f",
    "lottery": "155 82842f361179dcfb",
    "tune_lr": "192 c5fdf3828603ebf2",
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweeps_cells(name: str) -> None:
    ids = [*experiments.sweep(name).cells()]
    assert f"{len(ids)} {hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}" == SWEEPS[name]


def test_a_tickets_bytes() -> None:
    """From a made mask, so that no platform's arithmetic is in it."""
    of = read_ticket(Path(__file__).with_name("linear.ticket"))
    numbers = torch.arange(64 * 10).view(10, 64)
    ticket = replace(
        of,
        config=unflatten({"model.method": "edge_popup"}),
        masks={"sparse": numbers % 11 == 0, "dense": numbers % 7 != 0, "all": numbers >= 0},
        gains={},
        state={"bias": torch.arange(10, dtype=torch.float32)},
        record={"epoch": 3, "test_accuracy": 0.5},
        versions={"python": "3.11.0", "torch": "2.9.0"},
    )
    content = ticket.to_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (
        1691,
        "c09c629dfd167fdbf309422ea85bbba921709a39a68c80a18a3b20b5dbed96f6",
    )
