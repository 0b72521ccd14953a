"""Each claim's rule on made-up tables of each outcome."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_stores import config, grid, made_store, result

from hiddenweights.analysis import claims
from hiddenweights.analysis.claims import OUT_OF_SCOPE
from hiddenweights.analysis.commands import main
from hiddenweights.analysis.table import RawRun, Table, frame, tidy
from hiddenweights.claims import contrasts, plan
from hiddenweights.claims.verdict import CONTRADICTED, HERE, MIN_PAIRS, SUPPORTED, outcomes
from hiddenweights.claims.verdict import OPEN as NOT_ENOUGH
from hiddenweights.config import CellConfig, ModelConfig
from hiddenweights.flat import flatten, to_dict
from hiddenweights.identity import cell_id, resolve

Accuracy = Callable[[ModelConfig], float]


def table_of(cells: list[CellConfig], accuracy: Accuracy, noise: float = 0.001) -> Table:
    """A table without histories; `accuracy` as a function of the resolved model, plus a little by cell."""
    runs = []
    for cell in map(resolve, cells):
        value = accuracy(cell.model) + noise * np.random.default_rng(int(cell_id(cell), 16)).normal()
        dense = cell.model.method == "dense"
        summary = {"test_accuracy": value, "kept": cell.model.k or 0.5, "weights_checksum": "w"}
        summary |= {"initial_weights_checksum": "other" if dense else "w"}
        runs.append(RawRun(cell_id(cell), cell_id(cell), config=to_dict(cell), summary=summary))
    return tidy(frame(runs, "made"))


def verdict(claim: str, table: Table) -> str:
    found = claims.verdicts(table, [one for one in claims.CLAIMS if one.name == claim])
    return outcome(str(found["verdict"].item()))


def outcome(verdict: str) -> str:
    """The verdict in the words of the paper's own setting, which these small tables are not of."""
    return {here: paper for paper, here in HERE.items()}.get(verdict, verdict)


def cells(seeds: int = 4, **axes: Any) -> list[CellConfig]:
    """Every combination of the axes (tuples), with seeds."""
    found = [{}]
    for name, values in axes.items():
        found = [{**row, name: value} for row in found for value in values]
    return [config(seed=seed, **row) for row in found for seed in range(seeds)]


KS = {"model__k": (0.1, 0.3, 0.5, 0.7, 0.9), "model__distribution": ("signed_constant", "kaiming_normal")}
DENSE = {"model__method": ("dense",)}
CIFAR = {"data__name": ("cifar10",)}
WIDTHS = {"model__width": (0.5, 1.0)}
SIGNED = "signed_constant"

