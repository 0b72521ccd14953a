"""The store: whole files or none, one trainer a cell, nothing outside its folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hiddenweights.cells import lease as lease_module
from hiddenweights.cells import store as store_module
from hiddenweights.cells.format import STORE_FORMAT, Damaged
from hiddenweights.cells.store import Busy, LeaseLost, Store, default_store
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import to_dict
from hiddenweights.identity import cell_id

CELL, OTHER = cell_id(CellConfig()), "1" * 16
RESULT = {
    "format": 2,
    "config": to_dict(CellConfig()),
    "history": [{"epoch": 1}],
    "summary": {"test_accuracy": 0.5},
    "seconds": 1.5,
}
HOLDER = """
import sys, time
from hiddenweights.cells.store import Store
with Store(sys.argv[1]).lease(sys.argv[2]) as lease:
    print(lease.attempt, flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Store("memory://bucket/runs")
    return Store(tmp_path / "runs")


def test_a_cell_is_missing_then_stopped_then_failed_then_finished(store: Store) -> None:
    store.prepare()
    assert store.states([CELL]) == {CELL: "missing"}
    with store.lease(CELL) as lease:
        assert store.states([CELL]) == {CELL: "running"}
    assert store.states([CELL]) == {CELL: "stopped"}
    store.fail(CELL, {"message": "no", "attempt": 1})
    assert store.states([CELL]) == {CELL: "failed"}
    with store.lease(CELL) as lease:
        store.finish(CELL, RESULT)
        lease.finished()
    assert store.states([CELL, OTHER]) == {CELL: "finished", OTHER: "missing"}
    assert store.result(CELL) == RESULT
    assert store.failure(CELL) is None
    assert dict(store.results([CELL, OTHER])) == {CELL: RESULT}


def test_a_listing_has_results_beside_files_that_go_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = Store(tmp_path), os.scandir
    store.prepare()
    store.finish(CELL, RESULT)

    class Gone:
        name = "lock"

        def is_file(self) -> bool:
            raise FileNotFoundError

    @contextlib.contextmanager
    def scan(path: Any) -> Iterator[Any]:
        with real(path) as found:
            yield [Gone(), *found] if Path(path).name == CELL else found

    monkeypatch.setattr(os, "scandir", scan)
    assert store.listing()[CELL][0] == "result.json"


def test_an_empty_variable_names_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDENWEIGHTS_STORE", "")
    assert default_store() == "runs"


def test_plans_are_kept_by_name(store: Store) -> None:
    assert store.plan("depth") is None
    assert store.plans() == []
    store.write_plan("depth", {"cells": [CELL]})
    assert store.plan("depth") == {"cells": [CELL]}
    assert store.plans() == ["depth"]


def test_a_held_cell_is_busy_and_attempts_are_counted(store: Store) -> None:
    store.prepare()
    with store.lease(CELL) as first:
        assert first.attempt == 1
        with pytest.raises(Busy), store.lease(CELL):
            pass
        with store.lease(OTHER):
            pass
    with store.lease(CELL) as second:
        assert second.attempt == 2


def test_attempts_are_counted_on_from_a_failure(store: Store) -> None:
    store.prepare()
    store.fail(CELL, {"error": "E", "message": "m", "epoch": 0, "attempt": 3, "transient": True})
    with store.lease(CELL) as lease:
        assert lease.attempt == 4


def test_a_lock_is_removed_when_its_cell_is_finished_and_else_only_freed(store: Store) -> None:
    store.prepare()
    with store.lease(CELL):
        pass
    freed = store._read(f"cells/{CELL}/lock")
    assert freed is not None
    assert freed["heartbeat"] == 0
    with store.lease(CELL) as lease:
        lease.finished()
    assert store._read(f"cells/{CELL}/lock") is None


def test_why_a_trainer_waits_stays_in_its_lock_until_it_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.prepare()
    monkeypatch.setattr(lease_module, "HEARTBEAT", 0.05)

    def waiting() -> object:
        return (store._read(f"cells/{CELL}/lock") or {}).get("waiting")

    with store.lease(CELL) as lease:
        lease.renew(waiting="the disk is full")
        time.sleep(0.3)
        assert waiting() == "the disk is full"
        lease.renew()
        assert not waiting()


def test_a_lease_that_was_renewed_in_time_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.prepare()
    with store.lease(CELL) as lease:
        lease._renewed = 0.0
        lease.check()
        with monkeypatch.context() as away:
            away.setattr(store, "_read_lock", lambda name: pytest.fail("read again"))
            lease.check()


def test_without_proc_the_system_is_asked_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __init__(self, path: str) -> None:
            pass

        def read_text(self) -> str:
            raise FileNotFoundError

        def exists(self) -> bool:
            return False

    monkeypatch.setattr(lease_module, "Path", Missing)
    assert lease_module._birth(os.getpid()) == ""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.kill()
        process.wait()
    assert lease_module._birth(process.pid) is None


def test_a_silent_host_loses_its_cell(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.prepare()
    with store.lease(CELL) as lease:
        monkeypatch.setattr(lease_module, "_host", lambda: "elsewhere")
        with pytest.raises(Busy), store.lease(CELL):
            pass
        monkeypatch.setattr(lease_module, "STALE", -1.0)
        with store.lease(CELL) as taken:
            assert taken.attempt == 2
        with pytest.raises(LeaseLost):
            lease.check()


def test_a_lease_that_was_late_is_kept_if_nobody_took_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.prepare()
    with store.lease(CELL) as lease:
        monkeypatch.setattr(lease_module, "STALE", -1.0)
        lease.check()
        before = store._read(f"cells/{CELL}/lock")
        assert before is not None
        store._write(f"cells/{CELL}/lock", before | {"owner": "another"})
        with pytest.raises(LeaseLost):
            lease.check()


def test_a_host_of_the_same_name_keeps_its_cell(store: Store) -> None:
    store.prepare()
    mine = lease_module._host()
    boot = lease_module.BOOT.read_text().strip() if lease_module.BOOT.exists() else ""
    assert boot in mine
    other = mine.removesuffix(boot) + "that of another boot"
    lock = {"owner": "o", "host": other, "pid": 2**22 + 1, "born": "1", "launch": "", "attempt": 1}
    store._write(f"cells/{CELL}/lock", lock | {"heartbeat": time.time()})
    with pytest.raises(Busy), store.lease(CELL):  # its process is on the other machine
        pass


def test_a_lease_is_renewed_and_its_loss_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.prepare()
    monkeypatch.setattr(lease_module, "HEARTBEAT", 0.05)
    with store.lease(CELL) as lease:
        before = store._read(f"cells/{CELL}/lock")
        time.sleep(0.3)
        after = store._read(f"cells/{CELL}/lock")
        assert before is not None
        assert after is not None
        assert after["heartbeat"] > before["heartbeat"]
        lease.check()
        store._write(f"cells/{CELL}/lock", after | {"owner": "another"})
        time.sleep(0.3)
        with pytest.raises(LeaseLost):
            lease.check()
    assert store._read(f"cells/{CELL}/lock") == after | {"owner": "another"}  # not ours to remove


def test_a_process_that_ends_while_it_is_looked_at_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as process, open(f"/proc/{process.pid}/stat") as stat:
        process.kill()
        process.wait()
        monkeypatch.setattr(Path, "read_text", lambda path: stat.read())
        assert lease_module._birth(process.pid) is None


def test_the_cell_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    command = [sys.executable, "-c", HOLDER, str(tmp_path), CELL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        with pytest.raises(Busy), store.lease(CELL):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with store.lease(CELL) as lease:
        assert lease.attempt == 2


def test_of_many_that_claim_a_cell_one_has_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    start, claimed, refused = threading.Barrier(8), [], []

    def claim() -> None:
        start.wait()
        try:
            with Store(tmp_path).lease(CELL):
                claimed.append(1)
                end.wait()
        except Busy:
            refused.append(1)

    end = threading.Event()
    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(refused) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert (len(claimed), len(refused)) == (1, 7)


def test_a_reader_never_sees_half_a_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    writing = True

    def write() -> None:
        store.finish(CELL, RESULT | {"history": [{"epoch": 1}] * 2000})

    def write_on() -> None:
        while writing:
            write()

    write()  # or a slow machine's reader is done before the first one
    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        seen = [store.result(CELL) for _ in range(200)]
    finally:
        writing = False
        writer.join()
    assert all(result and len(result["history"]) == 2000 for result in seen)


def test_a_failed_write_leaves_nothing_and_keeps_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.finish(CELL, RESULT)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        store.finish(CELL, RESULT | {"seconds": 2.0})
    assert store.result(CELL) == RESULT
    assert sorted(path.name for path in (tmp_path / "cells" / CELL).iterdir()) == ["result.json"]


def test_what_a_killed_writer_left_goes_when_the_cell_is_finished(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fail(CELL, {"message": "no"})
    (tmp_path / "cells" / CELL / ".result.json.0.tmp").write_text("{")
    (tmp_path / "cells" / CELL / "checkpoint").mkdir()
    store.finish(CELL, RESULT)
    assert sorted(path.name for path in (tmp_path / "cells" / CELL).iterdir()) == ["result.json"]


def test_a_remote_checkpoint_is_saved_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").store.clear()
    store = Store("memory://bucket/runs")
    with contextlib.suppress(KeyboardInterrupt), store.checkpoint(CELL) as checkpoint:
        (checkpoint.folder / "epoch-1").write_text("one")
        (checkpoint.folder / "epoch-2").write_text("two")
        raise KeyboardInterrupt  # a stop uploads what there is
    monkeypatch.setattr(store_module.Checkpoint, "INTERVAL", -1.0)
    with store.checkpoint(CELL) as checkpoint:
        assert sorted(path.name for path in checkpoint.folder.iterdir()) == ["epoch-1", "epoch-2"]
        (checkpoint.folder / "epoch-1").unlink()
        (checkpoint.folder / "epoch-3").write_text("three")
        checkpoint.save()
    with store.checkpoint(CELL) as checkpoint:
        names = {path.name: path.read_text() for path in checkpoint.folder.iterdir()}
    assert names == {"epoch-2": "two", "epoch-3": "three"}
    with contextlib.suppress(LeaseLost), store.checkpoint(CELL) as checkpoint:
        (checkpoint.folder / "epoch-2").unlink()
        raise LeaseLost  # another process has it now
    with store.checkpoint(CELL) as checkpoint:
        assert (checkpoint.folder / "epoch-2").exists()


def test_a_newer_store_is_refused(store: Store) -> None:
    store.prepare()
    store.check()
    store._write("store.json", {"format": STORE_FORMAT + 1})
    with pytest.raises(UserError, match="format"):
        store.check()


def test_a_place_that_cannot_be_a_store_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError):
            Store(place).prepare()
    with pytest.raises(UserError):
        Store("nosuch://bucket/runs")


@pytest.mark.parametrize("cell", ["../../etc/passwd", "", "0" * 15, "0" * 16 + "/..", "A" * 16])
def test_no_name_leaves_the_store(cell: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    with pytest.raises(UserError):
        store.fail(cell, {})
    with pytest.raises(UserError):
        store.write_plan(f"../{cell}", {})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_said_and_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.finish(CELL, RESULT)
    path = tmp_path / "cells" / CELL / "result.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged, match=r"result\.json"):
            store.result(CELL)
    why: dict[str, str] = {}
    assert not [*store.results([CELL], why)]
    assert set(why) == {CELL}
    store.discard_damaged(CELL)
    assert store.states([CELL]) == {CELL: "missing"}


def test_results_without_a_seal_are_read_only_from_the_first_format(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.finish(CELL, RESULT)
    path = tmp_path / "cells" / CELL / "result.json"
    path.write_text(json.dumps(RESULT | {"format": 1}))
    assert store.result(CELL) == RESULT | {"format": 1}
    path.write_text(json.dumps(RESULT))
    with pytest.raises(Damaged):
        store.result(CELL)
    store.finish(OTHER, RESULT)
    with pytest.raises(Damaged, match=CELL):  # the result of another cell
        store.result(OTHER)


def test_a_folder_that_may_not_be_looked_at_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Path, **options: object) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    store = Store(tmp_path / "private" / "runs")
    monkeypatch.setattr(Path, "exists", refuses)  # as for a user other than root, up to Python 3.12
    with pytest.raises(UserError, match=r"store: .*private"):
        store.check()
