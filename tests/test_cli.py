"""``hiddenweights train`` as people use it: real processes, real signals."""

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hiddenweights import cli
from hiddenweights.__main__ import COMMANDS
from hiddenweights.cells.store import Checkpoint, Store
from hiddenweights.commands import train as main
from hiddenweights.errors import nearest
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id

TINY = ["--model.arch", "fc", "--model.width", "0.1", "--train.epochs", "3", "--data.subset", "200"]
LONG = ["--model.arch", "conv2", "--model.width", "0.25", "--train.epochs", "25"]


def train(*args: str) -> int:
    return cli.run({"train": main.train}, "hiddenweights", ["train", *args])


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "hiddenweights", "train", "--no-track", *args]


def result(store: Path, **fields: Any) -> dict[str, Any]:
    found = Store(store).result(cell_id(unflatten(fields)))
    assert found is not None
    return found


def test_train_prints_a_line_an_epoch_and_keeps_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, "--store", str(tmp_path), "--no-track") == 0
    printed = capsys.readouterr().out
    assert [f"epoch {epoch}/3" in printed for epoch in (1, 2, 3)] == [True] * 3
    (path,) = tmp_path.glob("cells/*/result.json")
    accuracy = json.loads(path.read_text())["summary"]["test_accuracy"]
    assert f"test {accuracy:.2%}" in printed
    assert f"ticket: {path.with_name('ticket.ticket')}" in printed
    assert path.with_name("ticket.ticket").exists()
    before = path.stat().st_mtime_ns
    assert train(*TINY, "--store", str(tmp_path)) == 0
    assert f"test {accuracy:.2%}" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


