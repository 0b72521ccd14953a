"""The numbers in the tables of the study's page are those of its published results."""

import re
import tarfile
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy.stats import t

from hiddenweights.cells.store import Store

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NETWORKS = {f"Conv{n}": f"conv{n}" for n in (2, 4, 6, 8)} | {"FC": "fc", "ResNet-18": "resnet18"}
NETWORKS |= {"logistic regression": "linear", "Logistic regression": "linear"}
SIDES = {
    "SGD": "sgd",
    "Adam": "adam",
    "mask": "edge_popup",
    "sampled mask": "sampled",
    "random mask": "random",
}
SIDES |= {"edge-popup": "edge_popup", "IteRand": "iterand", "biprop": "biprop", "sampled": "sampled"}
WEIGHTS = {"signed constant": "signed_constant", "Kaiming normal": "kaiming_normal"}
KS = (0.1, 0.3, 0.5, 0.7, 0.9)

Accuracies = dict[int, float]


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    """The published cells of the study."""
    return read(Store(RESULTS / "store"))


@pytest.fixture(scope="module")
def long_cells(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The published cells at the paper's scale."""
    folder = tmp_path_factory.mktemp("results")
    with tarfile.open(RESULTS / "figure_3" / "store.tar.xz") as files:
        files.extractall(folder, filter="data")
    return read(Store(folder / "figure_3"))


def read(store: Store) -> list[dict[str, Any]]:
    """The settings of all finished cells, and their accuracies in per cent."""
    found = []
    for _, result in store.results(sorted(store.finished())):
        model, data, optim = (result["config"][part] for part in ("model", "data", "optim"))
        last = result["history"][-1]
        cell = {
            "data": data["name"],
            "protocol": data["protocol"],
            "lr": optim["lr"],
            "seed": result["config"]["seed"],
        }
        cell |= {name: model[name] for name in ("arch", "width", "k", "distribution")}
        cell["side"] = optim["optimizer"] if model["method"] == "dense" else model["method"]
        cell["test"] = 100 * last["test_accuracy"]
        cell["validation"] = 100 * last.get("validation_accuracy", 0)
        found.append(cell)
    return found


def pick(cells: list[dict[str, Any]], part: str = "test", **fields: Any) -> Accuracies:
    """The accuracies by seed of the cells with these settings; of CIFAR-10, if no other data is named."""
    fields = {"data": "cifar10", "protocol": "paper"} | fields
    chosen = [cell for cell in cells if all(cell[name] == value for name, value in fields.items())]
    found = {cell["seed"]: cell[part] for cell in chosen}
    assert found, f"no cell has {fields}"
    assert len(found) == len(chosen), f"{fields} are several configs"
    return found


def tables(heading: str, page: Path = RESULTS / "README.md") -> list[list[list[str]]]:
    """The rows of the tables under a heading, but the paper's. An empty first column has the text above."""
    text = page.read_text()
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    found = []
    for inside, lines in groupby(section.splitlines(), lambda line: line.startswith("|")):
        if inside:
            rows = [[text.strip() for text in line.replace("**", "").split("|")[1:-1]] for line in lines]
            del rows[:2]  # the header and the line below it
            rows = [row for row in rows if row[0] != "*paper*"]
            for above, row in pairwise(rows):
                row[0] = row[0] or above[0]
            found.append(rows)
    return found


def check(text: str, accuracies: Accuracies) -> None:
    """``72.8 (0.7)`` is the mean and the standard deviation of three seeds, ``44.0`` the value of one."""
    found = re.fullmatch(r"([\d.]+)(?: \(([\d.]+)\))?", text)
    assert found, text
    values = [*accuracies.values()]
    assert float(found[1]) == pytest.approx(mean(values), abs=0.0501), text
    if found[2]:
        assert len(values) == 3
        assert float(found[2]) == pytest.approx(stdev(values), abs=0.0501), text


def check_difference(text: str, one: Accuracies, other: Accuracies) -> None:
    """``-3.3 (-5.2 to -1.5)`` is the mean of the differences by seed, and its 95% t interval."""
    found = re.fullmatch(r"([-+\d.]+) \(([-+\d.]+) to ([-+\d.]+)\)", text)
    assert found, text
    values = [one[seed] - other[seed] for seed in (0, 1, 2)]
    half = float(t.ppf(0.975, 2)) * stdev(values) / 3**0.5
    middle = mean(values)
    assert [float(n) for n in found.groups()] == pytest.approx(
        [middle, middle - half, middle + half], abs=0.0501
    ), text


def over_k(row: list[str]) -> Iterator[tuple[float, str]]:
    """The fraction and the text of each column over k."""
    return zip(KS, row, strict=True)


def test_depth(cells: list[dict[str, Any]]) -> None:
    accuracies, differences = tables("What came out")
    assert len(accuracies) == 16
    for network, what, *columns in accuracies:
        where = {"arch": NETWORKS[network], "width": 0.5}
        if what.startswith("random mask"):
            settings: dict[str, Any] = {"side": "random"}
        else:
            weights, rate = what.split(", ")
            settings = {"side": "edge_popup", "distribution": WEIGHTS[weights], "lr": float(rate)}
        for k, text in over_k(columns[:5]):
            check(text, pick(cells, **where, **settings, k=k))
        for side, text in zip(("sgd", "adam"), columns[5:], strict=True):
            if text:
                check(text, pick(cells, **where, side=side))
    for what, *columns in differences:
        for arch, text in zip(("conv2", "conv4", "conv6", "conv8"), columns, strict=True):
            mask = {"arch": arch, "width": 0.5, "side": "edge_popup", "lr": 0.3}
            if "trained with" in what:
                signed = pick(cells, **mask, distribution="signed_constant", k=0.5)
                other = pick(cells, arch=arch, width=0.5, side=SIDES[what.split()[-1]])
            else:
                k = float(what.split()[-1])
                signed = pick(cells, **mask, distribution="signed_constant", k=k)
                other = pick(cells, **mask, distribution="kaiming_normal", k=k)
            check_difference(text, signed, other)


def test_shallow(cells: list[dict[str, Any]]) -> None:
    (rows,) = tables("Where the surprise ends: networks without depth")
    assert len(rows) == 6
    for what, *columns in rows:
        name, network = what.split(", ")[:2]
        data = {"CIFAR-10": "cifar10", "Fashion-MNIST": "fashion_mnist"}[name]
        where = {"data": data, "arch": NETWORKS[network], "width": 0.5 if "half" in what else 1.0}
        rate = {("fashion_mnist", "linear"): 0.03, ("cifar10", "fc"): 0.1}.get((data, where["arch"]), 0.3)
        mask = where | {"side": "edge_popup", "distribution": "signed_constant", "lr": rate}
        for k, text in over_k(columns[:5]):
            check(text, pick(cells, **mask, k=k))
        check(columns[5], pick(cells, **where, side="sgd"))


def test_methods(cells: list[dict[str, Any]]) -> None:
    (rows,) = tables("Ways to choose the mask")
    where = {"arch": "conv4", "width": 0.5}
    for what, rate, *columns in rows:
        side = SIDES.get(what.split(",")[0])
        if side is None:  # the trained networks
            for name, text in zip(("sgd", "adam"), columns[2].split(", "), strict=True):
                check(text, pick(cells, **where, side=name))
        elif side == "sampled":
            check(columns[2], pick(cells, **where, side=side))
        else:
            weights = next(name for words, name in WEIGHTS.items() if words in what)
            settings = where | {"side": side, "distribution": weights}
            settings |= {"lr": float(rate)} if rate else {}
            for k, text in zip(KS, columns, strict=False):
                check(text, pick(cells, **settings, k=k))


def test_width(cells: list[dict[str, Any]]) -> None:
    (rows,) = tables("Width")
    for width, _, *columns in rows:
        where = {"arch": "conv4", "width": float(width)}
        mask = where | {"side": "edge_popup", "distribution": "signed_constant", "lr": 0.3}
        for k, text in zip((0.3, 0.5, 0.7), columns, strict=False):
            check(text, pick(cells, **mask, k=k))
        for side, text in zip(("sgd", "adam"), columns[3:], strict=False):
            check(text, pick(cells, **where, side=side))
        check_difference(columns[5], pick(cells, **mask, k=0.5), pick(cells, **where, side="adam"))


def test_resnet18(cells: list[dict[str, Any]]) -> None:
    (rows,) = tables("ResNet-18")
    where = {"arch": "resnet18", "width": 0.25}
    for rate, (_, three, five, sgd, adam) in zip((0.3, 0.1), rows, strict=False):
        for k, text in ((0.3, three), (0.5, five)):
            check(text, pick(cells, **where, side="edge_popup", lr=rate, k=k))
        for side, text in (("sgd", sgd), ("adam", adam)):
            if "(" in text:
                check(text, pick(cells, **where, side=side))


def test_rates(cells: list[dict[str, Any]]) -> None:
    (rows,) = tables("How the learning rates were chosen")
    assert len(rows) == 34
    for what, side, *columns in rows:
        network, *rest = what.split(", ")
        width = next((float(words.split()[1]) for words in rest if words.startswith("width")), None)
        where: dict[str, Any] = {"arch": NETWORKS[network], "side": SIDES[side], "protocol": "validation"}
        where["width"] = width or (1.0 if where["arch"] in ("linear", "fc") else 0.5)
        where["data"] = "fashion_mnist" if "Fashion-MNIST" in rest else "cifar10"
        rates, validation, test = (column.split(", ") for column in columns)
        for rate, *texts in zip(rates, validation, test, strict=True):
            if texts != ["diverged", "diverged"]:
                for part, text in zip(("validation", "test"), texts, strict=True):
                    check(text, pick(cells, part, **where, lr=float(rate)))


def test_figure_3(long_cells: list[dict[str, Any]]) -> None:
    (rows,) = tables("Beside the paper", RESULTS / "figure_3" / "README.md")
    shown = 0
    for network, weights, *columns in rows:
        where = {"arch": NETWORKS[network], "protocol": "validation"}
        settings = [where | {"side": "edge_popup", "distribution": WEIGHTS[weights], "k": k} for k in KS]
        settings += [where | {"side": side} for side in ("sgd", "adam")]
        for one, text in zip(settings, columns, strict=True):
            if text:
                check(text, pick(long_cells, **one))
                shown += 1
    assert shown == len(long_cells)


def test_the_readme(cells: list[dict[str, Any]], long_cells: list[dict[str, Any]]) -> None:
    rows, _commands = tables("Results", RESULTS.parents[1] / "README.md")
    checked = 0
    for data, network, k, accuracy, n, trained, *_ in rows:
        arch, *rest = network.split(", ")
        if data.startswith("CIFAR-10, 100 epochs"):
            found, where = long_cells, {"arch": NETWORKS[arch], "protocol": "validation"}
        elif data.startswith("CIFAR-10, 10 epochs"):
            width = 1.0 if "full width" in rest or arch == "logistic regression" else 0.5
            found, where = cells, {"arch": NETWORKS[arch], "width": width}
        else:
            continue  # the digits train in seconds, by a command that the page names
        side = next((SIDES[words] for words in rest if words in SIDES), "edge_popup")
        settings = where | {"side": side, "k": float(k), "distribution": "signed_constant"}
        settings |= {"lr": 0.3} if found is cells and side == "edge_popup" else {}
        mask = pick(found, **settings)
        assert len(mask) == int(n)
        check(accuracy.replace("%", "").replace("sd ", ""), mask)
        for side, pattern in (("sgd", r"^([\d.]+)%"), ("adam", r"Adam: ([\d.]+)%")):
            for text in re.findall(pattern, trained):
                check(text, pick(found, **where, side=side))
        checked += 1
    assert checked >= 13
