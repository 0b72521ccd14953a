"""W&B's real client, offline: what a run holds, what a resumed one replaces, and when it goes offline."""

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import wandb
import wandb_standin

from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.sources.offline import read_run
from hiddenweights.cells import wandb_log
from hiddenweights.cells.cell import Attempt, cell_epochs, installed_trackers, run_cell
from hiddenweights.cells.store import Store
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id, resolve
from hiddenweights.records import Record
from hiddenweights.sweeps import tracking, tracking_mode
from hiddenweights.sweeps.commands import COMMANDS
from hiddenweights.sweeps.tracking import WandbTracker, choose_mode, wandb_folder

CONFIG = unflatten(
    {"model.arch": "fc", "model.width": 0.1, "train.epochs": 3, "data.subset": 200, "model.k": 0.3}
)
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it reads its environment once
    tracking.tracking_mode.cache_clear()
    yield
    wandb.teardown()
    tracking.tracking_mode.cache_clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.prepare()
    return store


def files(store: Store) -> list[Path]:
    assert store.local
    return sorted(store.local.glob("wandb/offline-run-*/run-*.wandb"))


def test_the_tracker_is_found_by_its_entry_point() -> None:
    assert WandbTracker in installed_trackers()


def test_the_service_of_another_process_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through which a worker that was killed would still hold its run."""
    program = (
        "import os, sys, wandb\n"
        "wandb.init(mode='offline', dir=sys.argv[1], id=sys.argv[2], settings=wandb.Settings(silent=True))\n"
        "print(os.environ['WANDB_SERVICE'], flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(store.local), cell_id(CONFIG)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        monkeypatch.setenv("WANDB_SERVICE", other.stdout.readline().strip())
        result = run_cell(CONFIG, store, trackers=[WandbTracker])
        (path,) = files(store)
        assert [record["epoch"] for record in read_run(path).history] == [1, 2, 3]
        assert result["summary"]["epoch"] == 3
        other.communicate()


def test_no_folder_is_made_where_the_store_has_gone(store: Store, tmp_path: Path) -> None:
    assert store.local
    gone = store.local.rename(tmp_path / "gone")
    run = Attempt(cell=cell_id(CONFIG), config=resolve(CONFIG), store=store, sweep="", number=1)
    with pytest.raises(OSError, match="not there"):
        WandbTracker(run)
    assert not store.local.exists()

    # At the end of a finished cell's run: its rows cannot be counted, and it is not written again.
    gone.rename(store.local)
    result = run_cell(CONFIG, store)
    tracker = WandbTracker(run)
    for record in result["history"]:
        tracker.log(record)
    store.local.rename(gone)
    with pytest.raises(OSError, match="not there"):
        tracker.finish(result)
    assert not store.local.exists()


@pytest.mark.parametrize("uri", ["{}/runs", "memory://tracked"])
def test_a_run_names_nothing_of_its_machine(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path, no host, no repository: runs get published."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-this-machine")
    store = Store(uri.format(tmp_path))
    store.prepare()
    run_cell(CONFIG, store, trackers=[WandbTracker])
    (path,) = tmp_path.rglob("offline-run-*/run-*.wandb")
    records = [WandbRecord.FromString(chunk) for chunk in wandb_log.records(path)]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.host, run.git.remote_url) == ("-", "")
    (artifact,) = [
        r.request.log_artifact.artifact for r in records if r.request.HasField("log_artifact")
    ] or [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    (entry,) = artifact.manifest.contents
    assert (wandb_folder(store) / entry.local_path).read_bytes() == store.ticket(cell_id(CONFIG))
    machine = (tmp_path, Path.home(), Path(sys.prefix), Path(__file__).parents[1], "host-of-this-machine")
    assert [str(word) for word in machine if str(word).encode() in path.read_bytes()] == []


def test_a_run_is_the_cell(store: Store) -> None:
    result = run_cell(CONFIG, store, sweep="depth", trackers=[WandbTracker])
    (path,) = files(store)
    run = read_run(path)
    assert path.name == f"run-{result['cell']}.wandb"
    assert run.cell == result["cell"]
    assert run.state == "finished"
    assert run.config["model"]["k"] == 0.3
    assert run.sweeps == {"depth"}
    assert [record["epoch"] for record in run.history] == [1, 2, 3]
    assert [record["test_accuracy"] for record in run.history] == [
        record["test_accuracy"] for record in result["history"]
    ]
    assert run.summary["test_accuracy"] == result["summary"]["test_accuracy"]
    assert run.summary["initial_weights_checksum"] == result["initial_weights_checksum"]
    assert run.summary["best_epoch"] == result["summary"]["best_epoch"]
    (cell,) = fetch(str(path.parent)).cells.to_dict("records")
    assert {name: cell[f"processor.{name}"] for name in result["processor"]} == result["processor"]


def test_a_resumed_cell_is_still_one_run_with_every_epoch_once(store: Store) -> None:
    epochs = cell_epochs(CONFIG, store, trackers=[WandbTracker])
    next(epochs)
    next(epochs)
    epochs.close()
    (path,) = files(store)
    assert [record["epoch"] for record in read_run(path).history] == [1, 2]
    run_cell(CONFIG, store, trackers=[WandbTracker])
    (path,) = files(store)
    history = read_run(path).history
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert {record["attempt"] for record in history} == {2}


class Unlucky(WandbTracker):
    """Loses what W&B has written when the second epoch is logged, as a full disk does."""

    def log(self, record: Record) -> None:
        super().log(record)
        if record["epoch"] == 2:
            file = Path(self._run.settings.sync_file)  # type: ignore[union-attr]
            deadline = time.monotonic() + 60
            while not file.stat().st_size and time.monotonic() < deadline:
                time.sleep(0.05)
            os.truncate(file, 100)


def test_what_a_full_disk_lost_is_written_again(store: Store) -> None:
    result = run_cell(CONFIG, store, sweep="depth", trackers=[Unlucky])
    (path,) = files(store)
    run = read_run(path)
    assert (run.cell, run.state, run.sweeps) == (result["cell"], "finished", {"depth"})
    assert [record["epoch"] for record in run.history] == [1, 2, 3]


def test_a_run_costs_little(store: Store) -> None:
    configs = [unflatten({"seed": seed}, CONFIG) for seed in range(4)]
    run_cell(configs[0], store, trackers=[WandbTracker])  # starts W&B's service
    began = time.perf_counter()
    for config in configs[1:]:
        result = run_cell(config, store, trackers=[WandbTracker])
        began += result["seconds"]
    assert (time.perf_counter() - began) / 3 < 1.0  # 5% of a 20 s cell; 0.05 s on an idle machine


def test_nothing_is_written_where_tracking_is_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking.tracking_mode.cache_clear()
    run_cell(CONFIG, store, trackers=[WandbTracker])
    assert store.local
    assert not (store.local / "wandb").exists()
    assert store.result(cell_id(CONFIG))


def test_without_a_key_it_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert choose_mode()[0] == "offline"


def test_an_empty_mode_is_none_and_a_wrong_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    assert choose_mode()[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"WANDB_MODE.*ofline.*offline"):
        choose_mode()


def test_an_unreachable_server_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    mode, reason = choose_mode()
    assert mode == "offline"
    assert "127.0.0.1" in reason
    assert KEY not in reason
    assert time.monotonic() - began < 10


def test_a_server_that_goes_away_after_the_launch_costs_nothing_but_patience(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "PATIENCE", 3)
    modes = functools.cache(lambda: "online")
    monkeypatch.setattr(tracking, "tracking_mode", modes)
    run_cell(CONFIG, store, trackers=[WandbTracker])
    (path,) = files(store)
    assert [record["epoch"] for record in read_run(path).history] == [1, 2, 3]


def test_the_key_is_in_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run_cell(CONFIG, store, trackers=[WandbTracker])
    assert store.local
    written = [path for path in store.local.rglob("*") if path.is_file()]
    assert written
    assert not any(KEY.encode() in path.read_bytes() for path in written)


def test_what_was_trained_without_a_server_is_uploaded_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert tracking_mode.announce(None).startswith("offline")
    configs = [CONFIG, unflatten({"seed": 1}, CONFIG)]
    interrupted = cell_epochs(CONFIG, store, trackers=[WandbTracker])
    next(interrupted)
    next(interrupted)
    interrupted.close()
    results = [run_cell(config, store, sweep="depth", trackers=[WandbTracker]) for config in configs]
    (Path(store.uri) / "wandb/offline-run-20260101_000000-5vjq6z2k").mkdir()  # not one of ours
    with wandb_standin.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        assert COMMANDS["sync"](store=store.uri) == 0
        assert server.runs.keys() == {result["cell"] for result in results}
        for result in results:
            run = server.runs[result["cell"]]
            assert [row["epoch"] for row in run["rows"]] == [1, 2, 3]
            assert [row["test_accuracy"] for row in run["rows"]] == [
                record["test_accuracy"] for record in result["history"]
            ]
            assert run["summary"]["finished"]
            assert run["summary"]["processor.threads"] == result["processor"]["threads"]
            assert run["state"] == "finished"
            assert run["group"] == "depth"
        assert server.artifacts == {f"ticket-{cell}": store.ticket(cell) for cell in server.runs}
        asked = server.asked.total()
        assert COMMANDS["sync"](store=store.uri) == 0  # nothing is left to upload
        assert server.asked.total() == asked


# A fault at each request of a run's life. An @ says how many are answered before.
TROUBLE = [
    ("RunResumeStatus", "refused"),
    ("UpsertBucket", "quota"),
    ("UpsertBucket", "nonsense"),
    ("UpsertBucket", "silence"),
    ("file_stream", "error"),
    ("file_stream", "quota"),
    ("file_stream", "nonsense@1"),
    ("file_stream", "cut@1"),
    ("ArtifactType", "nonsense"),
    ("CreateArtifact", "empty"),
    ("CreateArtifact", "refused"),
    ("ArtifactByID", "refused"),
    ("CreateRunFiles", "nonsense"),
    ("Runs", "refused"),
    ("*", "cut@1"),
]


@pytest.mark.parametrize(("operation", "fault"), TROUBLE)
def test_trouble_at_the_server_costs_no_cell_and_no_row(
    operation: str,
    fault: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "PATIENCE", 1)
    assert store.local
    monkeypatch.chdir(store.local.parent)
    configs = [CONFIG, unflatten({"seed": 1}, CONFIG)]
    with wandb_standin.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.faults[operation] = fault
        began = time.monotonic()
        results = [run_cell(config, store, trackers=[WandbTracker]) for config in configs]
        assert time.monotonic() - began < 60
        assert store.failure(results[0]["cell"]) is None
        said = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
        if said or len(server.runs) < 2:
            assert len(said) == 1
            assert "sync" in said[0]
            server.faults.clear()
            assert COMMANDS["sync"](store=store.uri) == 0
        assert server.runs.keys() == {result["cell"] for result in results}
        for run in server.runs.values():
            assert [row["epoch"] for row in run["rows"]] == [1, 2, 3]
            assert run["summary"]["finished"]
        assert server.artifacts == {f"ticket-{cell}": store.ticket(cell) for cell in server.runs}
        assert str(store.local).encode() not in server.uploaded["/upload/manifest"]


def refused(variables: object) -> NoReturn:
    raise wandb_standin.Unanswered


def test_a_server_that_refuses_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cell(CONFIG, store, trackers=[WandbTracker])
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_standin.serve() as server:
        monkeypatch.setattr(server, "_upsert", refused)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        assert COMMANDS["sync"](store=store.uri) != 0
    assert not server.runs


def test_there_is_something_to_upload_or_it_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UserError, match="no offline"):
        COMMANDS["sync"](store=store.uri)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    run_cell(CONFIG, store, trackers=[WandbTracker])
    with pytest.raises(UserError, match="key"):
        COMMANDS["sync"](store=store.uri)
