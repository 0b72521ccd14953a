"""Numbers -> axes -> files, and the command line."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from analysis_stores import config, grid, made_store, result, write_store

from hiddenweights.analysis import aggregate, experiments, figures, specs
from hiddenweights.analysis.commands import main
from hiddenweights.analysis.fetch import StoreSource, fetch
from hiddenweights.analysis.layout import file_name, layout
from hiddenweights.identity import cell_id
from hiddenweights.sweeps import study
from hiddenweights.sweeps.declare import as_sweep


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDENWEIGHTS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store(tmp_path_factory.mktemp("store"), "quickstart", grid(model__width=0.25))


def test_the_figure_command_writes_what_it_draws(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figure", "quickstart", "--from", str(store), "--out", str(tmp_path)]) == 0
    drawn = pd.read_csv(tmp_path / "quickstart.csv")
    assert len(drawn) == 2 * (2 * 5 + 2)
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    pdf = (tmp_path / "quickstart.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    out = capsys.readouterr().out
    assert str(tmp_path / "quickstart.png") in out
    assert "60 of 60" in out
    assert "10.0 to 90.0%" in out


def test_a_sweep_called_like_a_file_of_the_report_leaves_that_file_alone(tmp_path: Path) -> None:
    cells = [config(model__k=k) for k in (0.3, 0.5)]
    store = made_store(tmp_path / "store", "cells", cells)
    assert main(["report", "--from", str(store), "--out", str(tmp_path)]) == 0
    assert sorted(pd.read_csv(tmp_path / "cells.csv")["model.k"]) == [0.3, 0.5]
    assert "mean" in pd.read_csv(tmp_path / "cells_figure.csv")
    assert "(cells_figure.png)" in (tmp_path / "report.md").read_text()


def test_the_same_source_gives_the_same_files(store: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        main(["figure", "quickstart", "--from", str(store), "--out", str(tmp_path / folder)])
    for suffix in ("png", "pdf", "csv"):
        one, other = (tmp_path / folder / f"quickstart.{suffix}" for folder in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


def test_axes_show_exactly_the_table(store: Path) -> None:
    spec = experiments.find_spec("quickstart")
    drawn = aggregate.curves(specs.points(fetch(str(store)), spec))
    figure = figures.render(drawn, spec)
    assert [ax.get_title() for ax in figure.axes] == ["Conv2", "Conv4"]
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert low > 90 > 10 > high  # Figure 3's axis runs from 90 down to 10
        panel = drawn[drawn["panel"] == ax.get_title()]
        lines = {line.get_label(): line for line in ax.lines}
        for curve in ("signed constant", "Kaiming normal"):
            points = panel[panel["curve"] == curve].sort_values("x")
            assert lines[curve].get_xdata() == pytest.approx(points["x"])
            assert lines[curve].get_ydata() == pytest.approx(points["mean"])
        for curve in ("dense, SGD", "dense, Adam"):
            assert lines[curve].get_ydata()[0] == pytest.approx(panel[panel["curve"] == curve]["mean"].item())


def test_the_legend_names_each_look_once_ours_first(store: Path) -> None:
    spec = experiments.find_spec("quickstart")
    drawn = aggregate.curves(specs.points(fetch(str(store)), spec))
    published = drawn[drawn["curve"].isin(["signed constant", "dense, SGD"]) & (drawn["panel"] == "Conv2")]
    of_paper = published.assign(kind=specs.PUBLISHED, n=float("nan"), cells="")
    alike = of_paper.assign(curve=specs.PREFIX + of_paper["curve"])
    other = of_paper.assign(curve=specs.PREFIX + "best over k")
    (legend,) = figures.render(pd.concat([other, drawn, alike]), spec).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:2] == ["signed constant", "Kaiming normal"]
    assert sorted(names[2:-1]) == ["dense, Adam", "dense, SGD"]
    assert names[-1] == "published: best over k"


def test_the_legend_takes_any_name(store: Path) -> None:
    """Names of 130 characters, as several fields that differ make them, and names that begin with _."""
    spec = experiments.find_spec("quickstart")
    drawn = aggregate.curves(specs.points(fetch(str(store)), spec))
    names = {"signed constant": "x" * 130, "Kaiming normal": "_mine.py:data"}
    (legend,) = figures.render(drawn.replace({"curve": names}), spec).legends
    assert [text.get_text().strip() for text in legend.get_texts()][:2] == [*names.values()]


def test_drawing_leaves_matplotlib_alone(store: Path, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    main(["figure", "quickstart", "--from", str(store), "--out", str(tmp_path)])
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure", "quikstart"], ["quikstart", "quickstart"]),
        (["figure", "depth"], ["depth", "hiddenweights sweeps launch depth"]),
        (["figure", "tune_lr"], ["'tune_lr'", "quickstart", "hiddenweights sweeps"]),
        (["figure", "quickstart", "--where", "model.k=0.5,0.2"], ["model.k=0.2", "0.9"]),
        (["figure", "quickstart", "--where", "model.kk=0.2"], ["model.kk", "model.k"]),
        (["figure", "quickstart", "--where", "arch=conv2"], ["'arch'", "mean 'model.arch'"]),
        (["figure", "quickstart", "--from", "no-such"], ["no-such", "hiddenweights sweeps launch"]),
        (["figure", "quickstart", "--where", "model.k"], ["FIELD=VALUE"]),
        (["figure", "quickstart", "--y", "loss"], ["--y", "'loss'", "train_loss", "churn"]),
        (["figure", "quickstart", "--x", "data.name"], ["--x", "data.name", "not a number"]),
        (["figure", "quickstart", "--out", "/dev/null/figures"], ["--out", "/dev/null/figures"]),
        (["report", "--port", "65536"], ["--port", "65536"]),
        (["report", "--price", "-1"], ["--price", "-1"]),
        (["report", "--wandb", "me"], ["--wandb", "ENTITY/PROJECT"]),
        (["report", "--watch", "--wandb", "me/mine"], ["--wandb", "--watch"]),
    ],
)
def test_bad_input_is_one_line(
    store: Path, tmp_path: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--from", str(store), "--out", str(tmp_path / "out")]
    assert main([arguments[0], *source, *arguments[1:]]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert not (tmp_path / "out").exists()


def test_the_values_of_a_field_are_those_that_where_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [config(data__subset=subset, model__k=0.5) for subset in (None, 500)]
    source = ["--from", str(made_store(tmp_path / "store", "depth", cells)), "--out", str(tmp_path)]
    assert main(["figure", "depth", *source, "--where", "data.subset=7"]) == 2
    choices = capsys.readouterr().err.rpartition(": ")[2].strip().split(", ")
    assert len(choices) == 2
    for choice in choices:
        assert main(["figure", "depth", *source, "--where", f"data.subset={choice}"]) == 0


def test_where_picks_cells(tmp_path: Path) -> None:
    cells = [config(model__k=0.5, train__epochs=epochs, seed=seed) for epochs in (3, 5) for seed in range(2)]
    store = made_store(tmp_path / "store", "depth", cells)
    base = ["figure", "depth", "--from", str(store), "--out", str(tmp_path / "out")]
    assert main(base) == 2
    assert main([*base, "--where", "train.epochs=5"]) == 0
    assert pd.read_csv(tmp_path / "out" / "depth.csv")["n"].tolist() == [2]
    assert main([*base, "--where", "train.epochs=5", "--where", "seed=1,7"]) == 2
    assert main([*base, "--where", "train.epochs=5", "--where", "seed=1"]) == 0
    assert pd.read_csv(tmp_path / "out" / "depth.csv")["n"].tolist() == [1]


def test_training_curves_have_a_point_per_epoch(tmp_path: Path) -> None:
    cells = [config(model__k=k, train__epochs=3, seed=seed) for k in (0.3, 0.5) for seed in range(3)]
    store = made_store(tmp_path / "store", "depth", cells)
    logged = fetch(str(store)).epochs
    arguments = ["depth", "--from", str(store), "--out", str(tmp_path / "out")]
    assert main(["figure", *arguments, "--x", "epoch"]) == 0
    drawn = pd.read_csv(tmp_path / "out" / "depth_by_epoch.csv")
    assert drawn["x"].tolist() == [1, 2, 3] * 2
    assert drawn["n"].tolist() == [3] * 6
    for point in drawn.itertuples():
        of_point = logged[logged["cell"].isin(str(point.cells).split()) & (logged["epoch"] == point.x)]
        assert point.mean == pytest.approx(100 * of_point["test_accuracy"].mean())


@pytest.mark.parametrize(("y", "scale"), [("churn", 100), ("train_loss", 1)])
def test_another_logged_number_is_drawn_after_each_epoch_or_the_last(
    tmp_path: Path, y: str, scale: float
) -> None:
    cells = [config(model__k=k, train__epochs=3, seed=seed) for k in (0.3, 0.5) for seed in range(3)]
    store = made_store(tmp_path / "store", "depth", cells)
    logged = fetch(str(store)).epochs
    arguments = ["depth", "--from", str(store), "--out", str(tmp_path / "out"), "--y", y]
    for more, file, epochs in (
        (["--x", "epoch"], f"depth_{y}_by_epoch.csv", (1, 2, 3) * 2),
        ([], f"depth_{y}.csv", (3, 3)),
    ):
        assert main(["figure", *arguments, *more]) == 0
        drawn = pd.read_csv(tmp_path / "out" / file)
        assert len(drawn) == len(epochs)
        for point, epoch in zip(drawn.itertuples(), epochs, strict=True):
            of_point = logged[logged["cell"].isin(str(point.cells).split()) & (logged["epoch"] == epoch)]
            assert point.mean == pytest.approx(scale * of_point[y].mean())


def test_a_figure_with_other_axes_leaves_the_files_of_the_declared_one_alone(tmp_path: Path) -> None:
    rates = (0.1, 0.3)
    cells = [
        config(model__k=k, optim__lr=lr, seed=seed) for k in (0.3, 0.5) for lr in rates for seed in (0, 1)
    ]
    store = made_store(tmp_path / "store", "study_recipe_rate", cells)
    made_store(store, "study_rates", cells)
    source = ["--from", str(store), "--out", str(tmp_path / "out")]
    choices = [
        ["study_recipe_rate", "--mixed"],
        ["study_recipe_rate", "--curve", "optim.lr"],
        ["study_rates", "--mixed"],  # which shows the accuracy on held-out images
        ["study_rates", "--y", "test_accuracy"],
    ]
    for count, options in enumerate(choices, start=1):
        assert main(["figure", *options, *source]) == 0
        assert len([*(tmp_path / "out").glob("*.csv")]) == count
    same = ["study_rates", "--mixed", "--y", "validation_accuracy"]
    assert main(["figure", *same, *source]) == 0
    assert len([*(tmp_path / "out").glob("*.png")]) == len(choices)


def test_each_choice_of_axes_has_files_of_its_own() -> None:
    lr, k = "optim.lr", "model.k"
    axes: list[dict[str, str]] = [
        {},
        {"x": lr},
        {"curve": lr},
        {"panel": lr},
        {"curve": lr, "panel": k},
        {"curve": k, "panel": lr},
        {"curve": lr, "y": "churn"},
        {"x": "epoch", "curve": lr, "panel": k},
        {"y": "churn"},
        {"y": "kept/0.weight"},
    ]
    names = {file_name("mine", **one) for one in axes}
    assert len(names) == len(axes)
    assert not any("/" in name for name in names)


def test_a_number_that_only_other_sweeps_have_logged_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made_store(tmp_path / "store", "depth", [config(model__k=0.5)])
    widths = (0.5, 1.0)
    made_store(store, "width", [config(model__method="dense", model__width=width) for width in widths])
    assert "churn" in fetch(str(store)).epochs
    assert main(["figure", "width", "--from", str(store), "--out", str(tmp_path), "--y", "churn"]) == 2
    assert "--y: unknown value 'churn'" in capsys.readouterr().err


def test_the_table_is_written_with_all_cells_and_epochs(tmp_path: Path) -> None:
    store = made_store(tmp_path / "store", "depth", [config(model__k=k) for k in (0.3, 0.5)])
    made_store(store, "other", [config(model__k=0.7, train__epochs=2)])
    made = fetch(str(store))
    source = ["--from", str(store), "--out", str(tmp_path)]
    assert main(["table", *source]) == 0
    cells, epochs = pd.read_csv(tmp_path / "cells.csv"), pd.read_csv(tmp_path / "epochs.csv")
    assert cells["cell"].tolist() == made.cells["cell"].tolist()
    assert cells["test_accuracy"].tolist() == pytest.approx(made.cells["test_accuracy"].tolist(), rel=1e-5)
    assert len(epochs) == len(made.epochs)
    assert main(["table", "other", *source]) == 0
    assert len(pd.read_csv(tmp_path / "other_cells.csv")) == 1
    assert len(pd.read_csv(tmp_path / "other_epochs.csv")) == 2
    assert main(["table", "unknown", *source]) == 2


def test_of_two_places_that_are_too_close_the_one_with_more_points_has_the_label() -> None:
    spec = specs.over_kept("mine", "")
    assert figures.spread(pd.Series([10.0, 30.0, 49.9, 50.0, 50.0, None]), spec) == [10, 30, 50]
    assert figures.spread(pd.Series([10.0, 30.0, 49.9, 50.0]), spec) == [10, 30, 49.9]
    assert figures.spread(pd.Series([7.0, 7.0]), spec) == [7]
    assert figures.spread(pd.Series([], dtype=float), spec) == []


def test_whole_numbers_keep_all_their_digits_in_the_table(tmp_path: Path) -> None:
    seeds = (None, 1234567891)
    found = [result(config(model__k=0.3, seeds__weights=seed)) for seed in seeds]
    for entry in found:
        entry["summary"] |= {"weights": 11164352, "kept": 3349307 / 11164352}
    store = write_store(tmp_path / "store", found, {"depth": [entry["cell"] for entry in found]})
    assert main(["table", "--from", str(store), "--out", str(tmp_path)]) == 0
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert {*cells["seeds.weights"].dropna()} == {1234567891}
    assert {*cells["weights_kept"]} == {3349307}


def test_the_order_in_which_runs_are_read_leaves_no_trace_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a folder differs from machine to machine."""
    cells = [config(model__k=0.3), config(model__method="dense"), config(data__protocol="paper")]
    store = made_store(tmp_path / "store", "depth", cells)
    whole = StoreSource.listing
    written = []
    for turn in (1, -1):
        monkeypatch.setattr(
            StoreSource, "listing", lambda self, turn=turn: dict([*whole(self).items()][::turn])
        )
        out = tmp_path / str(turn)
        assert main(["table", "--from", str(store), "--out", str(out), "--no-cache"]) == 0
        written.append([(out / f"{name}.csv").read_text() for name in ("cells", "epochs")])
    assert written[0] == written[1]


