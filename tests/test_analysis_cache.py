"""The Parquet cache: only what changed is read; what is damaged or interrupted is mended."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from analysis_stores import config, made_store, result, write_store

from hiddenweights.analysis import cache, fetch
from hiddenweights.analysis.table import RawRun, Table
from hiddenweights.errors import UserError
from hiddenweights.identity import cell_id

CELLS = [config(seed=seed) for seed in range(6)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the runs that were read from a store, in order."""
    read, keys = fetch.StoreSource.read, []

    def counting(self: Any, wanted: Mapping[str, str]) -> Iterator[RawRun]:
        for run in read(self, wanted):
            keys.append(run.key)
            yield run

    monkeypatch.setattr(fetch.StoreSource, "read", counting)
    return keys


def same(one: Table, other: Table) -> None:
    for a, b in ((one.cells, other.cells), (one.epochs, other.epochs), (one.left_out, other.left_out)):
        pd.testing.assert_frame_equal(a, b[a.columns], check_dtype=False)


def test_a_second_call_reads_nothing_and_a_third_what_changed(tmp_path: Path, reads: list[str]) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS[:5])
    first = fetch.fetch(str(store), tmp_path / "cache")
    assert len(reads) == 5
    reads.clear()
    same(fetch.fetch(str(store), tmp_path / "cache"), first)
    assert reads == []
    changed = result(CELLS[2], accuracy=0.5)
    write_store(store, [changed, result(CELLS[5])])
    table = fetch.fetch(str(store), tmp_path / "cache")
    assert sorted(reads) == sorted([changed["cell"], cell_id(CELLS[5])])
    assert len(table.cells) == 6
    same(table, fetch.fetch(str(store)))
    same(fetch.fetch(str(store), tmp_path / "cache"), table)


def test_what_vanished_from_the_source_vanishes_from_the_table(tmp_path: Path) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    fetch.fetch(str(store), tmp_path / "cache")
    for path in (store / "cells" / cell_id(CELLS[0])).iterdir():
        path.unlink()
    table = fetch.fetch(str(store), tmp_path / "cache")
    assert cell_id(CELLS[0]) not in {*table.cells["cell"], *table.epochs["cell"]}
    assert len(table.cells) == 5


