"""Tickets: the same network bit for bit, small, and an error for whatever is not one."""

import functools
import hashlib
import io
import json
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hiddenweights
from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.masking.supermask import current_masks, frozen_weights, supermask
from hiddenweights.models import build_network
from hiddenweights.records import Record, checksum
from hiddenweights.tickets import ticket as ticket_module
from hiddenweights.tickets.contents import Inputs
from hiddenweights.tickets.ticket import MAGIC, Ticket, load_ticket, read_ticket
from hiddenweights.training.loop import evaluate
from hiddenweights.training.train import Trainer

pytestmark = pytest.mark.arithmetic

HEADER = len(MAGIC) + 32
SMALL = {"model.arch": "fc", "data.subset": 300, "train.epochs": 2}
OWN = "tests.ticket_networks:Attention"


@functools.cache
def trained(**fields: object) -> tuple[Trainer, Record]:
    """A trainer that has finished, and its last record; fields with "__" for the dot."""
    dotted = {name.replace("__", "."): value for name, value in fields.items()}
    trainer = Trainer(unflatten({**SMALL, **dotted}))
    return trainer, list(trainer.epochs())[-1]


@functools.cache
def content(**fields: object) -> bytes:
    trainer, record = trained(**fields)
    return trainer.ticket(record).to_bytes()


def logits(network: nn.Module, trainer: Trainer) -> torch.Tensor:
    images, _ = next(trainer.evaluation_batches["test"].in_order(1000))
    with torch.no_grad():
        return network.eval()(images)


def resealed(content: bytes, change) -> bytes:
    """The ticket with its header changed and every checksum right again."""
    body = content[HEADER:]
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]["ticket"]
    tensors = safetensors.torch.load(body)
    changed = change(json.loads(header))
    return sealed(safetensors.torch.save(tensors, {"ticket": json.dumps(changed)}))


def complaint(content: bytes) -> str:
    """What is said of a file that gives no network; "" of one that does. Nothing but a UserError is."""
    try:
        Ticket.from_bytes(content).network()
    except UserError as error:
        return str(error)
    return ""


def sealed(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


def replaced(path: str, value: object):
    """A change of one entry of the header: resealed(content, replaced("config.model.k", 2))."""

    def change(header):
        *parents, leaf = path.split("/")
        functools.reduce(lambda part, name: part[name], parents, header)[leaf] = value
        return header

    return change


# --- the same network ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model__distribution": "kaiming_normal", "model__scaled": True, "model__k": 0.1},
        {"model__distribution": "default", "model__selection": "global", "model__k": 0.3},
        {"model__method": "random", "model__distribution": "unsigned_constant"},
        {"model__method": "biprop", "model__distribution": "kaiming_normal", "model__k": 0.3},
        {
            "model__method": "biprop",
            "model__distribution": "xavier_normal",
            "model__selection": "global",
            "model__arch": "conv4",
            "model__width": 0.25,
            "train__precision": "float32",
        },
        {"model__arch": "resnet18", "model__width": 0.125, "train__epochs": 1},
        {"model__arch": "linear", "seeds__weights": 5, "model__k": 1.0},
        {"model__arch": "conv2", "model__width": 0.1, "train__precision": "bfloat16"},
        {"train__precision": "float32"},
        {"model__arch": "resnet50", "model__width": 0.5, "train__precision": "float32", "data__subset": 40},
    ],
    ids=str,
)
def test_the_logits_of_a_ticket_are_those_of_the_end_of_training_bit_for_bit(fields, tmp_path):
    trainer, record = trained(**fields)
    trainer.ticket(record).save(tmp_path / "a.ticket")
    network = load_ticket(tmp_path / "a.ticket")
    precision = read_ticket(tmp_path / "a.ticket").precision
    assert trainer.config.train.precision in (precision, "auto")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        assert torch.equal(logits(network, trainer), logits(trainer.network, trainer))
    loss, accuracy = evaluate(network, trainer.evaluation_batches["test"], precision)
    assert (loss, accuracy) == (record["test_loss"], record["test_accuracy"])
    assert set(network.state_dict()) == set(
        build_like(trainer).state_dict()
    )  # no scores, no parametrizations


