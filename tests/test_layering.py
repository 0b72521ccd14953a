"""Which package may import which, and that importing does no work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each folder by the packages and modules that nothing in it may import.
SWEEPS, ANALYSIS = "hiddenweights.sweeps", "hiddenweights.analysis"
FORBIDDEN = {
    "hiddenweights": {"ray", "wandb", "pandas", "matplotlib", SWEEPS, ANALYSIS},
    "analysis": {"torch", "torchvision", "ray", SWEEPS},
    "sweeps": {"matplotlib", ANALYSIS},
}
# The rooms of hiddenweights, lowest first: each imports from those before it.
ROOMS = ("claims", "masking", "models", "images", "tickets", "training", "cells", "commands")


def imported(file: Path) -> set[str]:
    """The dotted names that a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def around(name: str) -> list[str]:
    """The dotted `name`, and the modules and packages that it lies in, inside first."""
    return [name.rsplit(".", i)[0] for i in range(name.count(".") + 1)]


def imports(file: Path) -> set[str]:
    """All that a file imports: each module with the packages that it lies in."""
    return {module for name in imported(file) for module in around(name)}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_downwards_only(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): imports(file) & FORBIDDEN[package] for file in files}
    assert {file: names for file, names in wrong.items() if names} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_from_lower_ones(room):
    above = {f"hiddenweights.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]}
    files = sorted((ROOT / "hiddenweights" / room).rglob("*.py"))
    assert files
    assert {file.name: names for file in files if (names := imports(file) & above)} == {}


def test_no_import_goes_both_ways():
    """Neither directly nor around: what a module imports does not lead back to it, for types alone either.

    A package that is only on the way to a module does not count, because its `__init__` does no work.
    """
    folders = {"hiddenweights": ROOT / "hiddenweights", SWEEPS: ROOT / "sweeps", ANALYSIS: ROOT / "analysis"}
    files = {
        ".".join([package, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): file
        for package, folder in folders.items()
        for file in folder.rglob("*.py")
    }
    after = {
        name: {next(filter(files.__contains__, around(used)), name) for used in imported(file)} - {name}
        for name, file in files.items()
    }
    assert sum(map(len, after.values())) > 100
    while ends := [name for name, names in after.items() if not names & after.keys()]:
        for name in ends:
            del after[name]
    assert after == {}


def test_functions_fit_on_a_screen_and_files_are_short():
    long = {}
    for file in (file for package in FORBIDDEN for file in (ROOT / package).rglob("*.py")):
        text = file.read_text()
        if (lines := len(text.splitlines())) > 400:
            long[str(file.relative_to(ROOT))] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60:
                    long[f"{file.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


def loaded_by(statement: str) -> set[str]:
    """The modules in memory after `statement` in a fresh interpreter: top-level ones, and torch's parts."""
    program = (
        f"import sys; {statement}; print(*(n for n in sys.modules if n.count('.') <= n.startswith('torch.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import hiddenweights", "import hiddenweights.config", "import hiddenweights.cells.store"],
)
def test_planning_needs_no_torch(statement):
    assert not loaded_by(statement) & {"torch", "torchvision", "numpy", "ray", "wandb", "pandas", "sklearn"}


def test_settling_claims_needs_no_pandas():
    assert not loaded_by("import hiddenweights.sweeps.settle") & {"pandas", "matplotlib", "torch", "ray"}
    assert not loaded_by("import hiddenweights.sweeps.commands") & {"scipy", "pandas", "torch", "ray"}


def test_training_loads_neither_ray_nor_wandb_nor_half_of_torch():
    cell = {"model.arch": "fc", "train.epochs": 1, "data.subset": 100}
    loaded = loaded_by(
        f"from hiddenweights import supermask, Trainer, flat; [*Trainer(flat.unflatten({cell})).epochs()]"
    )
    assert "torch" in loaded
    assert not loaded & {"ray", "wandb", "pandas", "matplotlib", "sklearn", "torchvision", "torch._dynamo"}


def test_the_package_offers_its_names_and_no_others():
    import hiddenweights
    from hiddenweights.masking.masks import Mask
    from hiddenweights.masking.supermask import supermask

    assert (hiddenweights.supermask, hiddenweights.Mask) == (supermask, Mask)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hiddenweights.no_such_name