# claim, its cells, accuracy that supports it, accuracy that contradicts it
CASES: list[tuple[str, list[CellConfig], Accuracy, Accuracy]] = [
    ("plateau", cells(**KS), lambda m: 0.9 - (m.k in (0.1, 0.9)) * 0.2, lambda m: 0.9 - (m.k == 0.7) * 0.1),
    ("plateau", cells(**KS), lambda m: 0.9, lambda m: 0.8 + (m.k == 0.3) * 0.1),
    ("ends", cells(**KS), lambda m: 0.9 - (m.k in (0.1, 0.9)) * 0.2, lambda m: 0.9 - (m.k == 0.9) * 0.2),
    (
        "signed_above",
        cells(**KS),
        lambda m: 0.8 + 0.02 * (m.distribution == SIGNED),
        lambda m: 0.8 + 0.02 * (m.distribution == SIGNED) * (m.k != 0.9) - 0.01 * (m.distribution == SIGNED),
    ),
    (
        "signed_below",
        cells(**KS),
        lambda m: 0.8 - 0.02 * (m.distribution == SIGNED) * (m.k == 0.1),
        lambda m: 0.8 + 0.02 * (m.distribution == SIGNED),
    ),
    (
        "deeper",
        cells(model__arch=("conv2", "conv4", "conv6", "conv8")),
        lambda m: 0.8 + {"conv4": 0.1, "conv6": 0.12, "conv8": 0.13}.get(m.arch, 0),
        lambda m: 0.8 + (m.arch == "conv6") / 100,
    ),
    (
        "matches_dense",
        cells(model__arch=("conv6", "conv8")) + cells(model__arch=("conv6", "conv8"), **DENSE),
        lambda m: 0.9 - 0.005 * (m.method == "edge_popup"),
        lambda m: 0.9 - 0.05 * (m.method == "edge_popup") * (m.arch == "conv8"),
    ),
    (
        "wider",
        cells(model__arch=("conv4",), **WIDTHS) + cells(model__arch=("conv4",), **WIDTHS, **DENSE),
        lambda m: 0.9 if m.method == "dense" else 0.8 + 0.05 * m.width,
        lambda m: 0.9 if m.method == "dense" else 0.8 - 0.05 * m.width,
    ),
    (
        "fixed_weights",
        [config(model__arch="conv4", model__width=w, model__k=k, seed=s)
         for w, k in ((1.0, 0.4), (2.0, 0.1)) for s in range(4)],
        lambda m: 0.8 + 0.05 * m.width,
        lambda m: 0.8 - 0.05 * m.width,
    ),
    (
        "above_sampled",
        cells(**KS) + cells(model__method=("sampled",)),
        lambda m: 0.7 if m.method == "sampled" else 0.8 - 0.2 * (m.k != 0.5),
        lambda m: 0.7 if m.method == "sampled" else 0.8 - 0.2 * (m.k == 0.5),
    ),
    (
        "distribution",
        cells(model__distribution=(SIGNED, "unsigned_constant", "kaiming_normal", "xavier_normal")),
        lambda m: {SIGNED: 0.9, "kaiming_normal": 0.88}.get(str(m.distribution), 0.7),
        lambda m: 0.8 + 0.1 * (m.distribution == "xavier_normal"),
    ),
    (
        "scaling",
        cells(**KS, model__scaled=(False, True)),
        lambda m: 0.8 + 0.05 * m.scaled,
        lambda m: 0.8 - 0.05 * m.scaled,
    ),
    (
        "above_random",
        cells(**KS, model__method=("edge_popup", "random")),
        lambda m: 0.8 if m.method == "edge_popup" else 0.2,
        lambda m: 0.8 if m.method == "random" else 0.2,
    ),
    ("resnet18", cells(model__arch=("resnet18",), model__k=(0.3,), **CIFAR), lambda m: 0.92, lambda m: 0.89),
    ("resnet18_dense", cells(model__arch=("resnet18",), **DENSE, **CIFAR), lambda m: 0.94, lambda m: 0.96),
    ("resnet18_dense", cells(model__arch=("resnet18",), **DENSE, **CIFAR), lambda m: 0.945, lambda m: 0.92),
    (
        "shallow",
        cells(model__arch=("linear", "conv2")) + cells(model__arch=("linear", "conv2"), **DENSE),
        lambda m: 0.9 - 0.3 * (m.arch == "linear") * (m.method != "dense"),
        lambda m: 0.9 - 0.3 * (m.arch == "conv2") * (m.method != "dense"),
    ),
    (
        "imagenet",
        cells(model__arch=("torchvision/wide_resnet50_2",), model__k=(0.3,))
        + cells(model__arch=("torchvision/resnet34",), **DENSE),
        lambda m: 0.733,
        lambda m: 0.733 - 0.05 * (m.method != "dense"),
    ),
]  # fmt: skip