def build_like(trainer: Trainer) -> nn.Module:
    model = trainer.config.model
    return build_network(model.arch, channels=1, image_size=8, classes=10, width=model.width)


def test_another_process_gives_the_same_logits(tmp_path):
    trainer, record = trained(model__distribution="kaiming_normal")
    trainer.ticket(record).save(tmp_path / "a.ticket")
    images, _ = next(trainer.evaluation_batches["test"].in_order(1000))
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, torch; from hiddenweights import load_ticket\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad(): logits = load_ticket('a.ticket')(torch.load('images.pt'))\n"
        "sys.stdout.buffer.write(logits.numpy().tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == logits(trainer.network, trainer).numpy().tobytes()


def test_a_network_of_the_users_own_keeps_what_no_mask_covers_and_is_never_imported_unasked(tmp_path):
    trainer, record = trained(model__arch=OWN)
    trainer.ticket(record).save(tmp_path / "a.ticket")
    with pytest.raises(UserError, match="Attention"):
        load_ticket(tmp_path / "a.ticket")
    network = load_ticket(tmp_path / "a.ticket", arch=OWN)
    assert torch.equal(network.positions, trainer.network.positions)
    assert torch.equal(logits(network, trainer), logits(trainer.network, trainer))


def test_a_buffer_without_elements_is_kept(tmp_path):
    arch = "tests.ticket_networks:WithEmptyBuffer"
    trainer, record = trained(model__arch=arch)
    trainer.ticket(record).save(tmp_path / "a.ticket")
    network = load_ticket(tmp_path / "a.ticket", arch=arch)
    assert network.past.shape == (0, 3)
    assert torch.equal(logits(network, trainer), logits(trainer.network, trainer))


def test_a_ticket_names_no_module_that_gets_imported(tmp_path, monkeypatch):
    (tmp_path / "bomb.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    crafted = resealed(content(), replaced("config/model/arch", "bomb:go"))
    with pytest.raises(UserError, match="bomb"):
        Ticket.from_bytes(crafted).network()
    with pytest.raises(UserError, match="arch"):  # nor does one that needs no code take any
        Ticket.from_bytes(content()).network("bomb:go")


def test_a_sampled_ticket_holds_the_draw_that_the_record_counts():
    trainer, record = trained(model__method="sampled")
    ticket = Ticket.from_bytes(trainer.ticket(record).to_bytes())
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert kept / sum(mask.numel() for mask in ticket.masks.values()) == record["kept"]
    for name, mask in ticket.masks.items():
        assert torch.equal(ticket.network().get_parameter(name) != 0, mask)


@pytest.mark.parametrize("method", ["dense", "iterand"])
def test_methods_that_change_the_weights_have_no_ticket(method):
    with pytest.raises(UserError, match=method):
        content(model__method=method)


def test_a_record_of_another_epoch_is_refused():
    trainer, record = trained()
    with pytest.raises(ValueError, match="record"):
        trainer.ticket({**record, "mask_checksum": "00"})


def test_training_twice_gives_the_same_bytes_without_paths_or_times():
    again = Trainer(unflatten({**SMALL, "data.root": "somewhere/private"}))
    assert again.ticket(list(again.epochs())[-1]).to_bytes() == content()
    assert b"somewhere" not in content()


def test_a_tickets_fields_survive_the_file(tmp_path):
    trainer, record = trained()
    trainer.ticket(record).save(tmp_path / "a.ticket")
    ticket = hiddenweights.read_ticket(tmp_path / "a.ticket")
    assert cell_id(ticket.config) == cell_id(trainer.config)
    assert ticket.record["test_accuracy"] == record["test_accuracy"]
    assert ticket.inputs == Inputs(1, 8, 10, (0.305,), (0.376,))
    assert all(torch.equal(m, ticket.masks[name]) for name, m in current_masks(trainer.network).items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.ticket"]


def test_a_ticket_of_the_first_version_still_gives_its_network():
    """The file was written once and is never to change: others keep such files."""
    ticket = read_ticket(Path(__file__).with_name("linear.ticket"))
    weights = ticket.network().state_dict()["1.weight"]
    assert weights.shape == (10, 64)
    assert hashlib.sha256(weights.numpy().tobytes()).hexdigest() == GOLDEN
    assert ticket.record["test_accuracy"] > 0.6


GOLDEN = "7d4c0b51083b06c820a4a93d76228d8792de9af503d686ce275a4fa2d4a50f3d"


# --- size --------------------------------------------------------------------------------------------------


def untrained(network: nn.Module, arch: str, size: int, k: float) -> Ticket:
    """A ticket of `network`, masked here at random weights and scores, with made-up running statistics."""
    supermask(network, k=k)
    state = {n: t for n, t in network.state_dict().items() if "parametrizations" not in n.split(".")}
    for name, value in state.items():
        if name.endswith(("_mean", "_var")):
            value.uniform_(0.5, 1.5)
    inputs = Inputs(3, size, 10, (0.5,) * 3, (0.5,) * 3)
    config = unflatten({"model.arch": arch, "model.k": k, "data.name": "cifar10"})
    weights = checksum({name: weight.numpy() for name, weight in frozen_weights(network).items()})
    return Ticket(config, inputs, current_masks(network), {}, state, weights, {"epoch": 1}, {})


@pytest.mark.parametrize(
    ("arch", "k", "times"), [("conv4", 0.5, 30), ("conv4", 0.1, 60), ("resnet18", 0.3, 33)]
)
def test_a_ticket_is_a_small_fraction_of_the_state_dict(arch, k, times):
    network = build_network(arch, channels=3, image_size=32, classes=10)
    dense = io.BytesIO()
    torch.save(network.state_dict(), dense)
    assert times * len(untrained(network, arch, 32, k).to_bytes()) < len(dense.getvalue())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "squeezenet1_0"])
