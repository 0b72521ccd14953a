"""Files that somebody made, under right checksums: each loads as something valid, or one line says why not.

Damage is another matter: every flipped bit is noticed (here, `test_ticket`, `test_store`, `test_checkpoint`).
"""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from analysis_stores import config, made_store, result
from mutants import ESCAPE, as_json, mutants

from hiddenweights import cli
from hiddenweights.__main__ import COMMANDS as TICKET_COMMANDS
from hiddenweights.analysis import aggregate, experiments, specs, summary
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.sources.offline import read_run
from hiddenweights.cells import wandb_log
from hiddenweights.cells.store import Busy, Store
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.sweeps.commands import COMMANDS as SWEEP_COMMANDS
from hiddenweights.tickets import layers
from hiddenweights.tickets.ticket import MAGIC, Ticket
from hiddenweights.training.checkpoint import load_checkpoint, save_checkpoint
from hiddenweights.training.train import Diverged, Trainer

CELL = config()
GOLDEN = Path(__file__).with_name("golden.wandb")


def command(commands: dict[str, cli.Command], *words: str | Path) -> None:
    """A command line that ends well, or with one line on stderr; nothing in it moves a terminal's cursor."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        cli.run(commands, "test", [str(word) for word in words])
    assert err.getvalue().count("\n") <= 1
    assert all(line.isprintable() for line in (out.getvalue() + err.getvalue()).split("\n"))


def one_line(do: Callable[[], object]) -> None:
    """Does what it should, or raises a `UserError` that can be printed."""
    said = ""
    try:
        do()
    except UserError as error:
        said = str(error)
    assert said.isprintable()


def figure(folder: Path) -> None:
    """What an analysis comes to: a figure's numbers and words, and the table as CSV."""
    table = fetch(str(folder))
    table.cells.to_csv(io.StringIO())
    spec = experiments.find_spec("quickstart")
    everything = type(table)(table.cells.assign(sweeps="quickstart"), table.epochs, table.left_out)
    points = specs.points(everything, spec)
    lines = summary.lines(points, aggregate.curves(points, mixed=True), everything, spec)
    assert all(line.isprintable() for line in [*lines, summary.left_out(table, "quickstart")])


# --- the store ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two cells of the sweep `quickstart`."""
    return made_store(tmp_path / "store", "quickstart", [CELL, config(seed=1)])


def sealed(data: Any) -> bytes:
    """A result's content with a right checksum, whatever it is."""
    content = as_json(data)
    if not content.startswith(b'{"'):
        return content
    body = content[:-1]
    return body + f', "sha256": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def test_any_result_under_a_right_checksum(store: Path) -> None:
    file = store / "cells" / cell_id(CELL) / "result.json"
    for number, mutant in enumerate(mutants(result(CELL) | {"format": 2, "processor": {"threads": 1}}, 150)):
        file.write_bytes(sealed(mutant))
        one_line(lambda: Store(store).result(cell_id(CELL)))
        if number % 10 == 0:
            one_line(lambda: figure(store))
            command(SWEEP_COMMANDS, "status", "quickstart", "--store", store)


def test_any_plan_and_any_header_of_a_store(store: Path) -> None:
    plan = store / "sweeps" / "quickstart.json"
    whole = json.loads(plan.read_text()) | {
        "axes": {"model.k": [0.1, 0.5], "train.epochs": "choice(1,2)"},
        "overrides": {"seed": 1},
        "winners": {"model.k=0.1": {"optim.lr": 0.1}},
        "launched": "2026-01-01",
    }
    for number, mutant in enumerate(mutants(whole, 60)):
        plan.write_bytes(as_json(mutant))
        one_line(lambda: Store(store).plan("quickstart"))
        if number % 6 == 0:
            one_line(lambda: fetch(str(store)))
            command(SWEEP_COMMANDS, "status", "quickstart", "--store", store)
            tuned = ("quickstart", "--tuned", "quickstart", "--dry-run")
            command(SWEEP_COMMANDS, "launch", *tuned, "--store", store)
    for mutant in mutants({"format": 1}, 20):
        (store / "store.json").write_bytes(as_json(mutant))
        one_line(Store(store).check)
        one_line(lambda: fetch(str(store)))


