"""The trainer's records, its repeatability, resumption at every epoch boundary, and divergence."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from hiddenweights.cells.inputs import check_inputs
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import resolve
from hiddenweights.images.dataset import load_dataset, normalise, split
from hiddenweights.masking.supermask import current_masks, frozen_weights, masks_of
from hiddenweights.training import build, train
from hiddenweights.training.build import WITHOUT_BFLOAT16, arithmetic
from hiddenweights.training.train import Diverged, Trainer

pytestmark = pytest.mark.arithmetic

METHODS = ["edge_popup", "sampled", "random", "iterand", "biprop", "dense"]
CLOCK = {"seconds", "images_per_second"}


def cell(**flat) -> CellConfig:
    """Three quick epochs; ``model__k=0.5`` names the field ``model.k``."""
    quick = {"model.arch": "fc", "model.width": 0.2, "data.subset": 200, "train.epochs": 3,
             "optim.batch_size": 32}  # fmt: skip
    return unflatten(quick | {name.replace("__", "."): value for name, value in flat.items()})


def without_clock(records) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def equal(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- records -----------------------------------------------------------------------------------------------

SCALARS = {
    "epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss",
    "test_accuracy", "kept", "weights_checksum", "mask_checksum", "precision", "seconds", "images_per_second",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_record_an_epoch_with_all_that_is_promised(method):
    trainer = Trainer(cell(model__method=method, model__k=0.3))
    records = [*trainer.epochs()]
    assert trainer.restored == 0
    assert [record["epoch"] for record in records] == [1, 2, 3]
    for record in records:
        assert {name for name in record if "/" not in name} >= SCALARS
        assert all(0 <= record[name] <= 1 for name in record if name.endswith(("accuracy", "kept", "churn")))
        assert all(math.isfinite(record[name]) and record[name] > 0 for name in ("train_loss", "test_loss"))
    for what in ("kept/", "churn/"):
        named = {name.removeprefix(what) for name in records[0] if name.startswith(what)}
        assert named == {*masks_of(trainer.network)}  # empty for dense
    assert [record["lr"] for record in records] == pytest.approx(
        [records[0]["lr"] * (1 + math.cos(math.pi * e / 3)) / 2 for e in range(3)]
    )
    kept = {"dense": 1.0, "sampled": pytest.approx(0.5, abs=0.02)}.get(method, pytest.approx(0.3, abs=1e-3))
    assert records[0]["kept"] == kept


def test_the_papers_protocol_records_no_validation():
    record = next(Trainer(cell(data__protocol="paper")).epochs())
    assert not {name for name in record if name.startswith("validation")}


def test_recorded_losses_and_accuracies_are_means_over_images():
    trainer = Trainer(cell(data__subset=150, train__precision="float32"))
    record = [*trainer.epochs()][-1]
    dataset = load_dataset(trainer.config.data)
    parts = split(dataset, trainer.config.data, 0)
    trainer.network.eval()
    for name, images in (("validation", parts.validation), ("test", parts.test)):
        with torch.no_grad():
            logits = trainer.network(normalise(images.pixels, dataset.mean, dataset.std))
        assert record[f"{name}_loss"] == pytest.approx(
            F.cross_entropy(logits, images.labels).item(), rel=1e-5
        )
        accuracy = (logits.argmax(1) == images.labels).float().mean().item()
        assert record[f"{name}_accuracy"] == pytest.approx(accuracy)


def test_kept_and_churn_are_counted_from_the_masks():
    trainer = Trainer(cell(model__k=0.3, model__selection="global"))
    masks = None
    for record in trainer.epochs():
        now = {name: mask.clone() for name, mask in current_masks(trainer.network).items()}
        total = sum(mask.numel() for mask in now.values())
        assert record["kept"] == sum(int(mask.sum()) for mask in now.values()) / total
        for name, mask in now.items():
            assert record[f"kept/{name}"] == mask.sum() / mask.numel()
        if masks is not None:
            changed = {name: int((mask != masks[name]).sum()) for name, mask in now.items()}
            assert record["churn"] == sum(changed.values()) / total > 0
            for name, mask in now.items():
                assert record[f"churn/{name}"] == pytest.approx(changed[name] / mask.numel())
        masks = now


# --- the frozen weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["edge_popup", "sampled", "random", "biprop"])
def test_weights_stay_bit_identical_and_masks_move(method):
    trainer = Trainer(cell(model__method=method, model__distribution="kaiming_normal"))
    epochs = trainer.epochs()
    records = [next(epochs)]
    weights = {name: weight.clone() for name, weight in frozen_weights(trainer.network).items()}
    records += epochs
    assert equal(weights, frozen_weights(trainer.network))
    assert {record["weights_checksum"] for record in records} == {trainer.initial_weights_checksum}
    assert len({record["mask_checksum"] for record in records}) == (1 if method == "random" else 3)
    groups = trainer.optimizer.param_groups if trainer.optimizer else []
    held = [p for group in groups for p in group["params"]]
    assert not {id(p) for p in held} & {id(weight) for weight in frozen_weights(trainer.network).values()}


def test_checksums_see_a_single_bit_and_depend_on_the_seed():
    trainer = Trainer(cell())
    first = next(trainer.epochs())
    with torch.no_grad():
        frozen_weights(trainer.network)["3.weight"].view(torch.int32)[0, 0] ^= 1
    assert trainer._weights_checksum() != first["weights_checksum"]
    assert next(Trainer(cell(seed=1)).epochs())["weights_checksum"] != first["weights_checksum"]


def test_only_iterand_and_dense_change_weights():
    for method in ("iterand", "dense"):
        trainer = Trainer(cell(model__method=method, data__subset=1400, optim__batch_size=4, train__epochs=1))
        record = next(trainer.epochs())
        assert record["weights_checksum"] != trainer.initial_weights_checksum


@pytest.mark.parametrize("method", METHODS)
def test_what_is_learnt_is_scores_or_for_dense_everything(method):
    trainer = Trainer(cell(model__arch="resnet18", model__width=0.05, model__method=method, train__epochs=1,
                           data__subset=40))  # fmt: skip
    next(trainer.epochs())
    learnt = {id(p) for p in trainer.learnable}
    parameters = dict(trainer.network.named_parameters())
    if method == "dense":
        assert learnt == {id(p) for p in parameters.values()}  # the affine BatchNorm's among them
        assert any(parameter.ndim == 1 for parameter in parameters.values())
    else:
        scores = {id(p) for name, p in parameters.items() if name.endswith(".scores")}
        expected = set() if method == "random" else scores
        assert learnt == expected


# --- repeatability and resumption --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_repeats_bit_for_bit_whatever_else_draws_random_numbers(method):
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = Trainer(cell(model__method=method))
        records = []
        for record in trainer.epochs():
            records.append(record)
            torch.rand(seed)
        runs.append((without_clock(records), state_of(trainer)))
    assert runs[0][0] == runs[1][0]
    assert equal(runs[0][1], runs[1][1])


def test_training_leaves_torchs_random_state_as_it_was():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    [*Trainer(cell(model__method="sampled", train__epochs=1)).epochs()]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", ["weights", "scores", "data"])
def test_each_seed_decides_its_own_part(seed):
    base, changed = (Trainer(cell(train__epochs=1, **flat)) for flat in ({}, {f"seeds__{seed}": 9}))
    ours, theirs = (next(trainer.epochs()) for trainer in (base, changed))
    assert (ours["weights_checksum"] == theirs["weights_checksum"]) == (seed != "weights")
    assert ours["train_loss"] != theirs["train_loss"]
    assert ours["test_loss"] != theirs["test_loss"]


@pytest.mark.parametrize(
    "options",
    [
        *({"model__method": method} for method in METHODS),
        {"model__selection": "global"},
        {"model__arch": "conv2", "model__width": 0.1, "data__augment": "crop_flip"},
        {"model__arch": "resnet18", "model__width": 0.05, "data__subset": 100},
        {"model__method": "dense", "optim__optimizer": "adam"},
        {"model__method": "sampled", "train__precision": "bfloat16"},
        {"optim__warmup_epochs": 2, "optim__label_smoothing": 0.1},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_resuming_at_any_epoch_boundary_is_exact(options, tmp_path):
    config = cell(**options)
    whole = Trainer(config)
    records = without_clock(whole.epochs())
    for stop in (1, 2):
        folder = tmp_path / str(stop)
        interrupted = Trainer(config, folder)
        [*itertools.islice(interrupted.epochs(), stop)]
        resumed = Trainer(config, folder)
        assert without_clock(resumed.epochs()) == records
        assert resumed.restored == stop
        assert equal(state_of(resumed), state_of(whole))
        assert resumed.initial_weights_checksum == whole.initial_weights_checksum


def test_resuming_iterand_over_its_redrawing(tmp_path):
    """Weights that were redrawn before the interruption come back, and the count of steps goes on."""
    config = cell(model__method="iterand", data__subset=1000, optim__batch_size=4, train__epochs=3)
    whole = Trainer(config)
    records = without_clock(whole.epochs())
    assert len({record["weights_checksum"] for record in records}) == 3  # steps 300 and 600 in epochs 2 and 3
    [*itertools.islice(Trainer(config, tmp_path).epochs(), 2)]
    resumed = Trainer(config, tmp_path)
    assert without_clock(resumed.epochs()) == records
    assert equal(state_of(resumed), state_of(whole))


def test_a_finished_cell_is_replayed_with_its_network(tmp_path):
    config = cell()
    first = Trainer(config, tmp_path)
    records = [*first.epochs()]
    again = Trainer(config, tmp_path)
    assert [*again.epochs()] == records  # the clock's values, too
    assert again.restored == 3
    assert equal(state_of(again), state_of(first))


def on_disk(folder) -> int:
    """How many epochs a checkpoint holds."""
    other = Trainer(cell(), folder)
    next(other.epochs())
    return other.restored


def test_a_long_epochs_checkpoint_is_on_disk_before_its_record_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    assert [on_disk(tmp_path) for _ in Trainer(cell(), tmp_path).epochs()] == [1, 2, 3]


def test_short_epochs_share_a_checkpoint_and_the_last_one_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 1000.0)
    assert [on_disk(tmp_path) for _ in Trainer(cell(), tmp_path).epochs()] == [1, 1, 3]


def test_what_waits_to_be_saved_is_saved_when_training_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 1000.0)
    epochs = Trainer(cell(), tmp_path).epochs()
    next(epochs), next(epochs)
    assert on_disk(tmp_path) == 1
    epochs.close()
    assert on_disk(tmp_path) == 2


def test_a_trainer_goes_on_between_epochs_and_not_from_the_middle_of_one(tmp_path):
    config = cell()
    whole = Trainer(config)
    records = without_clock(whole.epochs())
    trainer = Trainer(config, tmp_path)
    [*itertools.islice(trainer.epochs(), 1)]
    assert without_clock(itertools.islice(trainer.epochs(), 2)) == records[:2]  # stopped between two

    def interrupted(images, labels, step=trainer.run_step):
        if trainer.steps == 14:  # of 18, six per epoch: in the third one
            raise KeyboardInterrupt
        return step(images, labels)

    trainer.run_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        [*trainer.epochs()]
    with pytest.raises(UserError, match="middle of epoch 3"):
        [*trainer.epochs()]
    resumed = Trainer(config, tmp_path)
    assert without_clock(resumed.epochs()) == records
    assert equal(state_of(resumed), state_of(whole))


def test_a_damaged_checkpoint_costs_an_epoch_and_changes_nothing(tmp_path):
    config = cell()
    records = without_clock(Trainer(config).epochs())
    [*itertools.islice(Trainer(config, tmp_path).epochs(), 2)]
    file = tmp_path / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    resumed = Trainer(config, tmp_path)
    assert without_clock(resumed.epochs()) == records
    assert resumed.restored == 1


def test_another_cells_checkpoint_is_not_taken(tmp_path):
    [*Trainer(cell(), tmp_path).epochs()]
    other = Trainer(cell(seed=1), tmp_path)
    [*other.epochs()]
    assert other.restored == 0


def test_a_checkpoint_of_other_data_is_not_taken(tmp_path, monkeypatch):
    """As if the folder `data.root`, which is not part of the id, had other images than before."""
    [*itertools.islice(Trainer(cell(), tmp_path).epochs(), 2)]
    assert Trainer(cell(), tmp_path).restored == 2
    load = train.load_dataset
    monkeypatch.setattr(train, "load_dataset", lambda data: dataclasses.replace(load(data), mean=(0.3,)))
    assert Trainer(cell(), tmp_path).restored == 0


def test_where_a_cell_runs_does_not_keep_it_from_resuming(tmp_path):
    config = cell()
    [*itertools.islice(Trainer(config, tmp_path).epochs(), 2)]
    moved = dataclasses.replace(config, train=dataclasses.replace(config.train, threads=4, device="cpu"))
    resumed = Trainer(moved, tmp_path)
    [*resumed.epochs()]
    assert resumed.restored == 2


# --- divergence and bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"model__method": "dense"},
        {"model__method": "edge_popup"},
        {"model__method": "sampled"},
        {"model__method": "edge_popup", "model__selection": "global"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_divergence_stops_the_run_and_keeps_the_earlier_records(options, tmp_path, monkeypatch):
    """Scores that are no numbers are seen, too: a mask of them is still 0 and 1, the loss finite."""
    config = cell(optim__weight_decay=1e-3, **options)
    healthy = without_clock(itertools.islice(Trainer(config).epochs(), 1))
    usual = train.learning_rate
    monkeypatch.setattr(train, "learning_rate", lambda *args: usual(*args) if args[1] == 0 else 1e30)
    epochs = Trainer(config, tmp_path).epochs()
    records = [next(epochs)]
    with pytest.raises(Diverged) as caught:
        next(epochs)
    assert caught.value.epoch == 2
    assert without_clock(records) == healthy
    monkeypatch.undo()
    assert len([*Trainer(config, tmp_path).epochs()]) == 3  # the checkpoint is that of the healthy epoch


def test_an_infinite_learning_signal_is_noticed_in_the_first_epoch(monkeypatch):
    monkeypatch.setattr(train, "learning_rate", lambda *_: float("nan"))
    with pytest.raises(Diverged) as caught:
        next(Trainer(cell()).epochs())
    assert caught.value.epoch == 1


@pytest.mark.parametrize(
    ("flat", "named"),
    [
        ({"model__arch": "torchvision/resnet18", "data__name": "digits"}, "resnet18"),
        ({"model__arch": "conv8"}, "conv8"),
        ({"model__arch": "nothing.here:net", "model__width": 1.0}, "nothing"),
        ({"data__subset": 10_000}, r"data\.subset"),
        ({"model__width": 0.001}, r"model\.width"),
    ],
)
def test_bad_input_is_named_before_any_training(flat, named):
    with pytest.raises(UserError, match=named):
        next(Trainer(cell(**flat)).epochs())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be missing")
def test_a_missing_device_is_named():
    with pytest.raises(UserError, match=r"train\.device"):
        next(Trainer(cell(train__device="cuda")).epochs())


def test_a_tiny_k_trains_and_warns_with_the_layers():
    with pytest.warns(UserWarning, match=r"5\.weight"):
        records = [*Trainer(cell(model__k=0.002, train__epochs=1)).epochs()]
    assert records[0]["kept/5.weight"] == 1 / 200


@pytest.mark.parametrize("batch_size", [1, 7, 179, 180, 1000])
def test_any_batch_size_trains(batch_size):
    record = next(Trainer(cell(optim__batch_size=batch_size, train__epochs=1)).epochs())
    assert math.isfinite(record["train_loss"])


@pytest.mark.parametrize(
    "options",
    [
        {"optim__batch_size": 1},
        {"data__subset": 2},  # one is held out
        {"optim__batch_size": 1, "model__method": "dense"},
    ],
)
def test_batchnorm_over_a_single_value_is_refused_before_training(options):
    """The last feature map of a ResNet on the digits is 1x1."""
    config = cell(**{"model__arch": "resnet18", "model__width": 0.05, **options})
    for check in (Trainer, lambda config: check_inputs(resolve(config))):
        with pytest.raises(UserError, match=r"optim\.batch_size"):
            check(config)


def test_a_last_batch_of_one_image_does_no_harm_to_batchnorm():
    options = {"model__arch": "resnet18", "model__width": 0.05, "data__protocol": "paper"}
    config = cell(**options, data__subset=9, optim__batch_size=4, train__epochs=1)
    assert math.isfinite(next(Trainer(config).epochs())["train_loss"])


@pytest.mark.parametrize(
    ("wanted", "features", "expected"),
    [
        ("auto", {"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ("auto", {"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ("auto", {"avx512_bf16": False, "avx512_f": True}, "float32"),
        ("auto", {}, "float32"),
        ("float32", {"avx512_bf16": True}, "float32"),
        ("bfloat16", {}, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_it(wanted, features, expected, monkeypatch):
    monkeypatch.setattr(build, "WITHOUT_BFLOAT16", ())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    trainer = Trainer(cell(train__precision=wanted, train__epochs=1))
    record = next(trainer.epochs())
    assert record["precision"] == trainer.precision == expected


@pytest.mark.parametrize(
    ("wanted", "features", "warned"),
    [
        ("bfloat16", {}, True),
        ("bfloat16", {"avx512_bf16": True}, False),
        ("float32", {}, False),
        ("auto", {}, False),
    ],
)
def test_a_precision_that_this_machine_emulates_is_said(wanted, features, warned, monkeypatch):
    monkeypatch.setattr(build, "WITHOUT_BFLOAT16", ())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    lines = check_inputs(resolve(cell(train__precision=wanted, train__device="cpu")))
    assert ["train.precision" in line for line in lines] == [True] * warned


@pytest.mark.parametrize(("limit", "expected"), [("AVX2", "float32"), ("AVX512_CORE_BF16", "bfloat16")])
def test_auto_counts_a_limit_for_onednn(limit, expected, monkeypatch):
    monkeypatch.setattr(build, "WITHOUT_BFLOAT16", WITHOUT_BFLOAT16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert arithmetic("auto", torch.device("cpu")) == expected


def test_a_torch_that_names_no_features_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert arithmetic("auto", torch.device("cpu")) == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_auto_is_bfloat16_on_gpus_that_compute_it(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert arithmetic("auto", torch.device("cuda")) == expected


def test_a_resumed_cell_keeps_the_precision_in_which_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "WITHOUT_BFLOAT16", ())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    records = without_clock(Trainer(cell()).epochs())
    [*itertools.islice(Trainer(cell(), tmp_path).epochs(), 1)]
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert without_clock(Trainer(cell(), tmp_path).epochs()) == records
    assert {record["precision"] for record in records} == {"bfloat16"}


def test_bfloat16_keeps_scores_in_single_precision_and_learns_alike():
    trainers = [Trainer(cell(train__precision=precision, data__subset=1000)) for precision in
                ("float32", "bfloat16")]  # fmt: skip
    records = [[*trainer.epochs()][-1] for trainer in trainers]
    assert {mask.scores.dtype for mask in masks_of(trainers[1].network).values()} == {torch.float32}
    assert records[0]["train_loss"] != records[1]["train_loss"]
    assert records[1]["train_loss"] == pytest.approx(records[0]["train_loss"], rel=0.1)


def test_a_checkpoint_in_no_folder_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="missing"):
        Trainer(CellConfig(), checkpoint=tmp_path / "missing" / "checkpoint")
