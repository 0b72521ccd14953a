"""Which package may import which, and that importing does no work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "hiddenweights": {"ray", "wandb", "pandas", "matplotlib", "sweeps", "analysis"},
    "analysis": {"torch", "torchvision", "ray", "sweeps"},
    "sweeps": {"analysis", "matplotlib"},
}


def imports(file: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_downwards_only(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): imports(file) & FORBIDDEN[package] for file in files}
    assert {file: names for file, names in wrong.items() if names} == {}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in memory after `statement` in a fresh interpreter."""
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import hiddenweights", "import hiddenweights.config", "import hiddenweights.store"],
)
def test_planning_needs_no_torch(statement):
    assert not loaded_by(statement) & {"torch", "torchvision", "numpy", "ray", "wandb", "pandas", "sklearn"}


def test_the_method_loads_neither_ray_nor_wandb():
    loaded = loaded_by("from hiddenweights import supermask, Trainer")
    assert "torch" in loaded
    assert not loaded & {"ray", "wandb", "pandas", "matplotlib", "sklearn"}


def test_the_package_offers_its_names_and_no_others():
    import hiddenweights
    from hiddenweights.masks import Mask
    from hiddenweights.subnetwork import supermask

    assert (hiddenweights.supermask, hiddenweights.Mask) == (supermask, Mask)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hiddenweights.no_such_name
