"""Training the weights of a found subnetwork: it starts as the ticket says, and nothing else grows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hiddenweights import cli
from hiddenweights.__main__ import COMMANDS
from hiddenweights.cells.cell import cell_epochs, run_cell
from hiddenweights.cells.store import Json, Store
from hiddenweights.config import CellConfig, OptimConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import from_dict, to_dict, unflatten
from hiddenweights.identity import cell_id, resolve, short_name, split_of
from hiddenweights.masking.supermask import weight_layers
from hiddenweights.sweeps import commands as sweeps_command_line
from hiddenweights.sweeps import experiments, launch
from hiddenweights.sweeps.grid import Sweep, arm
from hiddenweights.sweeps.progress import Curves, Progress
from hiddenweights.tickets.ticket import Ticket
from hiddenweights.training.train import Trainer

pytestmark = pytest.mark.arithmetic

SMALL = {"model.arch": "fc", "model.k": 0.3, "data.subset": 200, "optim.batch_size": 50, "train.epochs": 2}


def child(parent: CellConfig, **fields: object) -> CellConfig:
    """The cell that trains what `parent` found; fields with "__" for the dot."""
    model = replace(resolve(parent).model, method="finetune", init_from=cell_id(parent))
    config = replace(parent, model=model, optim=OptimConfig(batch_size=50))
    return unflatten({name.replace("__", "."): value for name, value in fields.items()}, config)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one found subnetwork of every method that has tickets."""
    store = Store(tmp_path_factory.mktemp("runs"))
    for method in ("edge_popup", "biprop", "sampled"):
        run_cell(parent_of(method), store)
    return store


def parent_of(method: str = "edge_popup") -> CellConfig:
    return unflatten({**SMALL, "model.method": method})


def ticket_of(config: CellConfig, store: Store) -> Ticket:
    content = store.ticket(cell_id(config))
    assert content is not None
    return Ticket.from_bytes(content)


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: getattr(owner, leaf).detach().clone() for owner, leaf, name in weight_layers(network)}