def test_the_store_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDENWEIGHTS_STORE", str(tmp_path / "mine"))
    assert train(*TINY, "--no-track") == 0
    assert len(list(tmp_path.glob("mine/cells/*/result.json"))) == 1


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["--model.arch", "conv3"], ["model.arch", "conv3", "conv4"]),
        (["--model.distribution", "uniform"], ["model.distribution", "uniform", "signed_constant"]),
        (["--data.name", "cifar"], ["data.name", "cifar", "cifar10"]),
        (["--model.k", "0"], ["model.k", "0"]),
        (["--model.k", "1.01"], ["model.k", "1.01"]),
        (["--model.k", "half"], ["model.k", "half"]),
        (["--model.width", "-1"], ["model.width", "-1"]),
        (["--model.widht", "1"], ["model.widht", "model.width"]),
        (["--seed"], ["--seed"]),
        (["--data.name", "folder:x", "--data.root", "nowhere"], ["data.root", "nowhere"]),
        (["--data.subset", "100000"], ["data.subset", "100000"]),
        (["--store", "nosuch://place"], ["store", "nosuch"]),
        (["--model.arch", "nomodule:net"], ["model.arch", "nomodule"]),
        (["--model.method", "dense", "--model.k", "0.5"], ["model.k", "0.5", "dense", "1.0"]),
        (["--model.arch", "conv8"], ["model.arch", "conv8", "8 pixels"]),
        (["--model.arch", "fc", "--model.width", "0.001"], ["model.width", "0.001"]),
        (["--train.device", "cuda:99"], ["train.device", "cuda:99", "cpu"]),
        (["--train.device", "cuda:0", "--ranks", "2"], ["train.device", "cuda:0"]),
        (["--train.threads", "99999"], ["train.threads", "99999"]),
        (["--data.image_size=64"], ["data.image_size", "64", "digits"]),
        (["--seeds.scores", "3", "--model.method", "dense"], ["seeds.scores", "3", "dense"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    args: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert train(*args) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for name in names:
        assert name in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--patience", "x"], "--patience: could not convert string to float: 'x'"),
        (["--model.k=1.01"], "model.k: 1.01 must lie in (0, 1]; k is the fraction kept"),
        (["--model.widht=3"], "Unrecognized options: --model.widht=3 (did you mean --model.width?)"),
        (["--k", "0.5"], "Unrecognized options: --k, 0.5 (did you mean --model.k?)"),
        (["--init-mask=found"], "Unrecognized options: --init-mask=found (did you mean --model.init-mask?)"),
        (["--nothing-like-it"], "Unrecognized options: --nothing-like-it"),
    ],
)
def test_bad_input_is_one_line_on_a_terminal_without_unicode(
    args: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert train(*args) == 2
    assert capsys.readouterr().err == f"error: {says}\n"


def test_the_suggestion_is_what_was_likely_meant() -> None:
    fields = ["model.arch", "model.k", "model.init_mask", "data.name", "optim.lr", "conv.k2"]
    networks = ["linear", "fc", "conv2", "conv4", "conv6", "conv8", "resnet18", "resnet34"]
    for value, names, found in (
        ("k", fields, ["model.k"]),
        ("init-mask", fields, ["model.init_mask"]),
        ("archh", fields, ["model.arch"]),
        ("model.ach", fields, ["model.arch"]),
        ("conv3", networks, ["conv2", "conv4"]),
        ("conv9", networks, ["conv8"]),
        ("resnet20", networks, ["resnet18"]),
        ("lineer", networks, ["linear"]),
        ("vgg16", networks, []),
    ):
        assert nearest(value, names) == found


def test_a_percentage_as_k_is_told_as_a_fraction(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--model.k", "50") == 2
    assert "0.5" in capsys.readouterr().err.replace("50.0", "")
    assert train("--model.k", "-3") == 2
    assert "%" not in capsys.readouterr().err


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train("--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for flag in ("--model.k", "--data.root", "--optim.lr", "--train.threads", "--seeds.weights", "--store"):
        assert flag in printed


@pytest.mark.parametrize(
    "command", ["train", "sweeps launch", "sweeps settle", "analysis figure", "analysis report"]
)
def test_help_names_no_default_that_is_not_one(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.run(COMMANDS, "hiddenweights", [*command.split(), "--help"])
    printed = capsys.readouterr().out
    assert "default: None" not in printed
    assert "default: )" not in printed
    assert "--parent" not in printed  # which `sweeps launch --page` sets
    assert "(default: " in printed  # real ones stay


def test_help_does_not_break_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        train("--help")
    broken = [line for line in capsys.readouterr().out.splitlines() if line.strip("│ ").startswith("as FILE")]
    assert broken == []


def test_killed_and_stopped_the_masks_are_those_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    fields: dict[str, Any] = {"model.arch": "conv2", "model.width": 0.25, "train.epochs": 25}
    assert train(*LONG, "--no-track", "--store", str(tmp_path / "calm")) == 0
    calm = result(tmp_path / "calm", **fields)
    seed = time.time_ns()
    moments = random.Random(seed)
    killed = tmp_path / "killed"
    # From its first line on, at most this share of the undisturbed run's time.
    ends = ((signal.SIGKILL, 0.2), (signal.SIGINT, 0.0), (signal.SIGKILL, 0.1), (signal.SIGTERM, 0.0))
    for number, longest in ends:
        with subprocess.Popen(
            command(*LONG, "--store", str(killed)), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            assert process.stdout
            assert any(line.startswith("epoch ") for line in process.stdout)  # reads up to the first one
            time.sleep(0.2 + moments.uniform(0, longest) * calm["seconds"])  # past the epochs before a resume
            os.killpg(process.pid, number)
            out, err = process.communicate(timeout=60)
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert "same command" in out
            assert err == ""
            cell = cell_id(unflatten(fields))
            assert Store(killed).states([cell]) == {cell: "stopped"}
    assert train(*LONG, "--no-track", "--store", str(killed)) == 0
    resumed = result(killed, **fields)
    key = "mask_checksum"
    assert [r[key] for r in calm["history"]] == [r[key] for r in resumed["history"]], f"seed {seed}"
    assert [record["epoch"] for record in resumed["history"]] == list(range(1, 26))
    assert {path.name for path in killed.glob("cells/*/*")} == {"result.json", "ticket.ticket"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_before_anything_has_started_is_a_stop(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def begins() -> None:
        """Begin."""
        signal.raise_signal(number)

    def says() -> None:
        """Say how to go on."""
        try:
            begins()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on") from None

    assert cli.run({"begin": begins}, "test", ["begin"]) == 130
    assert capsys.readouterr() == ("", "stopped\n")
    assert cli.run({"say": says}, "test", ["say"]) == 130
    assert capsys.readouterr() == ("the same command goes on\n", "")
    assert signal.getsignal(number) == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def begins() -> None:
            """Begin."""
            signal.raise_signal(signal.SIGHUP)

        assert cli.run({"begin": begins}, "test", ["begin"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_within_an_executed_string_has_its_status_too(tmp_path: Path) -> None:
    (tmp_path / "begin.py").write_text(
        "import sys\nfrom hiddenweights import cli\n"
        "def begins():\n  exec('import signal; signal.raise_signal(signal.SIGINT)')\n"
        "sys.exit(cli.run({'begin': begins}, 'test', ['begin']))"
    )
    begun = subprocess.run(
        [sys.executable, "-m", "begin"], cwd=tmp_path, stderr=subprocess.DEVNULL, check=False
    )
    assert begun.returncode == 130


def test_a_cell_in_other_hands_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    cell = cell_id(unflatten({"model.arch": "fc", "model.width": 0.1, "train.epochs": 3, "data.subset": 200}))
    with store.lease(cell):
        assert train(*TINY, "--store", str(tmp_path), "--no-track") == 1
    assert store.result(cell) is None


def test_a_failure_is_a_line_and_a_full_disk_is_not_the_cells_fault(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))  # a checkpoint is larger

    arguments = (*LONG[:-1], "2", "--store", str(tmp_path))
    failed = subprocess.run(
        command(*arguments), preexec_fn=small_files, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr == ""
    assert "failed after epoch 0" in failed.stdout
    (failure,) = tmp_path.glob("cells/*/failure.json")
    assert json.loads(failure.read_text())["transient"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert train(*arguments, "--no-track") == 0
    assert not failure.exists()


def test_a_store_that_goes_away_is_one_line_without_a_traceback_to_look_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "save", lambda _: (tmp_path / "runs").rename(tmp_path / "gone"))
    assert train(*TINY, "--store", str(tmp_path / "runs"), "--no-track", "--patience", "0") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: the store {tmp_path / 'runs'} cannot be used")
    assert "failed" not in printed.out


def test_flags_make_the_config_they_name() -> None:
    args = ["train", "--model.k", "0.3", "--seed", "4"]
    call: Any = cli.parse({"train": main.train}, "hiddenweights", args)
    assert unflatten({"model.k": 0.3, "seed": 4}) in (*call.args, *call.keywords.values())