def test_a_network_of_torchvision_comes_back_whole(name):
    arch = f"torchvision/{name}"
    network = build_network(arch, channels=3, image_size=64, classes=10)
    content = untrained(network, arch, 64, 0.5).to_bytes()
    network.to(memory_format=torch.channels_last).eval()
    with torch.no_grad():
        images = torch.rand(4, 3, 64, 64).to(memory_format=torch.channels_last)
        assert torch.equal(Ticket.from_bytes(content).network()(images), network(images))


# --- bad input -------------------------------------------------------------------------------------------


def test_every_byte_flipped_in_turn_is_noticed():
    good = bytearray(content(model__arch="linear"))
    for i in range(len(good)):
        for flip in (0xFF, 1 << (i % 8)):
            good[i] ^= flip
            with pytest.raises(UserError, match=r"f\.ticket"):
                Ticket.from_bytes(bytes(good), "f.ticket")
            good[i] ^= flip


def test_every_truncation_is_noticed():
    good = content(model__arch="linear")
    for length in range(len(good)):
        with pytest.raises(UserError):
            Ticket.from_bytes(good[:length])
    with pytest.raises(UserError):
        Ticket.from_bytes(good + b"\0")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("format", 2, "format 2"),
        ("config/model/arch", "conv2", "weight"),
        ("config/model/arch", "torchvision/nothing", "torchvision/nothing"),
        ("config/model/arch", "torchvision/vit_b_16", "vit_b_16"),
        ("config/model/width", 1e6, "weight"),
        ("config/model/width", 1e300, "fc"),
        ("config/model/width", 10**400, r"model\.width"),
        ("config/model/method", "dense", "dense"),
        ("config/model/method", "biprop", "weight"),
        ("config/model/colour", "red", "colour"),
        ("config/model/arch", "own:\x1b[2J", "no ticket"),
        ("config/model/distribution", "kaiming_normal", "weights"),
        ("config/seed", 1, "seed 1"),
        ("inputs/channels", 3, "channels"),
        ("inputs/image_size", 16, "weight"),
        ("inputs/classes", 10**15, "weight"),
        ("layers/1.weight", {}, "no ticket"),  # a layer that is not there
        ("weights_checksum", "0" * 32, "weights"),
        ("record/test_accuracy", "high", "test_accuracy"),
        ("record/note", "\x1b[2J", "no ticket"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_header_under_right_checksums_is_refused(path, value, named):
    crafted = resealed(content(), replaced(path, value))
    with pytest.raises(UserError, match=named) as caught:
        Ticket.from_bytes(crafted).network()
    assert "\n" not in str(caught.value)


def shape_of_everything(sides: list[int]):
    def change(header):
        for layer in header["layers"].values():
            layer["shape"] = sides
        return header

    return change


@pytest.mark.parametrize(
    "sides", [[10**15], [10**5] * 3, [2**40, 2**40, 2**40], [0], [-5, -5], [], [1.5], ["9"]]
)
def test_a_ticket_that_asks_for_too_much_takes_no_memory(sides):
    crafted = resealed(content(), shape_of_everything(sides))
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            Ticket.from_bytes(crafted)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_ticket_that_names_a_huge_network_takes_no_memory():
    """RegNet-Y-128GF has 6.4e8 weights, of which this file holds none."""
    header = replaced("config/model/arch", "torchvision/regnet_y_128gf")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert complaint(resealed(content(), header))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 8,
        (10**15).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        b"\x57\0\0\0\0\0\0\0"
        + b'{"a":{"dtype":"F32","shape":[1000000000000000],"data_offsets":[0,4000000000000000]}}',
        safetensors.torch.save({"a": torch.zeros(1)}),
        safetensors.torch.save({"a": torch.zeros(1)}, {"ticket": "[" * 100_000}),
        safetensors.torch.save({"a": torch.zeros(1)}, {"ticket": '{"format": 1}'}),
        safetensors.torch.save({"a": torch.zeros(1)}, {"ticket": "1" * 10_000}),
    ],
    ids=range(9),
)
def test_a_crafted_container_is_refused(body):
    with pytest.raises(UserError):
        Ticket.from_bytes(sealed(body))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 7, 64, 10**6, 2**31, 2**63, 10**15, 10**400])
    | st.floats()
    | st.sampled_from(["", "conv2", "fc", "linear", "sampled", "biprop", "cifar10", "é\x00", "0" * 32]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["shape", "k"]), inner),
    max_leaves=4,
)