@pytest.mark.parametrize("method", ["edge_popup", "biprop", "sampled"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_only_the_kept_weights_train(store: Store, method: str, optimizer: str) -> None:
    parent = parent_of(method)
    ticket = ticket_of(parent, store)
    config = child(parent, optim__optimizer=optimizer, optim__weight_decay=0.01)
    trainer = Trainer(config, ticket=ticket)
    start = weights(trainer.network)
    found = weights(ticket.network())
    assert all(torch.equal(start[name], found[name]) for name in found)

    *_, last = trainer.epochs()
    for name, weight in weights(trainer.network).items():
        mask = ticket.masks[name]
        assert not weight[~mask].any()
        assert (weight[mask] != start[name][mask]).float().mean() > 0.9
        assert last[f"kept/{name}"] == pytest.approx(mask.float().mean().item())
    assert last["mask_checksum"] == ticket.record["mask_checksum"]
    assert last["weights_checksum"] != trainer.initial_weights_checksum
    assert last["churn"] == 0


def test_the_control_keeps_as_many_weights_elsewhere(store: Store) -> None:
    ticket = ticket_of(parent_of(), store)
    shuffled, again, other = ticket.shuffled(1), ticket.shuffled(1), ticket.shuffled(2)
    for name, mask in ticket.masks.items():
        assert shuffled.masks[name].sum() == mask.sum()
        assert torch.equal(shuffled.masks[name], again.masks[name])
        assert not torch.equal(shuffled.masks[name], other.masks[name])
        # Independent masks of k = 0.3 have 0.3 of their kept weights in common.
        common = (shuffled.masks[name] & mask).sum() / mask.sum()
        assert common == pytest.approx(0.3, abs=0.1)
    result = run_cell(child(parent_of(), model__init_mask="shuffled"), store)
    masks = {record["mask_checksum"] for record in result["history"]}
    assert len(masks) == 1
    assert ticket.record["mask_checksum"] not in masks
    assert result["summary"]["kept"] == pytest.approx(0.3, abs=0.001)


def test_it_learns_more_than_the_subnetwork_alone(store: Store) -> None:
    """From where edge-popup ended, training the weights lowers the training loss."""
    parent = store.result(cell_id(parent_of()))
    assert parent is not None
    result = run_cell(child(parent_of(), train__epochs=8, optim__lr=0.05), store)
    assert result["summary"]["train_loss"] < parent["summary"]["train_loss"]


def test_a_stopped_cell_goes_on_bit_for_bit(store: Store, tmp_path: Path) -> None:
    config = child(parent_of(), train__epochs=3)
    copy = Store(tmp_path)
    content = store.ticket(cell_id(parent_of()))
    assert content is not None
    copy.add_ticket(cell_id(parent_of()), content)
    whole = run_cell(config, store)
    epochs = cell_epochs(config, copy)
    next(epochs)
    epochs.close()
    assert copy.result(cell_id(config)) is None
    resumed = run_cell(config, copy)

    def checksums(result: Json) -> list[str]:
        return [record["weights_checksum"] for record in result["history"]]

    assert checksums(resumed) == checksums(whole)


def test_identity() -> None:
    parent = parent_of()
    config = child(parent)
    implied = unflatten(
        {"model.method": None}, from_dict(to_dict(config))
    )  # as with a bare `--model.init-from`
    assert cell_id(implied) == cell_id(config)
    assert resolve(implied).model.method == "finetune"
    others = [child(parent, model__init_mask="shuffled"), child(unflatten({"seed": 1}, parent))]
    assert len({cell_id(c) for c in (config, parent, *others)}) == 4
    assert cell_id(child(parent, seeds__weights=3)) == cell_id(config)  # the weights are the ticket's
    assert cell_id(child(parent, seeds__scores=3)) == cell_id(config)
    assert "finetune" in short_name(resolve(config))
    assert short_name(resolve(others[0])) != short_name(resolve(config))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model.method": "finetune"}, "model.init_from"),
        ({"model.init_mask": "shuffled"}, "model.init_mask"),
        ({"model.init_from": "../../etc/passwd"}, "model.init_from"),
        ({"model.init_from": "0" * 16, "model.method": "dense"}, "model.init_from"),
        ({"model.init_from": "0" * 16, "model.method": "edge_popup"}, "model.init_from"),
        ({"model.init_from": "0" * 16, "model.init_mask": "other"}, "model.init_mask"),
    ],
)
def test_configs_that_make_no_sense(fields: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        unflatten(fields)


def test_a_file_is_no_identity() -> None:
    with pytest.raises(UserError, match=r"model\.init_from"):
        cell_id(unflatten({"model.init_from": "found.ticket"}))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model.init_from": "0" * 16}, "0" * 16),
        ({"model.k": 0.7}, r"model\.k"),
        ({"model.arch": "conv2"}, r"model\.arch"),
        ({"data.name": "fashion_mnist"}, "data"),
    ],
)
def test_what_does_not_fit_the_ticket(
    store: Store, data_root: Path, fields: dict[str, object], named: str
) -> None:
    config = unflatten({**fields, "data.root": str(data_root)}, child(parent_of()))
    with pytest.raises(UserError, match=named):
        run_cell(config, store)


