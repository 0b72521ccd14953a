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


def wrong(num_classes):
    return 3
"""


def test_a_network_in_a_file_and_its_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    config = unflatten({"model.arch": "my_nets.py:make", "train.epochs": 1, "data.subset": 200})
    assert own.plain(resolve(config).model.arch) == "my_nets.py:make" != resolve(config).model.arch
    trainer = Trainer(config)
    (record,) = trainer.epochs()
    ticket = Ticket.from_bytes(trainer.ticket(record).to_bytes())
    with pytest.raises(UserError, match="needs your code"):
        ticket.network()
    monkeypatch.setattr(own, "_NAMED", {})
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(ticket.network("my_nets.py:make")(images), trainer.network.eval()(images))


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
    [("nowhere.py:make", "nowhere.py"), ("my_nets.py:absent", "make"), ("my_nets.py:wrong", "a int, not a")],
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
