"""A network that a user brings in a file."""

from pathlib import Path

import pytest
import torch

from hiddenweights import own
from hiddenweights.cells.inputs import check_code
from hiddenweights.config import METHODS
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import resolve
from hiddenweights.tickets.ticket import Ticket
from hiddenweights.training.train import Trainer

NETWORK = """
from torch import nn


def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, num_classes))


class Volume(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.deep, self.out = nn.Conv3d(1, 2, (1, 3, 3)), nn.Linear(72, num_classes)

    def forward(self, x):
        return self.out(self.deep(x[:, None]).flatten(1))


def wrong(num_classes):
    return 3


def fails(num_classes):
    raise RuntimeError("two\\nlines")
"""


@pytest.mark.parametrize("name", ["make", "Volume"])
def test_a_network_in_a_file_and_its_ticket(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    config = unflatten({"model.arch": f"my_nets.py:{name}", "train.epochs": 1, "data.subset": 200})
    assert own.plain(resolve(config).model.arch) == f"my_nets.py:{name}" != resolve(config).model.arch
    trainer = Trainer(config)
    (record,) = trainer.epochs()
    ticket = Ticket.from_bytes(trainer.ticket(record).to_bytes())
    with pytest.raises(UserError, match="needs your code"):
        ticket.network()
    monkeypatch.setattr(own, "_NAMED", {})
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(ticket.network(f"my_nets.py:{name}")(images), trainer.network.eval()(images))


@pytest.mark.parametrize("method", METHODS)
def test_the_code_is_checked_before_a_launch_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With each method of this package: only those of the user are code of the user."""
    (tmp_path / "my_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    init_from = {"model.init_from": "0" * 16} if method == "finetune" else {}
    check_code(resolve(unflatten({"model.arch": "my_nets.py:make", "model.method": method, **init_from})))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:make", "nowhere.py"),
        ("my_nets.py:absent", "make"),
        ("my_nets.py:wrong", "a int, not a"),
        ("my_nets.py:fails", "RuntimeError: two lines"),
    ],
)
def test_a_wrong_name_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    (tmp_path / "my_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    config = unflatten({"model.arch": name})
    with pytest.raises(UserError, match=f"^model.arch: .*{says}"):
        Trainer(config)
    with pytest.raises(UserError, match=f"^model.arch: .*{says}"):
        check_code(resolve(config))  # before a launch on a cluster, which may have the data elsewhere