def test_the_ticket_of_another_cell_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match=r"model\.init_from"):
        Trainer(child(parent_of()), ticket=ticket_of(parent_of("biprop"), store))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model__k": 0.7}, r"model\.k: 0\.7.* 0\.3"),
        ({"model__width": 2.0}, r"model\.width: 2\.0.* 1\.0"),
        ({"model__distribution": "kaiming_normal"}, r"model\.distribution"),
        ({"seed": 1}, r"seeds\.data: 1.* 0"),  # it holds out images that the mask was found on
        ({"seeds__data": 2}, r"seeds\.data: 2.* 0"),
        ({"data__subset": 300}, r"data\.subset: 300.* 200"),
        ({"data__validation": 0.5}, r"data\.validation: 0\.5.* 0\.1"),
    ],
)
def test_a_trainer_refuses_a_ticket_of_another_network_or_of_other_validation_images(
    store: Store, fields: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        Trainer(child(parent_of(), **fields), ticket=ticket_of(parent_of(), store))


def test_without_validation_images_any_data_seed_will_do(store: Store) -> None:
    config = child(parent_of(), seed=1, data__protocol="paper", data__subset=300)
    assert len(Trainer(config, ticket=ticket_of(parent_of(), store)).train_batches.images) == 300


def half_frozen(num_classes: int) -> torch.nn.Module:
    """Two layers, of which the network itself trains the second only."""
    first = torch.nn.Linear(64, 20, bias=False).requires_grad_(False)
    return torch.nn.Sequential(
        torch.nn.Flatten(), first, torch.nn.ReLU(), torch.nn.Linear(20, num_classes, bias=False)
    )


def test_a_layer_that_the_network_freezes_stays_as_the_ticket_has_it() -> None:
    parent = unflatten({**SMALL, "model.arch": f"{__name__}:half_frozen"})
    finder = Trainer(parent)
    *_, last = finder.epochs()
    trainer = Trainer(child(parent), ticket=finder.ticket(last))
    start = weights(trainer.network)
    _ = [*trainer.epochs()]
    first, second = weights(trainer.network).items()
    assert torch.equal(first[1], start[first[0]])
    assert not torch.equal(second[1], start[second[0]])


def run(*args: str) -> int:
    return cli.run(COMMANDS, "hiddenweights", ["train", "--no-track", *args])


def test_train_takes_a_ticket_file(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into an empty store, with no word of the network: the ticket says all of it."""
    file, results = tmp_path / "found.ticket", tmp_path / "elsewhere"
    content = store.ticket(cell_id(parent_of()))
    assert content is not None
    file.write_bytes(content)
    common = (
        "--data.subset",
        "200",
        "--optim.batch-size",
        "50",
        "--train.epochs",
        "2",
        "--store",
        str(results),
    )
    assert run("--model.init-from", str(file), *common) == 0
    expected = run_cell(child(parent_of()), store)
    result = Store(results).result(expected["cell"])
    assert result is not None
    assert result["summary"]["weights_checksum"] == expected["summary"]["weights_checksum"]

    # Also a value that is the default, if it was given.
    wrong = {"k": ("0.7",), "arch": ("conv6", "conv4"), "method": ("biprop", "edge_popup")}
    for name, values in wrong.items():
        for value in values:
            capsys.readouterr()
            assert run("--model.init-from", str(file), f"--model.{name}", value, *common) == 2
            error = capsys.readouterr().err
            assert f"model.{name}" in error or "model.init_from" in error
            assert value in error
    assert run("--model.init-from", str(file), "--model.method", "finetune", *common) == 0
    assert run("--model.init-from", str(tmp_path / "none.ticket"), *common) == 2
    file.write_bytes(content[:-1])
    assert run("--model.init-from", str(file), *common) == 2
    assert "damaged" in capsys.readouterr().err


def test_train_holds_out_what_the_tickets_cell_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the same data; on other data the split is the new cell's own."""
    found = unflatten({**SMALL, "data.validation": 0.2, "seed": 3, "train.epochs": 1})
    store = Store(tmp_path / "runs")
    run_cell(found, store)
    common = ["--model.init-from", cell_id(found), "--train.epochs", "1", "--store", store.uri]

    def trained(*more: str) -> CellConfig | None:
        before = store.finished()
        if run(*common, *more):
            return None
        ((_, result),) = store.results(store.finished() - before)
        return from_dict(result["config"])

    for more in ([], ["--seed", "1"], ["--data.protocol", "validation", "--seed", "2"]):
        config = trained(*more)
        assert config is not None
        assert split_of(config) == split_of(found)
    for field, value, theirs in (("seeds.data", "1", "3"), ("data.subset", "300", "200")):
        capsys.readouterr()
        assert trained(f"--{field}", value) is None
        error = capsys.readouterr().err
        assert all(word in error for word in (field, value, theirs))
    config = trained("--seeds.data", "1", "--data.protocol", "paper")
    assert config is not None
    assert config.seed_of("data") == 1

    monkeypatch.chdir(tmp_path)
    Path("others.py").write_text(
        "import torch\n\n\ndef make():\n"
        "    images, labels = torch.zeros(60, 1, 8, 8, dtype=torch.uint8), torch.arange(60) % 10\n"
        "    return (images, labels), (images, labels)\n"
    )
    config = trained("--data.name", "others.py:make")
    assert config is not None
    assert split_of(config) == split_of(CellConfig())


def test_a_ticket_that_has_seen_all_images_is_trained_on_all(tmp_path: Path) -> None:
    found = unflatten({**SMALL, "data.protocol": "paper", "train.epochs": 1})
    store = Store(tmp_path / "runs")
    run_cell(found, store)
    common = ["--model.init-from", cell_id(found), "--train.epochs", "1", "--store", store.uri]
    assert run(*common, "--data.protocol", "validation") == 2
    assert run(*common) == 0
    (child_cell,) = store.finished() - {cell_id(found)}
    result = store.result(child_cell)
    assert result is not None
    assert not any(name.startswith("validation") for name in result["summary"])


FOUND = arm(SMALL, {"model.k": (0.3, 0.5), "seed": (0, 1)})
LOTTERY = Sweep(
    name="tickets",
    arms=(arm({}, {"model.init_mask": ("found", "shuffled")}, found_by=FOUND), FOUND),
)


@pytest.mark.parametrize(
    ("settings", "axes", "cells"),
    [
        ({}, {}, 12),
        ({"train.epochs": 3, "model.width": 0.5}, {}, 12),
        ({"seed": 7}, {"model.k": (0.2,)}, 3),
        ({}, {"model.width": (0.5, 1.0)}, 24),
        ({}, {"model.init_mask": ("found",), "train.epochs": (1, 2)}, 16),
    ],
)
def test_a_sweep_trains_what_it_found_itself(
    settings: dict[str, object], axes: dict[str, tuple[object, ...]], cells: int
) -> None:
    """However it is overridden: the cells that are fine-tuned are those of the sweep, equal in all else."""
    found = LOTTERY.override(settings, axes).cells()  # type: ignore[arg-type]
    assert len(found) == cells
    for config in found.values():
        if config.model.method == "finetune":
            parent = resolve(found[str(config.model.init_from)])
            assert (config.model.k, config.model.width) == (parent.model.k, parent.model.width)
            assert (config.data, config.train, config.seed) == (parent.data, parent.train, parent.seed)


def test_tuned_rates_reach_the_parents() -> None:
    tuned = LOTTERY.cells({"fc edge_popup sgd digits": {"optim.lr": 0.37}})
    parents = {cell for cell, config in tuned.items() if config.model.method == "edge_popup"}
    assert {config.model.init_from for config in tuned.values()} - {None} == parents
    assert {tuned[cell].optim.lr for cell in parents} == {0.37}


def test_registered_lottery_has_its_parents() -> None:
    cells = experiments.sweep("lottery").cells()
    assert {config.model.init_from for config in cells.values()} - {None} <= cells.keys()


def test_launch_trains_parents_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "SWEEPS", {"tickets": lambda: list(LOTTERY.arms)})

    def launch_(*args: str) -> int:
        arguments = ["launch", "tickets", "--store", str(tmp_path), "--executor", "inline", *args]
        return cli.run(sweeps_command_line.COMMANDS, "sweeps", arguments)

    assert launch_("--set", "train.epochs=1") == 0
    store = Store(tmp_path)
    results = dict(store.results(LOTTERY.override({"train.epochs": 1}, {}).cells()))
    assert len(results) == 12
    finished = {cell: result["finished"] for cell, result in results.items()}
    for result in results.values():
        if parent := result["config"]["model"]["init_from"]:
            assert finished[parent] < result["started"]


def test_a_plan_without_the_parents_is_refused(store: Store) -> None:
    orphan = child(unflatten({"seed": 5}, parent_of()))
    with pytest.raises(UserError, match=r"model\.init_from"):
        launch.plan("orphans", {cell_id(orphan): orphan}, store)
    known = child(parent_of(), train__epochs=4)
    assert launch.plan("known", {cell_id(known): known}, store).todo


def test_a_failed_parent_fails_its_children_and_nobody_else(tmp_path: Path) -> None:
    """The launch ends, and says of each child whose ticket is missing."""
    good, bad = parent_of(), unflatten({"optim.lr": 1e30, "seed": 1}, parent_of())
    configs = [child(bad), child(good), bad, good]
    cells = {cell_id(config): resolve(config) for config in configs}
    store = Store(tmp_path)
    store.prepare()
    planned = launch.plan("some", cells, store)
    progress = Progress("some", cells, Curves(cells), Console(quiet=True))
    with progress:
        launch.run(planned, store, launch.Options(executor="inline"), progress)
    assert {cell for cell in cells if store.result(cell)} == {cell_id(good), cell_id(child(good))}
    assert progress.failures.keys() == {cell_id(bad), cell_id(child(bad))}
    assert all(progress.failures.values())


def test_the_seeds_of_trained_subnetworks_share_a_place_of_the_figure() -> None:
    """Each names the parent of its own seed, which makes no curve."""
    cells = experiments.sweep("lottery").cells()
    accuracies = {cell: config.seed / 10 for cell, config in cells.items()}
    seeds = {config.seed for config in cells.values()}
    means = Curves(cells).means(accuracies)
    assert len(means) == 7  # two distributions, each found, trained and trained at random; and dense
    assert len(cells) == len(seeds) * sum(map(len, means.values()))
    for points in means.values():
        assert [*points.values()] == [pytest.approx(sum(seeds) / len(seeds) / 10)] * len(points)
