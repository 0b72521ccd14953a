"""The commands of the README and the docs parse, their examples run, their links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hiddenweights import cli
from hiddenweights.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path = README) -> list[list[str]]:
    lines = [line for block in blocks("bash", page) for line in block.splitlines() if line.strip()]
    words = [shlex.split(line, comments=True) for line in lines]
    # What a cluster's head runs is a command of ours, quoted.
    return [shlex.split(w[-1]) if w[:2] == ["ray", "exec"] else w for w in words]


OUR_COMMANDS = {
    " ".join(words): words for page in PAGES for words in commands(page) if words[0] == "hiddenweights"
}


@pytest.mark.parametrize("command", OUR_COMMANDS)
def test_every_command_parses(command: str) -> None:
    assert callable(cli.parse(COMMANDS, "hiddenweights", OUR_COMMANDS[command][1:]))


def test_readme_shows_each_package() -> None:
    shown = {words[1] for words in commands() if words[0] == "hiddenweights"}
    assert shown >= {"train", "info", "sweeps", "analysis"}


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_targets_exist(target: str) -> None:
    assert [f"make {target}"] == [" ".join(w) for w in commands() if w == ["make", target]]
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".venv/bin/" in done.stdout


def test_example_makes_a_supermask_network() -> None:
    scope: dict[str, object] = {}
    (example,) = blocks("python")
    exec(example, scope)
    scores = scope["scores"]
    assert isinstance(scores, list)
    assert len(scores) == 21  # ResNet-18: twenty convolutions and the classifier


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks("python", ROOT / "docs/tutorial.md"):
        exec(block, scope)
    assert scope["accuracy"] > 0.8
    assert scope["found"](scope["images"]).shape == (len(scope["images"]), 10)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link