@functools.cache
def entries() -> list[list[str]]:
    """The path of every entry of a ticket's header."""
    found: list[list[str]] = []

    def walk(part, path):
        for name, value in part.items():
            found.append([*path, name])
            if isinstance(value, dict):
                walk(value, [*path, name])

    def change(header):
        walk(header, [])
        return header

    resealed(content(), change)
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_change_of_a_header_gives_a_network_or_an_error_of_one_line(data):
    path, value = data.draw(st.sampled_from(entries())), data.draw(JSON)

    def change(header):
        *parents, leaf = path
        part = functools.reduce(lambda part, name: part[name], parents, header)
        if data.draw(st.booleans()):
            part[leaf] = value
        else:
            del part[leaf]
        return header

    assert "\n" not in complaint(resealed(content(), change))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 10**6))
def test_any_bytes_in_the_middle_of_a_ticket_give_a_network_or_an_error_of_one_line(noise, at):
    body = bytearray(content(model__arch="linear")[HEADER:])
    at %= len(body)
    body[at : at + len(noise)] = noise
    assert "\n" not in complaint(sealed(bytes(body)))


def test_what_is_not_a_readable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no ticket")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "text", Path("/dev/zero")):
        with pytest.raises(UserError, match=str(path)):
            load_ticket(path)
    monkeypatch.setattr(ticket_module, "MAX_BYTES", 5)
    with pytest.raises(UserError, match="larger"):
        load_ticket(tmp_path / "text")


# --- the store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["{}/runs", "memory://tickets"])
def test_a_finished_cell_leaves_its_ticket_in_the_store(uri, tmp_path):
    store = Store(uri.format(tmp_path))
    store.prepare()
    config: CellConfig = unflatten(SMALL)
    result = run_cell(config, store)
    found = Ticket.from_bytes(store.ticket(result["cell"]) or b"")
    assert found.weights_checksum == result["initial_weights_checksum"]
    assert found.record["test_accuracy"] == result["summary"]["test_accuracy"]
    assert cell_id(found.config) == result["cell"]
    dense = run_cell(unflatten({**SMALL, "model.method": "dense"}), store)
    assert store.ticket(dense["cell"]) is None
