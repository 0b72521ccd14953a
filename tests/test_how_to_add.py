"""The README's "How to add", followed to the letter in a copy of the code: every addition works."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow(seconds=20)  # in a fixture, which two workers would have twice

ROOT = Path(__file__).parents[1]


def insert(file: Path, before: str, text: str) -> None:
    """Put `text` before the only place of `before` in `file`."""
    content = file.read_text()
    assert content.count(before) == 1, (file.name, before)
    file.write_text(content.replace(before, text + before))


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def add_network(code: Path) -> None:
    (code / "hiddenweights/models/tiny.py").write_text(
        '''"""A network for this test."""

from torch import nn

from hiddenweights.models.scale import scaled_channels


def tiny(channels: int, image_size: int, classes: int, width: float) -> nn.Module:
    """One hidden layer."""
    hidden = scaled_channels(40, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * image_size**2, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, classes, bias=False),
    )
'''
    )
    networks = code / "hiddenweights/models/__init__.py"
    insert(networks, "# Each builder takes", "from hiddenweights.models.tiny import tiny\n\n")
    insert(networks, '    "linear": linear,\n', '    "tiny": tiny,\n')
    insert(code / "hiddenweights/config.py", '    "linear",\n', '    "tiny",\n')


def add_axis(code: Path) -> None:
    config = code / "hiddenweights/config.py"
    insert(
        config,
        "    label_smoothing: float | None = None\n",
        '    nesterov: bool = False\n    """Use Nesterov momentum."""\n',
    )
    insert(
        config,
        '        for name in ("lr", "weight_decay", "warmup_epochs"):\n',
        '        adam = self.nesterov and self.optimizer == "adam"\n'
        '        check(not adam, "optim.nesterov", self.nesterov, "is for sgd")\n',
    )
    optim = code / "hiddenweights/training/optim.py"
    text = optim.read_text()
    assert text.count("momentum=config.momentum,") == 1
    optim.write_text(
        text.replace("momentum=config.momentum,", "momentum=config.momentum, nesterov=config.nesterov,")
    )


def add_mask_method(code: Path) -> None:
    masks = code / "hiddenweights/masking/masks.py"
    insert(
        masks,
        "METHODS: dict[str, type[Mask]] = {\n",
        '''class Positive(Mask):
    """Keep the top k by score instead of |score|."""

    def mask(self) -> Tensor:
        return top_k_mask(self.scores.exp(), self.kept)


''',
    )
    insert(masks, '    "edge_popup": EdgePopup,\n', '    "positive": Positive,\n')
    insert(code / "hiddenweights/config.py", '"edge_popup", "sampled"', '"positive", ')
    insert(code / "analysis/table.py", '"edge_popup", "sampled"', '"positive", ')


def add_data_set(code: Path) -> None:
    insert(
        code / "hiddenweights/images/dataset.py",
        '    "mnist": _Source(',
        '    "kmnist": _Source("KMNIST", "KMNIST/raw", 10, (0.19,), (0.35,)),\n',
    )
    insert(code / "hiddenweights/config.py", '"digits", "mnist"', '"kmnist", ')


def add_figure(code: Path) -> None:
    experiments = code / "sweeps/experiments.py"
    insert(
        experiments,
        "SWEEPS: Mapping",
        '''@declare(claim="none", expect="something", gpu_hours=0.001)
def mine() -> list[Arm]:
    """A sweep for this test."""
    base = {"model.arch": "tiny", "model.method": "positive", "optim.nesterov": True, "train.epochs": 2}
    return [arm(base, {"model.k": (0.3, 0.6)})]


''',
    )
    insert(experiments, '    "quickstart": quickstart,\n', '    "mine": mine,\n')
    insert(
        code / "analysis/experiments.py",
        '        over_k("quickstart"',
        '        over_k("mine", "My figure"),\n',
    )


def add_claim(code: Path) -> None:
    claims = code / "hiddenweights/claims/papers/ramanujan2020.py"
    insert(
        claims,
        "CLAIMS = (\n",
        """def _mine(cells: Cells) -> Contrasts:
    more, fewer = (pick(cells, method="positive", k=k) for k in (0.6, 0.3))
    yield from compare(more, fewer, ["model.k"], "minus k = 0.3")