def test_a_store_can_become_empty(tmp_path: Path) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS[:2])
    fetch.fetch(str(store), tmp_path / "cache")
    for cell in CELLS[:2]:
        (store / "cells" / cell_id(cell) / "result.json").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="no cell"):
            fetch.fetch(str(store), tmp_path / "cache")
    write_store(store, [result(CELLS[2])])
    assert len(fetch.fetch(str(store), tmp_path / "cache").cells) == 1


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    monkeypatch.setattr(cache, "BATCH", 2)

    def dies(message: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(str(store), tmp_path / "cache", dies)
    reads.clear()
    table = fetch.fetch(str(store), tmp_path / "cache")
    assert len(reads) == 2
    same(table, fetch.fetch(str(store)))


@pytest.mark.parametrize("damage", ["half", "empty", "text", "gone", "one bit"])
@pytest.mark.parametrize("name", ["runs", "epochs"])
def test_half_a_cache_is_said_and_mended(tmp_path: Path, damage: str, name: str) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    fetch.fetch(str(store), tmp_path / "cache")
    path = next((tmp_path / "cache").rglob(f"*-{name}.parquet"))
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = data[:300] + bytes([data[300] ^ 1]) + data[301:]  # a value; Parquet does not notice
        contents = {"half": data[: len(data) // 2], "empty": b"", "text": b"not parquet", "one bit": flipped}
        path.write_bytes(contents[damage])
    said: list[str] = []
    table = fetch.fetch(str(store), tmp_path / "cache", lambda message, done, total: said.append(message))
    same(table, fetch.fetch(str(store)))
    if (name, damage) != ("runs", "gone"):  # then there is no part to speak of
        assert any("damaged" in message for message in said)
    same(fetch.fetch(str(store), tmp_path / "cache"), table)


def test_two_processes_at_once_do_not_mix_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    old = fetch.StoreSource(str(store))
    listing = dict([*old.listing().items()][:3])  # what the slower one saw

    def meanwhile(a: Any, b: Any) -> None:  # between its two files of the first part
        monkeypatch.undo()
        monkeypatch.setattr(cache.os, "getpid", lambda: 1)
        cache.read_cached(old, listing, tmp_path / "cache", cache.ignore)
        replace(a, b)

    calls, replace = iter([cache.os.replace, meanwhile]), cache.os.replace
    monkeypatch.setattr(cache.os, "replace", lambda a, b: next(calls)(a, b))
    table = fetch.fetch(str(store), tmp_path / "cache")
    same(fetch.fetch(str(store), tmp_path / "cache"), table)


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path: Path) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    (tmp_path / "file").write_text("")
    said: list[str] = []
    table = fetch.fetch(str(store), tmp_path / "file", lambda message, done, total: said.append(message))
    same(table, fetch.fetch(str(store)))
    assert any("cannot be written" in message for message in said)


def test_many_parts_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    monkeypatch.setattr(cache, "BATCH", 1)
    monkeypatch.setattr(cache, "PARTS", 3)
    table = fetch.fetch(str(store), tmp_path / "cache")
    assert len([*(tmp_path / "cache").rglob("*.parquet")]) == 2
    same(fetch.fetch(str(store), tmp_path / "cache"), table)


def test_two_sources_do_not_share(tmp_path: Path) -> None:
    for name, cells in (("a", CELLS[:2]), ("b", CELLS[2:])):
        made_store(tmp_path / name, "depth", cells)
    for name, n in (("a", 2), ("b", 4)):
        assert len(fetch.fetch(str(tmp_path / name), tmp_path / "cache").cells) == n


def test_a_store_behind_fsspec_reads_the_same(tmp_path: Path) -> None:
    import fsspec

    store = made_store(tmp_path / "store", "depth", CELLS)
    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/analysis-test", recursive=True)
    try:
        remote = fetch.fetch("memory://analysis-test", tmp_path / "cache")
        again = fetch.fetch("memory://analysis-test", tmp_path / "cache")
    finally:
        memory.rm("/analysis-test", recursive=True)
    local = fetch.fetch(str(store))
    shared = [name for name in local.cells if name not in ("source", "version")]
    for table in (remote, again):
        pd.testing.assert_frame_equal(table.cells[shared], local.cells[shared], check_dtype=False)
        pd.testing.assert_frame_equal(table.epochs, local.epochs, check_dtype=False)


@pytest.mark.slow(seconds=16)
def test_four_thousand_runs_of_a_hundred_epochs(tmp_path: Path) -> None:
    """A table takes at most three times as long as `json`, a cached one a third, and less than 1 GB."""
    layers = [f"layers.{i}.weight" for i in range(7)]
    template = result(config(train__epochs=100, model__arch="conv4"), layers=layers)
    text = json.dumps(template)
    store = write_store(tmp_path / "store", [])
    for seed in range(4_000):
        cell = cell_id(config(train__epochs=100, model__arch="conv4", seed=seed))
        folder = store / "cells" / cell
        folder.mkdir()
        named = text.replace(f'"cell": "{template["cell"]}"', f'"cell": "{cell}"')
        (folder / "result.json").write_text(named.replace('"seed": 0}', f'"seed": {seed}}}'))
    plain = (
        "import json; "
        "files = [*Path(sys.argv[1]).glob('cells/*/result.json')][::4]; "
        "cpu, clock = time.process_time(), time.perf_counter(); "
        "assert sum(len(json.loads(file.read_bytes())['history']) for file in files) == 100_000; "
    )
    fetched = (
        "from hiddenweights.analysis.fetch import fetch; "
        "cpu, clock = time.process_time(), time.perf_counter(); "
        "table = fetch(sys.argv[1], Path(sys.argv[2])); "
        "assert table.epochs.shape[0] == 400_000 and len(table.cells) == 4_000; "
    )

    def measure(code: str) -> tuple[float, float]:
        """Seconds (of the processor, if the machine is busy), and the gigabytes of the peak."""
        script = (
            "import time, sys; from pathlib import Path; " + code
            + "seconds = min(time.process_time() - cpu, time.perf_counter() - clock); "
            "status = Path('/proc/self/status').read_text(); "  # rusage would have that of pytest, too
            "print(seconds, int(status.partition('VmHWM:')[2].split()[0]) / 1e6)"
        )  # fmt: skip
        command = [sys.executable, "-c", script, str(store), str(tmp_path / "cache")]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250).stdout
        seconds, gigabytes = map(float, out.split())
        return seconds, gigabytes

    reading, first, second = 4 * measure(plain)[0], measure(fetched), measure(fetched)
    print(f"reading {reading}, first {first}, cached {second}")
    assert first[0] < 3 * reading  # 1.5 where it was measured
    assert second[0] < reading / 3  # 0.1
    assert max(first[1], second[1]) < 1
