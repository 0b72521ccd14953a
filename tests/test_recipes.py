"""Recipes, schedules and the identity of a cell."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import flatten, from_dict, to_dict, unflatten
from hiddenweights.identity import cell_id, resolve
from hiddenweights.training.optim import build_optimizer, learning_rate


def cell(**flat) -> CellConfig:
    """``model__k=0.5`` names the field ``model.k``."""
    return unflatten({name.replace("__", "."): value for name, value in flat.items()})


def optim(arch: str, method: str, **flat):
    return resolve(cell(model__arch=arch, model__method=method, **flat)).optim


# Columns: lr, weight decay, momentum, batch size, schedule, warm-up epochs, label smoothing.
SGD = ("sgd", "cosine", 0, 0.0)
TABLE = [
    *[(a, m, None, 0.1, 1e-4, 0.9, 128, *SGD) for a in ("linear", "fc", "conv2", "conv4", "conv6", "conv8")
      for m in ("edge_popup", "random", "iterand", "biprop")],
    ("resnet18", "edge_popup", None, 0.1, 5e-4, 0.9, 256, *SGD),
    ("resnet50", "edge_popup", None, 0.1, 5e-4, 0.9, 256, *SGD),
    ("conv2", "dense", None, 0.01, 1e-4, 0.9, 128, *SGD),
    ("conv8", "dense", "sgd", 0.01, 1e-4, 0.9, 128, *SGD),
    ("fc", "dense", None, 0.1, 1e-4, 0.9, 128, *SGD),
    ("linear", "dense", None, 0.1, 1e-4, 0.9, 128, *SGD),
    ("conv2", "dense", "adam", 2e-4, 0.0, 0.0, 60, "adam", "constant", 0, 0.0),
    ("conv4", "dense", "adam", 3e-4, 0.0, 0.0, 60, "adam", "constant", 0, 0.0),
    ("conv6", "dense", "adam", 3e-4, 0.0, 0.0, 60, "adam", "constant", 0, 0.0),
    ("conv8", "dense", "adam", 3e-4, 0.0, 0.0, 60, "adam", "constant", 0, 0.0),
    ("fc", "dense", "adam", 1.2e-3, 0.0, 0.0, 60, "adam", "constant", 0, 0.0),
    ("resnet18", "dense", None, 0.1, 5e-4, 0.9, 256, *SGD),
    *[(a, "sampled", None, 200.0, 0.0, 0.9, 128, *SGD) for a in ("conv2", "conv4", "conv6")],
    ("conv8", "sampled", None, 800.0, 0.0, 0.9, 128, *SGD),
    ("resnet18", "sampled", None, 400.0, 0.0, 0.9, 256, *SGD),
    *[(a, "dense", None, 0.1, 1e-4, 0.9, 128, *SGD) for a in ("convs.mine:net", "resnets:net")],
    ("torchvision/resnet50", "sampled", None, 400.0, 0.0, 0.9, 256, *SGD),
    *[("torchvision/resnet50", m, None, 0.256, 2**-15, 0.875, 256, "sgd", "cosine", 5, 0.1)
      for m in ("edge_popup", "dense")],
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(str(x) for x in row[:3]))
def test_recipes(row):
    arch, method, asked, lr, decay, momentum, batch, optimizer, schedule, warmup, smoothing = row
    got = optim(arch, method, optim__optimizer=asked)
    assert dataclasses.astuple(got) == (
        optimizer, lr, decay, momentum, batch, schedule, warmup, smoothing,
    )  # fmt: skip


def test_any_field_of_a_recipe_can_be_overridden_by_itself():
    plain = optim("conv4", "edge_popup")
    for name, value in (("lr", 0.3), ("batch_size", 32), ("schedule", "constant"), ("warmup_epochs", 2)):
        assert optim("conv4", "edge_popup", **{f"optim__{name}": value}) == dataclasses.replace(
            plain, **{name: value}
        )
    assert optim("conv4", "edge_popup", optim__weight_decay=0.0).weight_decay == 0


def test_distributions_by_default():
    for method, expected in (
        ("edge_popup", "signed_constant"), ("sampled", "signed_constant"), ("random", "signed_constant"),
        ("iterand", "signed_constant"), ("dense", "kaiming_normal"), ("biprop", "kaiming_normal"),
    ):  # fmt: skip
        assert resolve(cell(model__method=method)).model.distribution == expected


# --- schedule and optimiser --------------------------------------------------------------------------------


def test_the_cosine_steps_once_an_epoch_from_the_full_rate_towards_zero():
    config = optim("conv4", "edge_popup")
    for epoch in (0, 1, 50, 99):
        expected = 0.1 / 2 * (1 + math.cos(math.pi * epoch / 100))
        assert learning_rate(config, epoch, 100) == pytest.approx(expected)
    assert learning_rate(config, 0, 100) == 0.1
    assert 0 < learning_rate(config, 99, 100) < 1e-4


def test_warm_up_is_linear_and_then_the_cosine_begins():
    config = optim("torchvision/resnet50", "edge_popup")
    rates = [learning_rate(config, epoch, 100) for epoch in range(100)]
    assert rates[:5] == pytest.approx([0.256 * part for part in (0.2, 0.4, 0.6, 0.8, 1.0)])
    assert rates[5] == pytest.approx(0.256)
    assert rates[53] == pytest.approx(0.256 / 2 * (1 + math.cos(math.pi * 48 / 95)))
    assert sorted(rates[5:], reverse=True) == rates[5:]


def test_imagenets_rate_follows_the_batch():
    assert optim("torchvision/resnet50", "edge_popup", optim__batch_size=1024).lr == 4 * 0.256
    assert optim("torchvision/resnet50", "dense", optim__batch_size=1024, optim__lr=0.5).lr == 0.5


def test_adam_keeps_its_rate():
    config = optim("conv2", "dense", optim__optimizer="adam")
    assert {learning_rate(config, epoch, 100) for epoch in range(100)} == {2e-4}


def test_one_step_of_sgd_is_the_papers():
    """Weight decay enters the gradient, momentum has neither damping nor Nesterov's look ahead."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer([parameter], optim("conv4", "edge_popup"), parameter.device)
    value, velocity = parameter.detach().clone(), torch.zeros(2)
    for _ in range(3):
        parameter.grad = torch.tensor([0.5, 0.25])
        velocity = 0.9 * velocity + (parameter.grad + 1e-4 * value)
        value = value - 0.1 * velocity
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), value)