""",
    )
    insert(
        claims,
        '    Claim(\n        "plateau"',
        '    Claim("mine", "More is better.", "k = 0.6 minus k = 0.3 is above 0.", "mine", _mine),\n',
    )


def add_paper(code: Path) -> None:
    (code / "sweeps/papers/other2099.py").write_text(
        '''"""Another paper, for this test."""

from hiddenweights.sweeps.declare import declare
from hiddenweights.sweeps.grid import Arm, arm


@declare(claim="none.", expect="something.")
def other() -> list[Arm]:
    """Its figure, with cells that `mine` has, too."""
    base = {"model.arch": "tiny", "model.method": "positive", "optim.nesterov": True, "train.epochs": 2}
    return [arm(base, {"model.k": (0.3, 0.6)})]


SWEEPS = {"other": other}
'''
    )
    experiments = code / "sweeps/experiments.py"
    insert(experiments, "import ramanujan2020\n", "import other2099\nfrom hiddenweights.sweeps.papers ")
    insert(experiments, "    **ramanujan2020.SWEEPS,\n", "    **other2099.SWEEPS,\n")

    papers, experiments = code / "analysis/papers", code / "analysis/experiments.py"
    (papers / "other2099").mkdir()
    (papers / "other2099/__init__.py").write_text(
        '''"""Its figures, for this test."""

from hiddenweights.analysis.specs import over_k

FIGURES = (over_k("other", "Their figure"),)
'''
    )
    header = (papers / "ramanujan2020/depth.csv").read_text().partition("\n")[0]
    row = {"panel": "tiny", "curve": "theirs", "x": "50", "y": "90", "relation": "=", "data": "digits"}
    values = ",".join(row.get(name, "made up") for name in header.split(","))
    (papers / "other2099/other.csv").write_text(f"{header}\n{values}\n")
    insert(experiments, "import ramanujan2020\n", "import other2099\nfrom hiddenweights.analysis.papers ")
    insert(experiments, "        *ramanujan2020.FIGURES,\n", "        *other2099.FIGURES,\n")
    insert(experiments, "ramanujan2020.__name__,", "other2099.__name__, ")

    (code / "hiddenweights/claims/papers/other2099.py").write_text(
        '''"""Its claims, for this test."""

from hiddenweights.claims.contrasts import Claim, compare, pick


def _theirs(cells):
    fewer, more = (pick(cells, method="positive", k=k) for k in (0.3, 0.6))
    yield from compare(fewer, more, ["model.k"], "minus k = 0.6")


CLAIMS = (Claim("theirs", "Fewer is better.", "k = 0.3 minus k = 0.6 is above 0.", "other", _theirs),)
'''
    )
    known = code / "hiddenweights/claims/registry.py"
    insert(known, "import ramanujan2020\n", "import other2099\nfrom hiddenweights.claims.papers ")
    insert(known, "*ramanujan2020.CLAIMS,", "*other2099.CLAIMS, ")


# The checks of each addition, run in the copy. Each prints what the test below expects.
CHECKS = """
import json, os, struct, sys
from pathlib import Path
import torch
from hiddenweights import UserError
from hiddenweights.__main__ import main
from hiddenweights.config import CellConfig, DataConfig, OptimConfig
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.images.dataset import load_dataset
from hiddenweights.models import build_network

def complaint(make):
    try:
        make()
    except UserError as error:
        return str(error)

def write(name, dimensions, content):
    kind = bytes([0, 0, 8, len(dimensions)])
    sizes = struct.pack(f">{len(dimensions)}I", *dimensions)
    Path("data/KMNIST/raw", name).write_bytes(kind + sizes + content)