def test_a_sweep_without_a_finished_cell_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made_store(tmp_path / "store", "depth", [config()])
    write_store(store, [], {"mine": [cell_id(config(seed=1))]})
    for name, words in (
        ("mine", "no finished cell of sweep 'mine' (but of: depth)"),
        ("nine", "mean 'mine'"),
    ):
        assert main(["figure", name, "--from", str(store), "--out", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err


def test_a_search_for_learning_rates_is_drawn_at_once(tmp_path: Path) -> None:
    """Trained networks have several rates, too; a sampled mask has no k; there are two data sets."""
    rates = (1e-7, 0.01, 0.1)
    sides = [
        {"model__method": method, "data__name": data}
        for method in ("edge_popup", "dense", "sampled") for data in ("digits", "mnist")
    ]  # fmt: skip
    cells = [config(optim__lr=lr, seed=seed, **side) for side in sides for lr in rates for seed in (0, 1)]
    table = fetch(str(made_store(tmp_path, "mine", cells)))
    spec = layout("mine", table)
    drawn = aggregate.curves(specs.points(table, spec))
    assert (spec.x, spec.log) == ("optim.lr", True)
    assert sorted(set(drawn["panel"])) == ["Conv2, MNIST", "Conv2, digits"]
    assert len(drawn) == 2 * 3 * 3
    for _, points in drawn.groupby(["panel", "curve"]):
        assert points["x"].tolist() == [*rates]
        assert points["n"].tolist() == [2, 2, 2]
    assert drawn["panel"].is_monotonic_decreasing or drawn["panel"].is_monotonic_increasing
    for ax in figures.render(drawn, spec).axes:
        assert ax.get_xscale() == "log"
    without_k = fetch(str(made_store(tmp_path / "k", "mine", [*cells, config(model__k=0.3)])))
    assert layout("mine", without_k).x == "kept"


@pytest.mark.parametrize("name", ["study_rates_more", "study_methods", "study_width"])
def test_figures_of_the_study_are_drawn_from_their_own_sweeps(tmp_path: Path, name: str) -> None:
    cells = as_sweep(name, study.SWEEPS[name]).cells()
    table = fetch(str(made_store(tmp_path, name, cells.values())))
    drawn = aggregate.curves(specs.points(table, experiments.find_spec(name)))
    assert sorted(" ".join(drawn["cells"]).split()) == sorted(cells)
    assert drawn["full"].all()


def test_analysis_needs_neither_torch_nor_ray_nor_wandb(store: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from hiddenweights.analysis.commands import main; "
        f"main(['figure', 'quickstart', '--from', {str(store)!r}, '--out', {str(tmp_path)!r}]); "
        "heavy = {'torch', 'ray', 'wandb', 'matplotlib.pyplot'} & {*sys.modules}; "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_numbers_do_not_import_matplotlib() -> None:
    code = (
        "import sys, hiddenweights.analysis.specs, hiddenweights.analysis.fetch; "
        "sys.exit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_trained_subnetworks_are_curves_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside those with random weights: whose line never quotes a trained one's accuracy as its own."""
    found = grid(archs=["conv4"], ks=[0.3, 0.5], distributions=["signed_constant"])
    trained = [
        config(model__method="finetune", model__init_from=cell_id(cell), model__init_mask=mask,
               model__arch="conv4", model__k=cell.model.k, seed=cell.seed)
        for cell in found if cell.model.method != "dense" for mask in ("found", "shuffled")
    ]  # fmt: skip
    store = made_store(tmp_path, "lottery", found)
    better = [result(cell, 0.99) for cell in trained]
    write_store(store, better, {"lottery": [cell_id(cell) for cell in (*found, *trained)]})
    assert main(["figure", "lottery", "--from", str(store), "--out", str(tmp_path)]) == 0
    drawn = pd.read_csv(tmp_path / "lottery.csv")
    kinds = drawn.groupby("curve")["kind"].first().to_dict()
    assert sorted(kinds.values()) == ["baseline"] * 2 + ["subnetwork"] + ["trained subnetwork"] * 2
    line = capsys.readouterr().out.splitlines()[0]
    assert line.index("random weights") < line.index("99.0%")
