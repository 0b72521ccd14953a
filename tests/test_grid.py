"""Axes to cells, overrides, and what the registered sweeps promise."""

import shlex
import time
from typing import Any

import pytest

from hiddenweights import cli
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.identity import cell_id, resolve
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.commands import COMMANDS
from hiddenweights.sweeps.grid import Arm, SearchedAxis, Sweep, arm, parse_axes, parse_settings
from hiddenweights.sweeps.papers.ramanujan2020 import conv4_weights

TWO_ARMS = Sweep(
    name="two",
    arms=(
        arm({"train.epochs": 3}, {"model.k": (0.3, 0.5), "seed": (0, 1)}),
        arm({"train.epochs": 3, "model.method": "dense"}, {"seed": (0, 1)}),
    ),
)


def values(sweep: Sweep, name: str) -> list[Any]:
    part, _, leaf = name.partition(".")
    cells = [resolve(config) for config in sweep.cells().values()]
    return [getattr(getattr(config, part), leaf) if leaf else getattr(config, part) for config in cells]


def test_an_arm_has_every_combination_and_the_last_axis_varies_fastest() -> None:
    cells = TWO_ARMS.arms[0].cells()
    assert [(c.model.k, c.seed) for c in cells] == [(0.3, 0), (0.3, 1), (0.5, 0), (0.5, 1)]
    assert {c.train.epochs for c in cells} == {3}


def test_an_arm_without_axes_is_one_cell() -> None:
    assert Arm(base=CellConfig(seed=4)).cells() == [CellConfig(seed=4)]


def test_cells_go_by_their_identity() -> None:
    cells = TWO_ARMS.cells()
    assert len(cells) == 6
    assert all(cell_id(config) == cell for cell, config in cells.items())


def test_an_axis_replaces_that_axis_where_an_arm_has_it() -> None:
    changed = TWO_ARMS.override({}, {"model.k": (0.9,)})
    assert values(changed, "model.k") == [0.9, 0.9, 1.0, 1.0]


def test_an_axis_that_no_arm_has_is_added_to_all() -> None:
    assert len(TWO_ARMS.override({}, {"model.width": (0.5, 1.0)}).cells()) == 12


def test_a_setting_is_set_everywhere_and_takes_the_place_of_an_axis() -> None:
    changed = TWO_ARMS.override({"seed": 7, "train.epochs": 1}, {})
    assert values(changed, "seed") == [7, 7, 7]
    assert values(changed, "train.epochs") == [1, 1, 1]


def test_extending_an_axis_keeps_the_cells_there_were() -> None:
    longer = TWO_ARMS.override({}, {"model.k": (0.3, 0.5, 0.7)})
    assert TWO_ARMS.cells().keys() < longer.cells().keys()


def test_a_cell_named_twice_is_kept_once_and_counted() -> None:
    cells = TWO_ARMS.override({}, {"model.k": (0.5, 0.5, 0.3)}).cells()
    assert (len(cells), cells.repeated) == (6, 2)