found = {"home": sys.modules["hiddenweights"].__file__}
network = build_network("tiny", channels=1, image_size=8, classes=10)
found["network"] = sum(p.numel() for p in network.parameters())
found["axis"] = [
    cell_id(CellConfig()),
    cell_id(unflatten({"optim.nesterov": True})) == cell_id(CellConfig()),
    complaint(lambda: OptimConfig(nesterov=True, optimizer="adam")),
]
Path("data/KMNIST/raw").mkdir(parents=True)
for part, n in (("train", 6), ("t10k", 3)):
    write(f"{part}-images-idx3-ubyte", (n, 28, 28), bytes(range(n)) * 28 * 28)
    write(f"{part}-labels-idx1-ubyte", (n,), bytes(range(n)))
data = load_dataset(DataConfig(name="kmnist"))
found["data set"] = [len(data.train), len(data.test), data.image_size]
found["launch"] = main(["sweeps", "launch", "mine", "--executor", "inline"])
found["figure"] = main(["analysis", "figure", "mine", "--no-cache"])
found["other"] = [
    main(["sweeps", "launch", "other", "--executor", "inline"]),
    main(["analysis", "figure", "other", "--no-cache"]),
]
found["other csv"] = Path("figures/other.csv").read_text()
found["claims"] = main(["analysis", "claims", "--no-cache"])
found["verdicts"] = Path("figures/claims.csv").read_text()
found["csv"] = Path("figures/mine.csv").read_text()
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All additions in one copy, checked by one process."""
    code = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("hiddenweights", "sweeps", "analysis"):
        shutil.copytree(ROOT / folder, code / folder, symlinks=True, ignore=ignore)
    steps: list[Callable[[Path], None]] = [
        add_network, add_axis, add_mask_method, add_data_set, add_figure, add_claim, add_paper,
    ]  # fmt: skip
    for step in steps:
        step(code)
    environment = {**os.environ, "PYTHONPATH": str(code), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", CHECKS]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads((code / "found.json").read_text())
    assert Path(result["home"]).is_relative_to(code)
    return result | {"output": done.stdout}


def test_a_network(found: dict[str, Any]) -> None:
    assert found["network"] == 64 * 40 + 40 * 10


def test_an_axis_keeps_old_ids_and_rejects_bad_values(found: dict[str, Any]) -> None:
    from hiddenweights.config import CellConfig
    from hiddenweights.identity import cell_id

    default, same, complaint = found["axis"]
    assert default == cell_id(CellConfig())
    assert not same
    assert complaint.startswith("optim.nesterov: True")


def test_a_data_set(found: dict[str, Any]) -> None:
    assert found["data set"] == [6, 3, 28]


def test_a_figure_of_a_new_sweep_network_and_mask_method(found: dict[str, Any]) -> None:
    assert found["launch"] == found["figure"] == 0
    rows = list(csv.DictReader(found["csv"].splitlines()))
    assert [row["x"] for row in rows] == ["30.0", "60.0"]
    assert "2 of 2 cells kept every weight unchanged" in found["output"]


def test_a_claim(found: dict[str, Any]) -> None:
    assert found["claims"] == 0
    (mine,) = [row for row in csv.DictReader(found["verdicts"].splitlines()) if row["claim"] == "mine"]
    assert mine["verdict"] == "open here"  # one seed, and not the paper's cells
    assert (mine["n"], mine["comparisons"]) == ("1", "1")


def test_a_paper_shares_cells_and_has_published_numbers_and_claims(found: dict[str, Any]) -> None:
    assert found["other"] == [0, 0]
    assert "/runs, 0 to train" in found["output"]  # the cells of `mine`
    rows = list(csv.DictReader(found["other csv"].splitlines()))
    assert [(row["kind"], row["x"]) for row in rows] == [
        ("subnetwork", "30.0"), ("subnetwork", "60.0"), ("published", "50.0")
    ]  # fmt: skip
    verdicts = {row["claim"]: row for row in csv.DictReader(found["verdicts"].splitlines())}
    assert float(verdicts["theirs"]["mean"]) == -float(verdicts["mine"]["mean"])