# --- identity ----------------------------------------------------------------------------------------------

PINNED = [
    ({}, "d26539757e118e13"),
    ({"model.arch": "conv6", "model.k": 0.3, "data.name": "cifar10", "seed": 2}, "da17298671792d37"),
    (
        {"model.arch": "conv4", "model.method": "dense", "optim.optimizer": "adam", "data.name": "cifar10"},
        "1210aa09163be0e7",
    ),
    (
        {"model.arch": "conv2", "model.method": "sampled", "data.name": "cifar10", "data.protocol": "paper"},
        "c432b32058327628",
    ),
    (
        {
            "model.arch": "resnet18",
            "model.width": 0.5,
            "model.method": "iterand",
            "model.selection": "global",
            "data.name": "cifar100",
            "train.epochs": 10,
        },
        "ac7abe201b14faf2",
    ),
    (
        {
            "model.arch": "torchvision/resnet50",
            "model.distribution": "kaiming_normal",
            "model.scaled": True,
            "data.name": "folder:imagenet",
            "optim.lr": 0.5,
            "seeds.weights": 7,
            "train.precision": "bfloat16",
        },
        "e845df75a28f3953",
    ),
]


@pytest.mark.parametrize(("flat", "identity"), PINNED, ids=lambda value: str(value)[:60])
def test_identities_never_change(flat, identity):
    """A change of any of these makes every finished result in every store unfindable."""
    assert cell_id(unflatten(flat)) == identity


def test_minus_zero_is_zero():
    """They are equal, so a cache takes one for the other; but they are written differently, as in an id."""
    fields = ("lr", "weight_decay", "momentum", "label_smoothing")
    found = unflatten({f"optim.{name}": -0.0 for name in fields}).optim
    assert [str(getattr(found, name)) for name in fields] == ["0.0"] * 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"model__width": 1}, {"model__width": 1.0}),
        ({"model__k": 1}, {"model__k": 1.0}),
        ({}, {"optim__lr": 0.1, "optim__momentum": 0.9, "optim__batch_size": 128}),
        ({}, {"model__distribution": "signed_constant"}),
        ({}, {"data__root": "/elsewhere", "train__device": "cpu", "train__threads": 4}),
        ({"model__method": "dense"}, {"model__method": "dense", "model__k": 0.3}),
        ({"model__method": "dense"}, {"model__method": "dense", "model__scaled": True}),
        ({"model__method": "dense"}, {"model__method": "dense", "model__selection": "global"}),
        ({"model__method": "dense"}, {"model__method": "dense", "seeds__scores": 4}),
        ({"model__method": "sampled"}, {"model__method": "sampled", "model__k": 0.3}),
        ({"data__protocol": "paper"}, {"data__protocol": "paper", "data__validation": 0.2}),
        ({"seed": 3}, {"seed": 3, "seeds__weights": 3, "seeds__data": 3}),
        ({"optim__optimizer": "adam"}, {"optim__optimizer": "adam", "optim__momentum": 0.5}),
        ({"data__name": "cifar10"}, {"data__name": "cifar10", "data__augment": "crop_flip"}),
        ({}, {"data__image_size": 64}),
        ({"data__name": "folder:own"}, {"data__name": "folder:own", "data__image_size": 224}),
    ],
)
def test_the_same_computation_is_the_same_cell(one, other):
    assert cell_id(cell(**one)) == cell_id(cell(**other))


