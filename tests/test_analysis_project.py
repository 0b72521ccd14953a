"""A W&B project through the real client, against a loopback stand-in of the server."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from analysis_stores import config, made_store, result
from wandb_standin import PROJECT, Standin, serve

from hiddenweights.analysis import claims
from hiddenweights.analysis.commands import main
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.sources import project
from hiddenweights.analysis.sources.project import Project
from hiddenweights.analysis.table import tidy
from hiddenweights.errors import UserError
from hiddenweights.identity import cell_id

pytest.importorskip("wandb")
SOURCE = f"wandb:{PROJECT}"
CELLS = [config(seed=seed) for seed in range(4)]


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    with serve() as standin:
        monkeypatch.setenv("WANDB_BASE_URL", standin.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
        monkeypatch.setattr(project, "PAUSES", (0.01,) * 7)
        import wandb

        wandb.teardown()  # settings are read once a process
        yield standin
        wandb.teardown()


def test_a_project_reads_as_the_store_does(standin: Standin, tmp_path: Path) -> None:
    for cell in CELLS:
        standin.add(result(cell))
    remote = fetch(SOURCE)
    local = fetch(str(made_store(tmp_path, "depth", CELLS)))
    shared = [
        name for name in local.cells if name in remote.cells and name not in ("source", "version", "started")
    ]
    assert {"test_accuracy", "seconds", "model.k", "initial_weights_checksum"} <= set(shared)
    shared = [name for name in shared if name not in ("sweeps", "device")]  # W&B is told no device
    pd.testing.assert_frame_equal(remote.cells[shared], local.cells[shared], check_dtype=False)
    columns = list(local.epochs)
    pd.testing.assert_frame_equal(remote.epochs[columns], local.epochs, check_dtype=False)
    assert set(remote.cells["sweeps"]) == {"depth quickstart"}
    assert standin.asked["RunSampledHistory"] == 0  # a sample is no history


def test_more_than_five_hundred_epochs_and_more_than_a_page(standin: Standin) -> None:
    standin.add(result(config(train__epochs=600)))
    for seed in range(60):
        standin.add(result(config(seed=seed)))
    table = fetch(SOURCE)
    assert len(table.cells) == 61
    assert len(table.epochs) == 600 + 60 * 3


def test_what_must_not_be_mixed_in_is_left_out(standin: Standin) -> None:
    done, crashed, running, foreign, short = [*(result(cell) for cell in CELLS), result(config(seed=9))]
    unfinished = {name: value for name, value in crashed["summary"].items() if name != "finished"}
    standin.add(done)
    standin.add(done, name="copy", summary={**done["summary"], "finished": True})
    standin.add(crashed, state="crashed", summary=unfinished)
    standin.add(running, state="running", summary=unfinished)
    standin.add(foreign, config={"learning_rate": 0.1})
    standin.add(short)
    standin.short.add(short["cell"])
    standin.runs["copy"] = standin.runs.pop(done["cell"]) | {"name": "copy"}
    standin.add(done)
    table = fetch(SOURCE)
    assert table.cells[table.cells["state"] == "finished"]["cell"].tolist() == [done["cell"]]
    reasons = dict(zip(table.left_out["key"], table.left_out["reason"], strict=True))
    assert len(reasons) == 5
    for key, word in (
        (crashed["cell"], "crashed"),
        (running["cell"], "running"),
        (foreign["cell"], "another project"),
        (short["cell"], "1 of 3 rows"),
    ):
        assert word in reasons[key]
    assert any("second run" in reason for reason in reasons.values())


def test_tags_name_sweeps_and_can_change(standin: Standin, tmp_path: Path) -> None:
    done = result(CELLS[0])
    standin.add(done)
    run = standin.runs[done["cell"]]
    run["tags"] = ["depth", "../../depth", '"><img/src=x>', "Best so far", "x" * 300]
    assert set(fetch(SOURCE, tmp_path).cells["sweeps"]) == {"depth quickstart"}
    run["tags"] = ["width"]
    assert set(fetch(SOURCE, tmp_path).cells["sweeps"]) == {"quickstart width"}


def test_rate_limits_are_waited_out(standin: Standin) -> None:
    for cell in CELLS:
        standin.add(result(cell))
    standin.refuse = {"RunHistoryKeys": 1}
    assert len(fetch(SOURCE).epochs) == 4 * 3


def test_errors_are_repeated_with_growing_pauses_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "PAUSES", (1, 2, 4))
    from wandb.errors import CommError

    pauses: list[float] = []
    source, answers = Project(PROJECT, pauses.append), iter([CommError("429"), OSError("reset"), "answer"])

    def ask() -> str:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    assert source._patient(ask) == "answer"
    assert pauses == [1, 2]
    pauses.clear()

    def down() -> str:
        raise CommError("down")

    with pytest.raises(UserError, match="run this again"):
        source._patient(down)
    assert pauses == [1, 2, 4]


def test_only_what_changed_is_asked_for_and_a_dead_fetch_resumes(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiddenweights.analysis.cache.BATCH", 1)
    for cell in CELLS:
        standin.add(result(cell))

    def dies(message: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(SOURCE, tmp_path, dies)
    standin.asked.clear()
    assert len(fetch(SOURCE, tmp_path).cells) == 4
    assert standin.asked["HistoryPage"] == 2
    standin.asked.clear()
    fetch(SOURCE, tmp_path)
    assert standin.asked["HistoryPage"] == 0
    standin.add(result(CELLS[0], accuracy=0.5), heartbeat="2026-02-02T00:00:00")
    table = fetch(SOURCE, tmp_path)
    assert standin.asked["HistoryPage"] == 1
    changed = table.cells.set_index("cell").loc[cell_id(CELLS[0])]
    assert changed["test_accuracy"] == pytest.approx(0.5, abs=0.01)


def test_runs_are_read_at_once(standin: Standin) -> None:
    for seed in range(16):
        standin.add(result(config(seed=seed)))
    source = Project(PROJECT)
    listing = source.listing()
    standin.latency = 0.2
    start = time.monotonic()
    assert len([*source.read(listing)]) == 16
    assert time.monotonic() - start < 16 * 3 * 0.2 / 2  # three requests a run


@pytest.mark.parametrize("source", ["wandb:someone/elsewhere", SOURCE])
def test_a_project_that_is_not_there_or_empty(
    standin: Standin, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", "--no-cache", "--from", source]) == 2
    err = capsys.readouterr().err
    assert source in err
    assert err.count("\n") == 1


def test_a_figure_from_a_project(standin: Standin, tmp_path: Path) -> None:
    for cell in CELLS:
        standin.add(result(cell))
    assert main(["figure", "depth", "--no-cache", "--from", SOURCE, "--out", str(tmp_path)]) == 0
    assert pd.read_csv(tmp_path / "depth.csv")["n"].tolist() == [4]


def test_tidy_orders_what_came_in_any_order(standin: Standin) -> None:
    for cell in CELLS:
        standin.add(result(cell))
    from hiddenweights.analysis.table import frame

    source = Project(PROJECT)
    runs = [*source.read(source.listing())]
    one, other = (tidy(frame(order, SOURCE)) for order in (runs, runs[::-1]))
    pd.testing.assert_frame_equal(one.cells, other.cells)
    pd.testing.assert_frame_equal(
        one.epochs.sort_values(["cell", "epoch"]).reset_index(drop=True)[list(other.epochs)],
        other.epochs.sort_values(["cell", "epoch"]).reset_index(drop=True),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces uses pydantic's old names
def test_the_report_as_a_wandb_report(
    standin: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is optional")
    for cell in CELLS:
        standin.add(result(cell))
    command = ["report", "--no-cache", "--from", SOURCE, "--out", str(tmp_path), "--wandb"]
    assert main([*command, PROJECT]) == 0
    assert "r1" in capsys.readouterr().out
    (saved,) = standin.reports
    assert saved["type"] == "runs/draft"
    spec = json.loads(saved["spec"])
    text = json.dumps(spec, ensure_ascii=False)
    assert all(claim.says in text for claim in claims.CLAIMS)
    assert {block["type"] for block in spec["blocks"]} >= {"heading", "markdown-block", "panel-grid"}
    (view,) = standin.views
    section = json.loads(view["spec"])["section"]
    panels = section["panelBankConfig"]["sections"][0]["panels"]
    assert {panel["viewType"] for panel in panels} == {"Scatter Plot", "Run History Line Plot"}
    (runs,) = section["runSets"]
    names = [key["name"] for key in runs["grouping"]]
    assert {"model.value.k", "model.value.width", "optim.value.lr"} <= {*names}  # as W&B keeps nested configs
    assert {f"config:{name}" for name in names} <= {*runs["runFeed"]["columnPinned"]}
    assert "depth" in json.dumps([block for block in spec["blocks"] if block["type"] == "panel-grid"])
    assert main([*command, "someone"]) == 2
    assert main([*command, "someone/elsewhere"]) == 2