def test_any_failure_and_any_lock_of_a_cell(store: Path) -> None:
    folder = store / "cells" / cell_id(CELL)
    (folder / "result.json").unlink()
    failure = {"error": "Diverged", "message": "no", "traceback": "a\nb", "epoch": 2, "record": {"epoch": 2},
               "attempt": 1, "time": "2026-01-01", "transient": False}  # fmt: skip
    lock = {
        "owner": "a" * 32,
        "host": "h",
        "pid": 1,
        "born": "1",
        "launch": "",
        "attempt": 1,
        "heartbeat": 1e9,
    }
    for number, (failed, held) in enumerate(zip(mutants(failure, 40), mutants(lock, 40), strict=True)):
        (folder / "failure.json").write_bytes(as_json(failed))
        (folder / "lock").write_bytes(as_json(held))
        one_line(lambda: Store(store).failure(cell_id(CELL)))
        if number % 5 == 0:
            one_line(lambda: figure(store))
            command(SWEEP_COMMANDS, "status", "quickstart", "--store", store)
        with contextlib.suppress(Busy), Store(store).lease(cell_id(CELL)):
            pass


# --- W&B's files -------------------------------------------------------------------------------------------


def framed(records: list[bytes]) -> bytes:
    """A `.wandb` file of these records with right checksums."""
    content = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        first, rest = True, record
        while first or rest:
            if (room := 2**15 - len(content) % 2**15) < 7:
                content += bytes(room)
                continue
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(1, 0): 1, (1, 1): 2, (0, 1): 3, (0, 0): 4}[first, bool(rest)]
            content += (
                struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            )
            first = False
    return bytes(content)


def wandb_logs(records: list[bytes], count: int) -> Iterator[list[bytes]]:
    """Logs that differ from `records` in one place: a record lost, a bit of it flipped, a value another."""
    from wandb.proto.wandb_internal_pb2 import Record

    draw = random.Random(0)
    parts = {"run": "run.config.update", "config": "config.update", "history": "history.item",
             "summary": "summary.update"}  # fmt: skip
    values = []
    for number, record in enumerate(records):
        kind = Record.FromString(record).WhichOneof("record_type")
        items: Any = Record.FromString(record)
        for name in parts[kind].split(".") if kind in parts else ():
            items = getattr(items, name)
        values += [(number, parts[kind], item) for item in range(len(items))] if kind in parts else []
    for _ in range(count):
        changed = list(records)
        number = draw.randrange(len(records))
        match draw.randrange(4):
            case 0:
                del changed[number]
            case 1:
                flipped = bytearray(records[number])
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
                changed[number] = bytes(flipped)
            case _:
                number, path, item = draw.choice(values)
                message = Record.FromString(records[number])
                items = message
                for name in path.split("."):
                    items = getattr(items, name)
                value = [json.loads(items[item].value_json)]
                items[item].value_json = as_json(next(mutants(value, 1, draw.randrange(10**6))))[1:-1]
                if draw.random() < 0.3:
                    items[item].key = draw.choice(["cell", "key", ESCAPE, "epoch", "model", "a/b", "", "_x"])
                if draw.random() < 0.1:
                    items[item].nested_key.append(draw.choice(["epoch", ESCAPE]))
                changed[number] = message.SerializeToString()
        yield changed