def test_only_equal_numbers_of_weights_are_compared() -> None:
    """A quarter of the width at k = 0.5 keeps 25% more weights than half of it at k = 0.1."""
    pairs = ((0.25, 0.5), (0.5, 0.1), (0.5, 0.3993), (1.0, 0.1), (2.0, 0.025))
    made = [
        config(model__arch="conv4", model__width=w, model__k=k, seed=s) for w, k in pairs for s in range(4)
    ]
    table = table_of(made, lambda m: 0.8 + 0.05 * m.width)
    (found,) = claims.measure(table, [one for one in claims.CLAIMS if one.name == "fixed_weights"])
    assert [effect.n for effect in found.effects] == [4]
    assert found.effects[0].mean == pytest.approx(7.5, abs=0.5)  # of width 2, minus width 0.5


def test_a_random_mask_is_compared_at_any_learning_rate() -> None:
    """It is not trained. But its batches must be the same, because BatchNorm sees them."""
    trained = cells(model__method=("edge_popup",), optim__lr=(0.1, 0.3), train__epochs=(10,))
    random = cells(model__method=("random",), optim__batch_size=(128, 64), train__epochs=(10,))
    table = table_of(trained + random, lambda m: 0.8 if m.method == "edge_popup" else 0.2)
    (found,) = claims.measure(table, [one for one in claims.CLAIMS if one.name == "above_random"])
    assert len(found.effects) == 2
    assert {found.n for found in found.effects} == {len(trained) // 2}


def test_gaps_of_other_networks_are_compared_at_any_width_and_rate() -> None:
    """Logistic regression has no width, and each side of each network its own learning rate."""
    rates = {"linear": (0.3, 0.003), "conv2": (0.1, 0.01)}
    made = [
        config(model__arch=arch, model__width=0.5 if arch == "conv2" else 1.0, optim__lr=lr, seed=seed, **arm)
        for arch, (mask, trained) in rates.items()
        for arm, lr in (({}, mask), ({"model__method": "dense"}, trained))
        for seed in range(4)
    ]
    table = table_of(made, lambda m: 0.5 + 0.3 * (m.arch == "conv2") - 0.1 * (m.method != "dense"))
    (found,) = claims.measure(table, [one for one in claims.CLAIMS if one.name == "shallow"])
    assert [effect.n for effect in found.effects] == [4]
    assert found.effects[0].mean == pytest.approx(0, abs=0.3)
    assert found.effects[0].margin == 0


def test_widths_are_compared_where_each_has_its_own_best_rate() -> None:
    def side(width: float, seed: int, lr: float, accuracy: float, **fields: Any) -> contrasts.Cell:
        return tuned(lr, seed, accuracy, accuracy, model__arch="conv4", model__width=width, **fields)

    dense = {"model__method": "dense"}
    made = [
        one
        for seed in range(3)
        for width, best, mask in ((0.25, 0.1, 0.5), (1.0, 0.3, 0.7))
        for one in (
            side(width, seed, best, mask),
            side(width, seed, 0.4 - best, mask - 0.2),
            side(width, seed, 0.01, 0.7, **dense),
        )
    ]
    (wider,) = (one for one in claims.CLAIMS if one.name == "wider")
    ((_, (found,)),) = wider.groups(made)
    assert found.values == pytest.approx([20.0] * 3)


def test_a_fine_tuned_mask_is_compared_over_the_seeds_though_each_has_its_own_parent() -> None:
    def tuned_masks(seeds: range, parents: str = "") -> list[contrasts.Cell]:
        made = [
            config(
                seed=seed,
                model__method="finetune",
                model__k=0.5,
                model__init_from=f"{seed}{parents}".rjust(16, "0"),
                model__init_mask=mask,
            )
            for seed in seeds
            for mask in ("found", "shuffled")
        ]
        return [contrasts.Cell.of(one, 0.8 + 0.1 * (one.model.init_mask == "found")) for one in made]

    def compared(made: list[contrasts.Cell]) -> list[int]:
        masks = ("found", "shuffled")
        found, shuffled = ([one for one in made if one["model.init_mask"] == mask] for mask in masks)
        return [len(one.values) for one in contrasts.compare(found, shuffled, ["model.init_mask"], "")]

    made = tuned_masks(range(3))
    assert compared(made) == [3]
    assert compared(made + tuned_masks(range(3), "f")) == [1] * 6  # which belong together is not known
    assert {one.id for one in plan.with_seeds(made, range(9))} == {one.id for one in made}


def test_gaps_of_other_networks_have_the_same_rate_if_they_can() -> None:
    made = [
        config(model__arch=arch, optim__lr=lr, seed=seed, **arm)
        for arch, rates in {"linear": (0.1,), "conv2": (0.1, 0.3)}.items()
        for arm, of_arm in (({}, rates), ({"model__method": "dense"}, (0.01,)))
        for lr in of_arm
        for seed in range(4)
    ]
    table = table_of(made, lambda m: 0.5)
    (found,) = claims.measure(table, [one for one in claims.CLAIMS if one.name == "shallow"])
    assert [effect.n for effect in found.effects] == [4]


@pytest.mark.parametrize(("claim", "made", "yes", "no"), CASES, ids=[case[0] for case in CASES])
def test_every_outcome(claim: str, made: list[CellConfig], yes: Accuracy, no: Accuracy) -> None:
    assert verdict(claim, table_of(made, yes)) == SUPPORTED
    assert verdict(claim, table_of(made, no)) == CONTRADICTED
    few = [cell for cell in made if cell.seed < MIN_PAIRS - 1]
    assert verdict(claim, table_of(few, yes)) == NOT_ENOUGH
    assert verdict(claim, table_of(few, no)) == NOT_ENOUGH
    assert verdict(claim, table_of([config(model__arch="fc", model__k=0.2)], yes)) == OUT_OF_SCOPE


def test_every_claim_is_judged_on_narrower_networks_too() -> None:
    others = {"wider", "fixed_weights"}  # they compare widths
    others |= {"resnet18", "resnet18_dense"}  # an accuracy that only the whole network is said to have
    for claim, made, yes, _ in CASES:
        if claim not in others:
            narrow = [replace(cell, model=replace(cell.model, width=0.5)) for cell in made]
            assert verdict(claim, table_of(narrow, yes)) == SUPPORTED, claim


def test_cells_unlike_the_papers_say_nothing_about_the_paper() -> None:
    like = {"data__name": ("cifar10",), "train__epochs": (100,)}
    for fields_, words in (
        (like, (SUPPORTED, CONTRADICTED)),
        (like | {"data__name": ("digits",)}, ("holds here", "does not hold here")),
        (like | {"train__epochs": (99,)}, ("holds here", "does not hold here")),
        (like | {"model__width": (0.5,)}, ("holds here", "does not hold here")),
        (like | {"data__subset": (5000,)}, ("holds here", "does not hold here")),
        (like | {"optim__lr": (0.3,)}, ("holds here", "does not hold here")),
    ):
        for above, word in zip((0.02, -0.02), words, strict=True):
            table = table_of(cells(**KS, **fields_), lambda m: 0.8 + above * (m.distribution == SIGNED))  # noqa: B023
            found = claims.verdicts(table).set_index("claim")
            assert found.loc["signed_above", "verdict"] == word


@pytest.mark.parametrize(("m", "seeds", "spread"), [(1, 3, 1.0), (16, 3, 10.0), (40, 3, 1.0), (40, 10, 1.0)])
@pytest.mark.parametrize("anytime", [False, True])
def test_a_wrong_verdict_is_rare_at_the_margin(m: int, seeds: int, spread: float, anytime: bool) -> None:
    rng = np.random.default_rng(0)
    sd = np.geomspace(1 / spread, 1, m)[:, None]
    above, below = outcomes(sd * rng.normal(size=(4000, m, seeds)), anytime=anytime)
    wrong = np.mean(below.any(-1) | above.all(-1))
    assert wrong < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_the_cases_cover_every_claim() -> None:
    assert {case[0] for case in CASES} | {"unchanged"} == {claim.name for claim in claims.CLAIMS}
    assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def test_one_changed_weight_contradicts() -> None:
    table = table_of(cells(model__method=("edge_popup", "dense", "iterand")), lambda m: 0.9)
    assert verdict("unchanged", table) == SUPPORTED
    changed = table.cells["cell"] == cell_id(config(seed=1))
    table.cells.loc[changed, "initial_weights_checksum"] = "other"
    rows = claims.verdicts(table).set_index("claim")
    assert rows.loc["unchanged", "verdict"] == CONTRADICTED
    assert rows.loc["unchanged", "cells"] == cell_id(config(seed=1))
    assert verdict("unchanged", table_of([config(model__method="dense")], lambda m: 0.9)) == OUT_OF_SCOPE


def test_weights_that_change_and_come_back_are_found() -> None:
    found = result(config())
    found["history"][1]["weights_checksum"] = "for one epoch"
    run = RawRun(
        "a", found["cell"], config=found["config"], summary=found["summary"], history=found["history"]
    )
    run.summary["initial_weights_checksum"] = found["initial_weights_checksum"]  # type: ignore[index]
    assert verdict("unchanged", tidy(frame([run], "made"))) == CONTRADICTED


def test_pairs_are_equal_in_all_but_what_is_compared() -> None:
    a = claims.as_cells(table_of(cells(model__k=(0.5,)), lambda m: 0.9, noise=0).cells)
    both = cells(model__k=(0.1,)) + cells(model__k=(0.1,), optim__lr=(0.5,))
    b = claims.as_cells(table_of(both, lambda m: 0.7, noise=0).cells)
    pairs = contrasts.paired(a, b, ["model.k"])
    assert [pair.difference for pair in pairs] == pytest.approx([20] * 4)
    assert contrasts.paired(a, b, []) == []
    # Against two kinds of cells there are two comparisons: a seed counts once in each.
    found = [*contrasts.compare(a, b, ["model.k", "optim.lr"], "")]
    assert [len(one.values) for one in found] == [4, 4]
    assert [pair.head["seed"] for pair in found[0].pairs] == [0, 1, 2, 3]


def tuned(lr: float, seed: int, accuracy: float, validation: float | None, **fields: Any) -> contrasts.Cell:
    cell = contrasts.Cell.of(config(optim__lr=lr, seed=seed, **fields), accuracy)
    return replace(cell, validation=validation)


def difference(a: list[contrasts.Cell], b: list[contrasts.Cell]) -> list[tuple[float, float, int]]:
    """The learning rate of each side, and the number of seeds, per comparison with a dense network."""
    return [
        (one.pairs[0].plus[0]["optim.lr"], one.pairs[0].minus[0]["optim.lr"], len(one.values))
        for one in contrasts.compare(a, b, contrasts.TO_DENSE, "")
    ]


def test_each_side_is_compared_at_its_best_rate_on_validation_images() -> None:
    """Also if it is not the best on test images. The mean is over seeds that all rates have."""
    ours = [
        tuned(lr, seed, 0.9 - validation, validation + 0.01 * seed)
        for lr, validation in {0.1: 0.6, 0.3: 0.8, 1.0: 0.7}.items()
        for seed in range(3)
    ]
    dense = {"model__method": "dense"}
    theirs = [
        tuned(0.01, 0, 0.5, 0.7, **dense),
        tuned(0.01, 1, 0.5, 0.7, **dense),
        tuned(0.03, 0, 0.6, 0.6, **dense),
        tuned(0.03, 1, 0.6, 0.6, **dense),
        tuned(0.03, 2, 0.6, 0.99, **dense),  # an easy seed, which the other rate does not have
    ]
    assert difference(ours, theirs) == [(0.3, 0.01, 2)]
    # Adam is another side, not a setting of SGD.
    adam = [tuned(0.001, seed, 0.6, 0.65, **dense, optim__optimizer="adam") for seed in range(2)]
    assert difference(ours, theirs + adam) == [(0.3, 0.01, 2), (0.3, 0.001, 2)]
    # Where the sides have one recipe, they are compared at each rate.
    others = [tuned(lr, 0, 0.5, lr, model__k=0.3) for lr in (0.1, 0.3, 1.0)]
    assert len([*contrasts.compare(ours, others, ["model.k"], "")]) == 3


def test_without_validation_images_no_rate_is_chosen() -> None:
    ours = [tuned(lr, 0, lr, None) for lr in (0.1, 0.3)]
    theirs = [tuned(lr, 0, lr, 0.5, model__method="dense") for lr in (0.01, 0.03)]
    assert {rates[0] for rates in difference(ours, theirs)} == {0.1, 0.3}
    unfinished = [replace(theirs[0], accuracy=None, validation=None), theirs[1]]
    assert {rates[1] for rates in difference(ours, unfinished)} == {0.01, 0.03}


def test_comparisons_at_other_rates_and_widths_have_other_names() -> None:
    made = cells(model__k=(0.3, 0.5, 0.7), optim__lr=(0.1, 0.3), **WIDTHS)
    table = table_of(made, lambda m: 0.8)
    found = claims.measure(table, [one for one in claims.CLAIMS if one.name == "plateau"])
    words = [effect.words for one in found for effect in one.effects]
    assert len(set(words)) == len(words) == 16
    named = contrasts.Cell.of(config(seed=0)).name
    assert named == contrasts.Cell.of(config(seed=1)).name != contrasts.Cell.of(config(model__k=0.3)).name


def test_cells_with_one_threshold_for_all_layers_are_no_cells_of_the_paper() -> None:
    layer, whole = (contrasts.Cell.of(config(model__selection=how)) for how in ("layer", "global"))
    assert contrasts.pick([layer, whole]) == [layer]
    assert contrasts.pick([layer, whole], selection="global") == [whole]
    biprop = contrasts.Cell.of(config(model__method="biprop", model__selection="global"))
    assert contrasts.pick([layer, whole, biprop], method="biprop") == [biprop]


def test_a_fact_has_no_comparisons() -> None:
    (fact,) = (claim for claim in claims.CLAIMS if claim.name == "unchanged")
    assert fact.groups([contrasts.Cell.of(config())]) == []


def test_settings_are_judged_apart() -> None:
    here, there = cells(**KS), cells(**KS, train__epochs=(7,))
    table = table_of(here + there, lambda m: 0.9 - (m.k in (0.1, 0.9)) * 0.2)
    rows = claims.verdicts(table)
    rows = rows[rows["claim"] == "plateau"]
    assert rows["setting"].tolist() == ["digits, 3 epochs, validation", "digits, 7 epochs, validation"]
    assert rows["n"].tolist() == [4, 4]


def test_what_is_between_the_margins_is_not_decided() -> None:
    table = table_of(cells(**KS), lambda m: 0.8, noise=0.02)
    assert verdict("signed_below", table) == NOT_ENOUGH


def test_the_command_writes_one_row_a_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made_store(tmp_path / "store", "depth", grid())
    assert main(["claims", "--no-cache", "--from", str(store), "--out", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "claims.csv")
    assert rows["claim"].tolist() == [claim.name for claim in claims.CLAIMS]
    assert rows["rule"].notna().all()
    behind = rows.set_index("claim").loc["plateau", "cells"].split()
    middle = [
        cell for cell in grid() if resolve(cell).model.k in (0.3, 0.5, 0.7) and cell.model.method != "dense"
    ]
    assert sorted(behind) == sorted(cell_id(cell) for cell in middle)
    out = capsys.readouterr().out
    assert all(claim.name in out for claim in claims.CLAIMS)
    assert set(flatten(middle[0])) <= set(table_of(middle, lambda m: 0.9).cells.columns)