def test_everything_that_decides_a_result_decides_the_identity():
    changes = {
        "model__arch": "conv2", "model__width": 0.5, "model__method": "random", "model__k": 0.3,
        "model__selection": "global", "model__distribution": "kaiming_normal", "model__scaled": True,
        "data__name": "cifar10", "data__protocol": "paper", "data__validation": 0.2, "data__subset": 100,
        "data__augment": "crop_flip", "optim__optimizer": "adam", "optim__lr": 0.2,
        "optim__weight_decay": 0.0, "optim__momentum": 0.8, "optim__batch_size": 64,
        "optim__schedule": "constant", "optim__warmup_epochs": 3, "optim__label_smoothing": 0.1,
        "train__epochs": 5, "train__precision": "bfloat16", "seeds__weights": 1, "seeds__scores": 1,
        "seeds__data": 1, "seed": 1, "model__init_from": "0" * 16,
    }  # fmt: skip
    runtime = {"data.root", "train.device", "train.threads"}
    elsewhere = {"data.image_size", "model.init_mask"}  # which have a meaning with others alone
    assert {name.replace("__", ".") for name in changes} | runtime | elsewhere == set(flatten(CellConfig()))
    identities = [cell_id(CellConfig()), *(cell_id(cell(**{n: v})) for n, v in changes.items())]
    assert len(set(identities)) == len(identities)


CELLS = st.fixed_dictionaries(
    {},
    optional={
        "model.arch": st.sampled_from(["fc", "conv2", "resnet18", "torchvision/resnet50", "my:net"]),
        "model.method": st.sampled_from(["edge_popup", "sampled", "random", "iterand", "biprop", "dense"]),
        "model.width": st.one_of(st.integers(1, 4), st.floats(0.1, 4)),
        "model.k": st.floats(0.01, 1),
        "model.selection": st.sampled_from(["layer", "global"]),
        "data.protocol": st.sampled_from(["validation", "paper"]),
        "data.name": st.sampled_from(["digits", "cifar10", "folder:mine"]),
        "optim.optimizer": st.sampled_from(["sgd", "adam"]),
        "optim.lr": st.floats(0, 10),
        "train.epochs": st.integers(6, 200),
        "seeds.weights": st.integers(0, 3),
        "seed": st.integers(0, 3),
    },
)


@given(CELLS)
def test_resolving_is_idempotent_and_written_out_it_names_the_same_cell(flat):
    config = unflatten(flat)
    resolved = resolve(config)
    assert resolve(resolved) == resolved
    assert cell_id(resolved) == cell_id(config)
    assert resolve(from_dict(to_dict(resolved))) == resolved
    assert resolve(unflatten(flatten(resolved))) == resolved
    assert all(value is not None for name, value in flatten(resolved).items() if name.startswith("optim."))


@pytest.mark.parametrize(
    ("flat", "named"),
    [
        ({"model.k": 0.0}, r"model\.k"),
        ({"model.k": 1.5}, r"model\.k"),
        ({"model.k": "half"}, r"model\.k"),
        ({"model.k": float("nan")}, r"model\.k"),
        ({"model.k": None}, r"model\.k"),
        ({"model.width": 0}, r"model\.width"),
        ({"model.method": "edge-popup"}, r"edge_popup"),
        ({"model.arch": "conv3"}, r"conv2"),
        ({"model.prune": 0.5}, r"model\.k"),
        ({"model.method": "sampled", "model.scaled": True}, r"model\.scaled"),
        ({"data.name": "cifar"}, r"cifar10"),
        ({"data.subset": 1}, r"data\.subset"),
        ({"data.validation": 1.0}, r"data\.validation"),
        ({"optim.momentum": 1.0}, r"optim\.momentum"),
        ({"optim.batch_size": 0}, r"optim\.batch_size"),
        ({"optim.lr": -1.0}, r"optim\.lr"),
        ({"optim.warmup_epochs": 100}, r"warmup_epochs"),
        ({"train.epochs": 0}, r"train\.epochs"),
        ({"train.epochs": 2.5}, r"train\.epochs"),
        ({"train.device": "gpu"}, r"cuda"),
        ({"train.device": "cuda:"}, r"cuda:N"),
        ({"train.device": "cuda:\u00b2"}, r"cuda:N"),
        ({"seed": -1}, r"seed"),
        ({"seed": True}, r"seed"),
    ],
)
def test_bad_values_are_named(flat, named):
    with pytest.raises(UserError, match=named):
        unflatten(flat)