def test_any_offline_run_of_wandb_under_right_checksums(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    file = tmp_path / "run-x.wandb"
    records = [*wandb_log.records(GOLDEN)]
    file.write_bytes(framed(records))
    assert [*wandb_log.records(file)] == records
    whole = read_run(file)
    for number, log in enumerate(wandb_logs(records, 200)):
        file.write_bytes(framed(log))
        found = read_run(file)
        assert found.reason.isprintable()
        assert found.state != "finished" or len(found.history) == len(whole.history)
        if number % 4 == 0:
            one_line(lambda: figure(tmp_path))


def test_no_flipped_bit_of_an_offline_run_changes_what_is_read_as_finished(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    content, file = GOLDEN.read_bytes(), tmp_path / "run-x.wandb"
    file.write_bytes(content)
    whole = read_run(file)
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        found = read_run(file)
        assert found.state in ("damaged", "crashed") or found == whole
        if found.state == "damaged":
            assert file.name in found.reason


# --- tickets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"model.arch": "fc", "data.subset": 300},
        {"model.arch": "linear", "model.method": "sampled"},
        {"model.arch": "fc", "model.method": "biprop", "model.selection": "global", "data.subset": 300},
    ],
    ids=["edge_popup", "sampled", "biprop"],
)
def test_any_ticket_under_a_right_checksum(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "MAX_WEIGHTS", 10**6)
    trainer = Trainer(unflatten({"train.epochs": 1, **fields}))
    body = trainer.ticket([*trainer.epochs()][-1]).to_bytes()[len(MAGIC) + 32 :]
    metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    tensors, draw, file = safetensors.torch.load(body), random.Random(0), tmp_path / "a.ticket"
    for header in mutants(json.loads(metadata["ticket"]), 50):
        changed = dict(tensors)
        if draw.random() < 0.4:
            name = draw.choice([*changed])
            tensor = changed.pop(name)
            match draw.randrange(5):
                case 0:
                    changed[draw.choice([f"mask/{ESCAPE}", "gain/x", "state/../x", "x", f"{name}x"])] = tensor
                case 1:
                    changed[name] = tensor.to(torch.float16)
                case 2:
                    changed[name] = torch.full_like(tensor, 255)
                case 3:
                    changed[name] = tensor.flatten()[: tensor.numel() // 2].clone()
        body = safetensors.torch.save(changed, {"ticket": as_json(header).decode()})
        file.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        command(TICKET_COMMANDS, "info", file)
        command(TICKET_COMMANDS, "evaluate", file)


def test_a_ticket_of_few_bytes_names_no_network_that_its_masks_do_not_fit():
    trainer = Trainer(unflatten({"model.arch": "linear", "train.epochs": 1}))
    body = trainer.ticket([*trainer.epochs()][-1]).to_bytes()[len(MAGIC) + 32 :]
    metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    header = json.loads(metadata["ticket"])
    for layer in header["layers"].values():
        layer |= {"shape": [10_000, 10_000], "kept": 0, "rice": 0}
    tensors = {name: tensor[:0] for name, tensor in safetensors.torch.load(body).items()}
    body = safetensors.torch.save(tensors, {"ticket": json.dumps(header)})
    with pytest.raises(UserError, match="keeps 0"):
        Ticket.from_bytes(MAGIC + hashlib.sha256(body).digest() + body)


# --- checkpoints -------------------------------------------------------------------------------------------


def checkpoints(state: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """States that differ from `state` in one place: in the history's text, a value, or a tensor."""
    draw = random.Random(0)
    histories = mutants(json.loads(state["history"]), count)
    for history in histories:
        changed = copy.deepcopy(state)
        optimizer = changed["optimizer"]["state"]
        part, name = draw.choice(
            [(changed, key) for key in changed]
            + [(changed["network"], key) for key in changed["network"]]
            + [(optimizer, key) for key in optimizer]
            + [(entries, key) for entries in optimizer.values() for key in entries]
        )
        value = part[name]
        match draw.randrange(6):
            case 0 | 1:
                changed["history"] = as_json(history).decode()
            case 2:
                del part[name]
            case 3 if isinstance(value, torch.Tensor):
                part[name] = value.flatten()[:1].clone()
            case 4 if isinstance(value, torch.Tensor):
                part[name] = torch.zeros(1).expand(10**6, 10**5)  # a few bytes in the file
            case _:
                part[name] = draw.choice(
                    [None, "x" * 99, -1, 2**70, [1], {}, torch.zeros(3), torch.eye(2).to_sparse(), 1e999]
                )
        yield changed


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_any_checkpoint_under_a_right_checksum(optimizer, tmp_path):
    cell = unflatten({"model.arch": "fc", "model.width": 0.1, "data.subset": 100, "train.epochs": 2,
                      "optim.batch_size": 64, "optim.optimizer": optimizer})  # fmt: skip
    [*itertools.islice(Trainer(cell, tmp_path).epochs(), 1)]
    state = load_checkpoint(tmp_path)
    assert state is not None
    for changed in checkpoints(state, 60):
        (tmp_path / "previous.pt").unlink(missing_ok=True)
        save_checkpoint(tmp_path, changed)
        (tmp_path / "previous.pt").unlink(missing_ok=True)
        with contextlib.suppress(Diverged):
            records = [*Trainer(cell, tmp_path).epochs()]
            assert [record["epoch"] for record in records] == [1, 2]


def test_the_mutants_are_the_same_in_every_run() -> None:
    first, again = ([*map(as_json, mutants(result(CELL), 20))] for _ in range(2))
    assert first == again
    assert len({*first}) > 15


def test_an_errors_text_is_no_markup_of_the_terminals(tmp_path, monkeypatch, capsys):
    from hiddenweights.commands import train

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"[/red] of nothing{ESCAPE}")

    monkeypatch.setattr(train, "run_cell", fail)
    assert train.train(unflatten({"train.epochs": 1}), store=str(tmp_path), no_track=True) == 1
    said = capsys.readouterr().out
    assert "RuntimeError: [/red] of nothing" in said
    assert all(line.isprintable() for line in said.split("\n"))
