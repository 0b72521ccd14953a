"""Claims settled seed by seed: what is planned, what is trained, when it stops, and what survives a kill."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from analysis_stores import result, write_store
from rich.console import Console

from hiddenweights import cli
from hiddenweights.analysis import claims, summary
from hiddenweights.analysis.fetch import fetch
from hiddenweights.cells.cell import failure_record
from hiddenweights.cells.inputs import check_inputs
from hiddenweights.cells.store import Store, StoreAway
from hiddenweights.claims import plan
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.sweeps import commands, launch, settle, tracking
from hiddenweights.sweeps.arguments import chosen
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.progress import Progress
from hiddenweights.sweeps.ray_work import Work
from hiddenweights.training.train import Trainer

# Above chance after two epochs, far above a random mask: a few seeds decide it.
TINY = {"data.name": "digits", "model.arch": "fc", "model.width": 0.2, "train.epochs": 2, "model.k": 0.5}
SETS = [f"--set={name}={value}" for name, value in TINY.items()]
WORDS = ["above_random", "--budget", "1h", "--sweep", "control", "--store", "runs", "--executor", "inline"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    tracking.tracking_mode.cache_clear()
    yield
    tracking.tracking_mode.cache_clear()


def run(*args: str) -> int:
    return cli.run(commands.COMMANDS, "sweeps", ["settle", *args])


def asked() -> settle.Question:
    words = tuple(f"{name}={value}" for name, value in TINY.items())
    return settle.ask({"above_random": chosen("control", words, ())[1].values()})


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["nosuch", "--budget", "1h"], ["nosuch", "plateau"]),
        (["plateau", "--budget", "0h"], ["--budget", "0h"]),
        (["plateau", "--budget", "much"], ["--budget", "much"]),
        (["plateau"], ["--budget"]),
        (["--budget", "1h"], ["CLAIM"]),
        (["unchanged", "--budget", "1h"], ["unchanged"]),
        (["plateau", "--budget", "1h", "--axis", "seed=1,2"], ["seed"]),
        (["plateau", "--budget", "1h", "--sweep", "resnet18", "--set", "model.k=0.5"], ["plateau"]),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    args: list[str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args, "--store", "runs") == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert all(name in printed.err for name in names), printed.err
    assert [*tmp_path.iterdir()] == []


def test_a_claim_whose_data_are_not_here_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(configs: Any, address: str | None) -> list[str]:
        for config in configs:  # as the preflight does in a process of its own
            check_inputs(config)
        return []

    monkeypatch.setattr(launch, "preflight", lacking)
    assert run("imagenet", "--budget", "1h", "--store", "runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "imagenet" in error
    assert "data.root" in error
    assert [*tmp_path.iterdir()] == []


def test_it_trains_until_the_claim_is_decided_and_a_kill_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    real = Trainer.__init__

    def spy(self: Trainer, config: Any, *rest: Any, **named: Any) -> None:
        trained.append(cell_id(config))
        if len(trained) == 4:
            raise KeyboardInterrupt
        real(self, config, *rest, **named)

    monkeypatch.setattr(Trainer, "__init__", spy)
    assert run(*WORDS, *SETS, "--dry-run") == 1
    assert trained == []
    assert not Path("runs").exists()
    assert run(*WORDS, *SETS) == 130
    assert run(*WORDS, *SETS) == 0
    killed = set(trained)
    assert "holds here" in capsys.readouterr().out
    assert run(*WORDS, *SETS) == 0  # decided: nothing is trained
    before = len(trained)
    again = [word if word != "runs" else "calm" for word in WORDS]
    assert run(*again, *SETS) == 0
    assert {*trained[before:]} == killed

    # The analysis comes to the same verdict, by the same rule.
    (found,) = claims.measure(fetch("runs"), [one for one in claims.CLAIMS if one.name == "above_random"])
    assert (found.verdict, found.anytime) == ("holds here", True)
    assert any("anytime-valid" in line for line in summary.claim_lines(claims.rows([found])))
    plan = Store("runs").plan("settle-above_random")
    assert plan is not None
    assert {*plan["trained"]} == killed


def made(seconds: float, seeds: int, gap: float = 0.1) -> Store:
    """A store in which that many seeds of each condition are finished; edge-popup is `gap` above random."""
    finished = []
    for cell in asked().cells.values():
        if cell["seed"] < seeds:
            better = gap * (cell["model.method"] == "edge_popup")
            made_ = result(unflatten(cell.flat), 0.5 + better + 0.01 * (int(cell.id, 16) % 7))
            finished.append(made_ | {"seconds": seconds})
    return Store(write_store(Path("made"), finished))


def test_the_budget_is_spent_on_cells_as_they_were_measured() -> None:
    store = made(seconds=600.0, seeds=2)
    now = settle.look(asked(), store)
    assert len(now.plans[0].cells) == 4  # the third seed of two comparisons
    assert len(settle.affordable(now, 10_000.0)) == 4
    assert settle.affordable(now, 1_300.0) == []  # half a step decides nothing
    for cell in now.plans[0].cells:
        assert now.expected(cell) == 600.0


def test_all_steps_share_one_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    started, steps, measured_before = [], [], []

    class Instant:
        """In the place of Ray: cells are finished as soon as they are asked for."""

        def __init__(self, work: Work) -> None:
            started.append(work)
            self._cells = work.cells

        def __call__(self, cells: Any, measured: Measured, progress: Progress, alone: bool = False) -> None:
            steps.append([*cells])
            measured_before.append(len(measured.seconds()))
            for cell in cells:
                config = self._cells[cell]
                better = 0.03 * (config.model.method == "edge_popup")
                accuracy = 0.5 + better + 0.01 * (int(cell, 16) % 3)
                write_store(Path("runs"), [result(config, accuracy)])
                progress.finished(cell, accuracy, 1.0)

        def close(self) -> None:
            started.append(None)

    monkeypatch.setattr(launch, "Supervisor", Instant)
    words = [word for word in WORDS if word not in ("--executor", "inline")]
    assert run(*words, *SETS) == 0
    assert len(steps) > 2
    assert len(started) == 2  # started once, and closed
    # Each step knows what the cells before it took: two kinds.
    assert measured_before[0] == 0
    assert measured_before[-1] == 2


def test_a_claim_is_given_up_that_the_budget_hardly_decides(capsys: pytest.CaptureFixture[str]) -> None:
    store = made(seconds=600.0, seeds=6, gap=0.0)
    before = len(store.finished())
    words = [word if word != "runs" else "made" for word in WORDS]
    words[words.index("1h")] = "80m"  # two seeds of every comparison
    assert run(*words, *SETS) == 1
    assert "given up" in capsys.readouterr().out
    assert len(store.finished()) == before
    now = settle.look(asked(), store)
    assert len(now.open) == 1
    assert settle.affordable(now, 80 * 60.0) == []
    assert len(settle.affordable(now, 1e6)) > 0  # fourteen seeds may well


def test_what_was_spent_is_in_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    store = made(seconds=600.0, seeds=2)
    spent = [cell for cell in asked().cells if store.result(cell)]
    store.write_plan("settle-above_random", {"cells": spent, "trained": spent})
    words = [word if word != "runs" else "made" for word in WORDS]
    words[words.index("1h")] = "80m"  # eight cells of ten minutes
    assert run(*words, *SETS) == 1
    assert "budget is spent" in capsys.readouterr().out
    assert len(store.finished()) == 8


def test_it_says_why_it_trains_no_more() -> None:
    now = settle.look(asked(), made(seconds=600.0, seeds=2))
    assert "spent" in settle._why_not(now, 0.0)
    assert "too small" in settle._why_not(now, 1_300.0)
    assert "larger --budget" in settle._why_not(now, 1_300.0)
    full = settle.look(asked(), made(seconds=600.0, seeds=plan.MOST_SEEDS, gap=0.0))
    assert f"{plan.MOST_SEEDS} seeds" in settle._why_not(full, 1_300.0)


def test_a_step_whose_cells_all_fail_is_the_last(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.prepare()
    cells = [cell for cell in asked().cells.values() if cell["seed"] == 0]

    def fail(group: Any, measured: Measured, progress: Progress, alone: bool = False) -> None:
        for cell in group:
            store.fail(cell, failure_record("ArithmeticError", "not a number"))
            progress.failed(cell, "not a number")

    assert not settle._train("settle-x", cells, store, Options(), Console(file=io.StringIO()), fail)


def test_a_store_that_goes_away_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*args: object) -> None:
        raise StoreAway("the store is away")

    monkeypatch.setattr(settle, "_step", gone)
    assert run(*WORDS, *SETS) == 1
    assert "the store is away" in capsys.readouterr().out


def test_a_kind_that_was_never_measured_is_measured_by_one_cell() -> None:
    store = Store("empty")
    store.prepare()
    now = settle.look(asked(), store)
    chosen = settle.affordable(now, 3600.0)
    assert [cell["model.method"] for cell in chosen] == ["edge_popup", "random"]


def test_the_next_seed_takes_the_place_of_a_failed_cell() -> None:
    store = made(seconds=1.0, seeds=2)
    first = settle.look(asked(), store).plans[0].cells
    assert {cell["seed"] for cell in first} == {2}
    store.fail(first[0].id, failure_record("ArithmeticError", "not a number"))
    now = settle.look(asked(), store)
    assert [*now.lost] == [first[0].id]
    assert sorted({cell["seed"] for cell in now.plans[0].cells}) == [2, 3]
    assert first[0].id not in {cell.id for cell in now.plans[0].cells}


def test_a_failed_cell_is_paid_for() -> None:
    """Or a budget would not bound the time of a question whose cells diverge."""
    store, question = made(seconds=10.0, seeds=2), asked()
    cell = settle.look(question, store).plans[0].cells[0].id
    store.fail(cell, failure_record("ArithmeticError", "not a number", epoch=7, record={"seconds": 20.0}))
    store.write_plan(question.name, {"cells": [], "trained": [cell]})
    assert settle.remaining(question, store, settle.look(question, store), 1000.0) == 860.0


def test_a_look_is_a_function_of_the_finished_cells() -> None:
    store = made(seconds=1.0, seeds=4, gap=0.0)
    question = asked()
    turned = settle.Question(claims=question.claims, cells=dict(reversed(question.cells.items())))
    one, other = (settle.look(now, store).plans[0] for now in (question, turned))
    assert sorted(one.judgement.above) == sorted(other.judgement.above)
    assert {cell.id for cell in one.cells} == {cell.id for cell in other.cells}


def test_budgets() -> None:
    assert [settle.parse_budget(text) for text in ("90m", "1.5h", "30s", "1d")] == [5400, 5400, 30, 86400]
    for text in ("", "0", "0h", "-1h", "2", "h", "2 weeks", "nanh"):
        with pytest.raises(UserError, match="--budget"):
            settle.parse_budget(text)


def test_cells_of_other_plans_are_not_looked_at_again_and_again() -> None:
    made(seconds=1.0, seeds=4)
    (found,) = claims.measure(fetch("made"), [one for one in claims.CLAIMS if one.name == "above_random"])
    assert not found.anytime
    assert json.loads(Path("made/store.json").read_text()) == {"format": 1}


def test_cells_that_another_launch_has_finished_meanwhile_are_a_step_forward(tmp_path: Path) -> None:
    store = made(seconds=1.0, seeds=1)
    cells = [cell for cell in asked().cells.values() if cell["seed"] == 0]

    def nothing(*args: object, **named: object) -> None:
        """Train no cell."""

    assert settle._train("settle-x", cells, store, Options(), Console(file=io.StringIO()), nothing)


def test_a_claim_may_have_capitals_in_its_name() -> None:
    name = settle.Question(claims=(replace(asked().claims[0], name="Mine"),), cells={}).name
    assert Store("runs").plan(name) is None


def test_many_claims_have_a_short_name_and_are_judged_by_the_same_rule() -> None:
    """The analysis reads the name, and W&B takes no tag of more than 64 characters."""
    one = asked().claims[0]
    claims_ = tuple(replace(one, name=f"claim_of_number_{number}") for number in range(12))
    names = {settle.Question(claims=found, cells={}).name for found in (claims_, claims_[::-1])}
    assert len(names) == 1
    (name,) = names
    assert len(name) <= 64
    assert name != settle.Question(claims=claims_[1:], cells={}).name
    store = made(seconds=1.0, seeds=4)
    store.write_plan(name, {"cells": [*asked().cells], "trained": [*asked().cells]})
    (found,) = claims.measure(fetch("made"), [one for one in claims.CLAIMS if one.name == "above_random"])
    assert found.anytime


def test_each_side_is_taken_at_its_best_rate_as_in_the_analysis() -> None:
    """So no time is spent on rates that the analysis leaves out."""
    sets = ("model.arch=conv6", "model.distribution=signed_constant", "data.name=digits")
    question = settle.ask({"matches_dense": chosen("depth", sets, ("optim.lr=0.01,0.1,1.0",))[1].values()})
    finished = []
    for cell in question.cells.values():
        if cell["seed"] < 3 and cell["model.k"] in (0.5, 1.0):
            gap = 0.03 if cell["model.method"] == "edge_popup" else 0.0
            worse = {0.1: 0.0, 0.01: 0.1, 1.0: 0.2}[cell["optim.lr"]]
            finished.append(result(unflatten(cell.flat), 0.7 + gap - worse))
    write_store(Path("rates"), finished)
    (plan_,) = settle.look(question, Store("rates")).plans
    compared = [cell for one in plan_.contrasts for cell in one.cells]
    assert {cell["optim.lr"] for cell in (*compared, *plan_.cells)} == {0.1}
    (found,) = claims.measure(fetch("rates"), [one for one in claims.CLAIMS if one.name == "matches_dense"])
    assert [one.words for one in found.effects] == [one.words for one in plan_.contrasts]