def test_settings_and_axes_have_the_types_of_their_fields() -> None:
    assert parse_settings(["train.epochs=5", "data.root=a=b", "model.k=none", "optim.batch-size=64"]) == {
        "train.epochs": 5,
        "optim.batch_size": 64,
        "data.root": "a=b",
        "model.k": None,
    }
    assert parse_axes(["model.k=0.3,0.5", "model.k=1", "model.scaled=true"]) == {
        "model.k": (0.3, 0.5, 1.0),
        "model.scaled": (True,),
    }


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (parse_settings, ["model.kk=0.5"]),
        (parse_settings, ["model.k"]),
        (parse_settings, ["model.k=much"]),
        (parse_settings, ["seed=1", "seed=2"]),
        (parse_axes, ["model.k="]),
        (parse_axes, ["depth=2,3"]),
        (parse_axes, ["seed=0,x"]),
        (parse_axes, ["optim.lr=loguniform(0,1)"]),
        (parse_axes, ["optim.lr=loguniform(-1,1)"]),
        (parse_axes, ["optim.lr=uniform(0,inf)"]),
        (parse_axes, ["seed=uniform(0,9)"]),
        (parse_axes, ["optim.lr=uniform(1)"]),
        (parse_axes, ["optim.lr=normal(0,1)"]),
        (parse_axes, ["optim.lr=0.1", "optim.lr=uniform(0,1)"]),
    ],
)
def test_what_does_not_parse_is_bad_input(parse: Any, texts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(texts)
    assert "\n" not in str(caught.value)
    assert texts[0].partition("=")[0] in str(caught.value)


@pytest.mark.parametrize("axis", ["conv2", 3])
def test_an_axis_that_is_no_list_is_bad_input(axis: Any) -> None:
    with pytest.raises(UserError, match="list of values"):
        arm({}, {"model.arch": axis})


def test_a_field_set_and_varied_is_a_contradiction() -> None:
    with pytest.raises(UserError, match="seed"):
        TWO_ARMS.override({"seed": 1}, {"seed": (1, 2)})


def test_a_value_out_of_range_is_bad_input() -> None:
    with pytest.raises(UserError, match=r"model\.k"):
        TWO_ARMS.override({}, {"model.k": (0.5, 1.5)}).cells()


def test_planning_is_fast() -> None:
    axes = {
        "model.arch": ("conv2", "conv4"),
        "model.k": tuple(i / 100 for i in range(1, 101)),
        "seed": range(50),
    }
    began = time.process_time()
    assert len(Sweep(name="big", arms=(arm({}, axes),)).cells()) == 10_000
    assert time.process_time() - began < 5  # 100,000 in 50 s at the very worst; 7 s where it was measured


def test_a_searched_axis_is_a_set_of_cells_that_more_samples_extend() -> None:
    axes = parse_axes(["optim.lr=loguniform(0.001,1)", "model.k=choice(0.3,0.5)", "seed=0,1"])
    few = Arm(axes=axes, samples=5)
    rates = [config.optim.lr for config in few.cells()]
    assert len(rates) == 10
    assert rates[:5] == rates[5:]  # every combination is tried at the same points
    assert len(set(rates)) == 5
    assert all(0.001 <= (rate or 0) <= 1 for rate in rates)
    assert {config.model.k for config in Arm(axes=axes, samples=40).cells()} == {0.3, 0.5}
    more = {cell_id(config) for config in Arm(axes=axes, samples=8).cells()}
    assert {cell_id(config) for config in few.cells()} < more


def test_samples_follow_their_distribution_and_never_change() -> None:
    decades, line = SearchedAxis("loguniform", (0.001, 1.0)), SearchedAxis("uniform", (0.2, 0.6))
    choice = SearchedAxis("choice", (1, 2, 4))
    # The ids of cells depend on them.
    assert [decades.sample("optim.lr", i) for i in range(3)] == [0.00323, 0.0108, 0.00163]
    assert [line.sample("optim.lr", i) for i in range(3)] == [0.268, 0.338, 0.228]
    assert [choice.sample("optim.lr", i) for i in range(3)] == [1, 2, 1]
    drawn = {axis: sorted(axis.sample("model.k", i) for i in range(400)) for axis in (decades, line)}
    for axis, middle in ((decades, 0.0316), (line, 0.4)):
        assert drawn[axis][200] == pytest.approx(middle, rel=0.3)
        assert axis.values[0] <= drawn[axis][0] < drawn[axis][-1] <= axis.values[1]


def test_a_sweep_is_searched_if_one_of_its_axes_is() -> None:
    drawn = Arm(axes=parse_axes(["optim.lr=uniform(0.1,1)"]))
    assert len(drawn.cells()) == 16
    assert Sweep(name="some", arms=(*TWO_ARMS.arms, drawn)).searched()
    assert not TWO_ARMS.searched()


def test_an_axis_of_the_arm_that_found_the_masks_is_replaced_there_alone() -> None:
    found = arm({"data.name": "digits"}, {"seed": (0, 1)})
    tuned = arm({}, {"model.init_mask": ("found", "shuffled")}, found_by=found)
    sweep = Sweep(name="some", arms=(tuned, arm({"model.method": "dense"}, {})))
    assert len(sweep.override({}, {"seed": (5, 6, 7)}).cells()) == 3 * 2 + 1


def test_conditions_choose_cells() -> None:
    cells = TWO_ARMS.cells()
    chosen = cells.where({"model.k": (0.5,), "seed": (1,)})
    assert 0 < len(chosen) < len(cells)
    assert {cell: cells[cell] for cell in chosen} == chosen
    assert all((config.model.k, config.seed) == (0.5, 1) for config in chosen.values())
    with pytest.raises(UserError, match=r"--where seed.*7.*0, 1"):
        cells.where({"seed": (1, 7)})


def test_the_command_names_the_data_folder_where_there_is_one() -> None:
    images = Sweep(name="some", arms=(arm({"data.name": "cifar10"}, {}),), options="--samples 3")
    assert (
        images.command("mine.py:some")
        == "hiddenweights sweeps launch mine.py:some --set data.root=DIR --samples 3"
    )
    digits = Sweep(name="some", arms=(arm({"data.name": "digits"}, {}),))
    assert digits.command() == "hiddenweights sweeps launch some"


# --- the registered sweeps -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", experiments.SWEEPS)
def test_a_sweep_says_what_it_should(name: str) -> None:
    sweep = experiments.sweep(name)
    assert all((sweep.title, sweep.claim, sweep.expect))
    assert sweep.gpu_hours is None or sweep.gpu_hours > 0
    call = cli.parse(COMMANDS, "hiddenweights sweeps", shlex.split(sweep.command())[2:])
    assert callable(call)
    if sweep.beyond:
        assert sweep.cells().keys() & experiments.sweep(sweep.beyond).cells().keys()


def test_no_sweep_names_a_cell_twice() -> None:
    """Except `study`, whose stages share cells."""
    repeated = {name for name in experiments.SWEEPS if experiments.sweep(name).cells().repeated}
    assert repeated <= {"study"}


def test_every_comparison_has_five_seeds() -> None:
    for name in experiments.SWEEPS:
        # The study has the three seeds that its budget of two CPU cores allows.
        if name not in ("quickstart", "tune_lr") and not name.startswith("study"):
            assert set(values(experiments.sweep(name), "seed")) == set(range(5))


def test_the_sweeps_share_cells() -> None:
    members = experiments.memberships()
    assert len(members) < sum(len(experiments.sweep(name).cells()) for name in experiments.SWEEPS)
    cell = next(iter(experiments.sweep("sampled").cells()))
    assert {"depth", "sampled"} <= set(members[cell])


def test_fixed_weights_keeps_the_number_of_weights() -> None:
    kept: dict[float, set[float]] = {}
    for config in experiments.sweep("fixed_weights").cells().values():
        if config.model.method == "edge_popup":
            number = (config.model.k or 0) * conv4_weights(config.model.width)
            budget = min((0.1, 0.3, 0.5), key=lambda b: abs(b - number / 2_425_024))
            kept.setdefault(budget, set()).add(number)
    assert len(kept) == 3
    for numbers in kept.values():
        assert len(numbers) >= 3
        assert max(numbers) / min(numbers) < 1.005  # k has four digits


def test_an_unknown_sweep_lists_the_choices() -> None:
    with pytest.raises(UserError, match="depth"):
        experiments.sweep("dept")
