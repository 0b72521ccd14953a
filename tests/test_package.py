"""The project as others install it: one package, one command, and extras that may be missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hiddenweights.__main__ import COMMANDS, main
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id

ROOT = Path(__file__).parents[1]
TINY = ["--set", "train.epochs=1", "--set", "data.subset=200", "--axis", "model.k=0.5", "--axis", "seed=0"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with our wheel and a package of W&B's that is named `sweeps`.

    ``pip install 'wandb[sweeps]'`` brings that package. All others are those of this environment.
    """
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in ("hiddenweights", "sweeps", "analysis"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")

    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (site / "sweeps").mkdir()
    (site / "sweeps" / "__init__.py").write_text("foreign = True\n")
    python = str(environment / "bin" / "python")
    install = [
        *pip,
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    new = {path.name for path in site.iterdir()}
    assert {"hiddenweights", "sweeps"} <= new
    assert not new & {"analysis", "tests", "benchmarks"}
    assert (site / "sweeps" / "__init__.py").read_text() == "foreign = True\n"
    published = {path.relative_to(ROOT) for path in (ROOT / "analysis").rglob("*.csv")}
    assert published
    assert all((site / "hiddenweights" / path).is_file() for path in published)
    return environment / "bin"


def test_a_wheel_beside_a_foreign_sweeps_trains_tracks_and_draws(installed: Path, tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"WANDB_MODE": "offline", "HIDDENWEIGHTS_CACHE": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        command = [str(installed / "hiddenweights"), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=variables, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    assert run("--version").startswith("hiddenweights ")
    run("sweeps", "launch", "quickstart", *TINY, "--axis", "model.arch=fc", "--executor", "inline")
    finished = [json.loads(path.read_text()) for path in tmp_path.glob("runs/cells/*/result.json")]
    tracked = [*tmp_path.glob("runs/wandb/offline-run-*/*.wandb")]
    assert len(tracked) == len(finished) > 0
    run("analysis", "figure", "quickstart", "--from", "runs/wandb")
    assert (tmp_path / "figures" / "quickstart.png").stat().st_size > 0


WITHOUT = """
import sys
for name in ("ray", "wandb", "pandas", "matplotlib", "pyarrow"):
    sys.modules[name] = None  # to import it is to find it missing
from hiddenweights.__main__ import main
sys.exit(max(main(words.split()) for words in sys.argv[1:]))
"""


def without_extras(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *commands]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_core_trains_without_the_extras(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model.arch": "fc", "train.epochs": 1, "data.subset": 200}
    train = " ".join(["train", *(f"--{name}={value}" for name, value in fields.items())])
    cell = cell_id(unflatten(fields))
    done = without_extras(tmp_path, train, f"info runs/cells/{cell}/ticket.ticket")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(cell) > 1  # both have said it


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("sweeps launch quickstart", "hiddenweights[sweeps]"),
        ("sweeps sync", "hiddenweights[sweeps]"),
        ("analysis claims", "hiddenweights[analysis]"),
    ],
)
def test_a_missing_extra_is_one_line(command: str, extra: str, tmp_path: Path) -> None:
    done = without_extras(tmp_path, command)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert extra in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_overview_needs_nothing_heavy() -> None:
    program = (
        "import sys; from hiddenweights.__main__ import main; main(['--help']); "
        "sys.exit(' '.join({'torch', 'tyro', 'rich', 'numpy', 'pandas', 'ray', 'wandb'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_what_a_command_says_of_itself(name: str) -> None:
    assert COMMANDS[name].about == (COMMANDS[name].load().__doc__ or "").partition("\n")[0]


def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--tyro-print-completion", "bash"])
    assert not end.value.code
    script = capsys.readouterr().out
    assert all(word in script for name in COMMANDS for word in name.split())
    assert "--model.arch" in script


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["lunch"], ["lunch", "sweeps launch"]),
        (["sweeps"], ["sweeps", "launch", "status"]),
        (["sweeps", "lunch"], ["lunch", "sweeps launch"]),
        (["analysis", "figure", "quickstart", "--fro", "runs"], ["--fro", "--from"]),
        (["sweeps", "show"], ["NAME"]),
    ],
)
def test_a_wrong_command_is_one_line(
    words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in named)
