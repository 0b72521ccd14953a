"""Sources -> table: the store, offline W&B files, and what is left out."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from analysis_stores import config, grid, made_store, result, write_store

from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.sources.offline import read_run
from hiddenweights.analysis.table import combine
from hiddenweights.cells import wandb_log
from hiddenweights.cells.format import Damaged
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import flatten, to_dict
from hiddenweights.identity import cell_id, resolve

wandb = pytest.importorskip("wandb")


def log_offline(
    folder: Path,
    cell: CellConfig,
    records: list[dict[str, Any]] | None = None,
    finished: bool = True,
    attempt: int = 1,
    foreign: dict[str, Any] | None = None,
) -> Path:
    """A real offline W&B run, as the sweeps log it; its `.wandb` file."""
    found = result(cell)
    name = foreign["run"] if foreign else found["cell"]
    run = wandb.init(
        project="hidden-weights",
        group="quickstart",
        tags=["quickstart", "depth"],
        id=name,
        config=foreign or {**to_dict(resolve(cell)), "cell": found["cell"]},
        resume="allow",
        dir=str(folder),
        mode="offline",
        settings=wandb.Settings(
            console="off",
            silent=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        ),
    )
    run.define_metric("*", step_metric="epoch")
    for record in found["history"] if records is None else records:
        run.log({**record, "attempt": attempt})
    if finished:
        run.summary.update(
            {
                "finished": True,
                "seconds": found["seconds"],
                "initial_weights_checksum": found["initial_weights_checksum"],
            }
        )
    run.finish()
    file = max(folder.rglob(f"run-{name}.wandb"), key=lambda path: path.stat().st_mtime_ns)
    deadline = time.monotonic() + 60
    while read_run(file).state == "crashed":  # `finish` returns some 15 ms before the file is complete
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file


def test_store_and_offline_runs_give_the_same_table(tmp_path: Path) -> None:
    cells = [config(seed=seed) for seed in (0, 1)] + [config(model__method="dense")]
    made_store(tmp_path / "store", "quickstart", cells)
    for cell in cells:
        log_offline(tmp_path / "offline", cell)
    store, offline = fetch(str(tmp_path / "store")), fetch(str(tmp_path / "offline"))

    shared = [*flatten(cells[0]), "cell", "name", "state", "test_accuracy", "kept", "weights_checksum"]
    shared += ["initial_weights_checksum", "seconds", "epoch"]
    left = store.cells.set_index("cell", drop=False)[shared].sort_index()
    right = offline.cells.set_index("cell", drop=False)[shared].sort_index()
    pd.testing.assert_frame_equal(left, right)
    pd.testing.assert_frame_equal(store.epochs, offline.epochs[store.epochs.columns])
    assert len(store.epochs) == 9
    assert set(offline.cells["sweeps"]) == {"depth quickstart"}


def test_our_reader_agrees_with_the_official_one(tmp_path: Path) -> None:
    big = [{"epoch": e, **{f"kept/layer{i}": e / 7 + i for i in range(400)}} for e in range(1, 12)]
    file = log_offline(tmp_path, config(), records=[*big, {"epoch": 12, "test_accuracy": math.nan}])
    assert file.stat().st_size > 3 * 32 * 1024  # records cross the borders of blocks

    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.splitlines()
    official = [json.loads(line) for line in lines]
    assert len(official) == sum(1 for _ in wandb_log.records(file))
    rows = [record["history"]["item"] for record in official if record["type"] == "history"]
    ours = read_run(file)
    assert json.loads(json.dumps(ours.history).replace("NaN", '"NaN"')) == rows
    run = next(record["run"] for record in official if record["type"] == "run")
    assert ours.cell == run["config"]["update"]["cell"] == cell_id(config())
    assert ours.config["model"] == run["config"]["update"]["model"]


def test_a_torn_file_ends_early_and_loses_nothing_before(tmp_path: Path) -> None:
    records = [{"epoch": epoch, "test_accuracy": epoch / 100} for epoch in range(1, 60)]
    whole = log_offline(tmp_path, config(), records=records)
    data = whole.read_bytes()
    full = [*wandb_log.records(whole)]
    torn = tmp_path / "torn.wandb"
    for length in (0, 3, 7, 20, len(data) // 2, len(data) - 1):
        torn.write_bytes(data[:length])
        found = [*wandb_log.records(torn)]
        assert found == full[: len(found)]
        assert len(found) < len(full)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    torn.write_bytes(flipped)
    with pytest.raises(Damaged, match=r"torn\.wandb"):
        [*wandb_log.records(torn)]
    table = fetch(str(tmp_path / "wandb"))
    assert table.cells["state"].tolist() == ["finished"]
    whole.write_bytes(flipped)
    table = fetch(str(tmp_path / "wandb"))
    assert table.cells["state"].tolist() == ["damaged"]
    assert whole.name in table.left_out["reason"].item()


def test_attempts_of_one_cell_become_one_row_and_say_so(tmp_path: Path) -> None:
    cell = config(train__epochs=4)
    history = result(cell)["history"]
    first = [{**record, "test_accuracy": 0.123} for record in history[:2]]
    log_offline(tmp_path, cell, records=first, finished=False)
    shutil.move(next(tmp_path.rglob("*.wandb")).parent, tmp_path / "offline-run-20200101_000000-first")
    log_offline(tmp_path, cell, records=history, attempt=2)
    log_offline(tmp_path, config(seed=1), finished=False)

    table = fetch(str(tmp_path))
    assert len(table.cells) == 2
    mine = table.epochs[table.epochs["cell"] == cell_id(cell)]
    assert mine["test_accuracy"].tolist() == [record["test_accuracy"] for record in history]
    reasons = dict(zip(table.left_out["cell"], table.left_out["reason"], strict=True))
    assert "replaced" in reasons[cell_id(cell)]
    assert table.cells.set_index("cell").loc[cell_id(config(seed=1)), "state"] == "failed"
    assert cell_id(config(seed=1)) in reasons


def test_files_and_numbers_that_cannot_be_meant_are_passed_over(tmp_path: Path) -> None:
    cells = [config(seed=seed) for seed in range(3)]
    results = [*map(result, cells)]
    for found, accuracy in zip(results[1:], (93.0, math.nan), strict=True):
        found["summary"]["test_accuracy"] = accuracy
    store = write_store(tmp_path / "store", results, {"depth": map(cell_id, cells)})
    (store / "sweeps" / "Copy of depth.json").write_text("{}")
    table = fetch(str(store))
    assert table.cells[table.cells["state"] == "finished"]["cell"].tolist() == [cell_id(cells[0])]
    assert table.left_out["reason"].str.contains("test_accuracy").sum() == 2


def test_an_object_store_that_cannot_be_asked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):  # as that of an S3 client: no OSError
        pass

    def refuses(*_: Any, **__: Any) -> bool:
        raise NoCredentialsError("none found")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.exists", refuses)
    with pytest.raises(UserError, match=r"memory://runs.*NoCredentialsError: none found"):
        fetch("memory://runs")


def test_foreign_and_empty_sources_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        fetch(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no runs"):
        fetch(str(tmp_path / "empty"))
    log_offline(tmp_path / "foreign", config(), foreign={"run": "other", "learning_rate": 1})
    with pytest.raises(UserError, match=r"1 runs left out.*another project"):
        fetch(str(tmp_path / "foreign"))
    with pytest.raises(UserError, match="no cell of this project"):
        fetch(str(write_store(tmp_path / "store", [])))
    newer = write_store(tmp_path / "newer", [])
    (newer / "store.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="99"):
        fetch(str(newer))
    with pytest.raises(UserError, match="nosuch"):
        fetch("nosuch://bucket/runs")
    with pytest.raises(UserError, match="ENTITY/PROJECT"):
        fetch("wandb:only-a-project")


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    cells = grid(archs=("conv2",), ks=(0.5,), distributions=("signed_constant",), seeds=range(6))[:6]
    good, nan, failed, begun, misfit, missing = (result(cell) for cell in cells)
    nan["summary"]["test_accuracy"] = math.nan
    misfit["config"]["model"]["colour"] = "red"
    store = write_store(tmp_path, [good, nan, misfit], {"depth": [cell_id(cell) for cell in cells]})
    for found, name, content in (
        (failed, "failure.json", {"error": "Diverged", "message": "Diverged: loss is nan", "epoch": 2}),
        (begun, "lock", {"owner": "x", "heartbeat": 0}),
    ):
        (store / "cells" / found["cell"]).mkdir()
        (store / "cells" / found["cell"] / name).write_text(json.dumps(content))

    table = fetch(str(store))
    assert table.cells[table.cells["state"] == "finished"]["cell"].tolist() == [good["cell"]]
    reasons = dict(zip(table.left_out["cell"], table.left_out["reason"], strict=True))
    for found, word in ((nan, "not a number"), (failed, "Diverged"), (misfit, "colour")):
        assert word in reasons[found["cell"]]
    assert begun["cell"] in reasons
    assert "not trained yet" in reasons[missing["cell"]]
    assert good["cell"] not in reasons
    assert set(table.left_out["sweeps"]) == {"depth"}


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    store = made_store(tmp_path, "depth", [config()])
    path = store / "cells" / cell_id(config()) / "result.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=cell_id(config())):
        fetch(str(store))


def test_two_sources_are_put_together(tmp_path: Path) -> None:
    shared, ours, theirs = config(), config(seed=1), config(seed=2)
    a = fetch(str(made_store(tmp_path / "a", "depth", [shared, ours])))
    failed = write_store(tmp_path / "b", [result(shared), result(theirs)], {"width": [cell_id(shared)]})
    (failed / "cells" / cell_id(ours)).mkdir()
    (failed / "cells" / cell_id(ours) / "failure.json").write_text('{"message": "Diverged"}')
    table = combine([a, fetch(str(failed))])
    assert sorted(table.cells["cell"]) == sorted(map(cell_id, (shared, ours, theirs)))
    assert len(table.epochs) == 9
    assert table.left_out.empty  # what failed there is finished here
    assert table.cells.set_index("cell").loc[cell_id(shared), "sweeps"] == "depth width"
    assert len(combine([a, a]).epochs) == len(a.epochs)  # the same source twice


def test_two_sources_that_disagree_on_a_cell_are_named(tmp_path: Path) -> None:
    cells = [config(), config(seed=1)]
    made_store(tmp_path / "a", "depth", cells)
    write_store(tmp_path / "b", [result(cells[0], accuracy=0.4), result(cells[1])])
    with pytest.raises(UserError) as error:
        combine([fetch(str(tmp_path / name)) for name in "ab"])
    assert all(word in str(error.value) for word in (cell_id(cells[0]), str(tmp_path / "a"), "0.4"))
    assert cell_id(cells[1]) not in str(error.value)


def test_a_golden_file_of_the_wandb_this_was_written_for() -> None:
    run = read_run(Path(__file__).parent / "golden.wandb")
    assert (run.cell, run.state, len(run.history)) == (cell_id(config()), "finished", 3)
    assert run.sweeps == {"depth", "quickstart"}
    assert run.history[-1] == {**run.history[-1], **result(config())["history"][-1]}
    assert run.summary["initial_weights_checksum"] == "w0"
