"""The README's commands parse, its example runs, its links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hiddenweights import cli
from hiddenweights.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    words = [shlex.split(line, comments=True) for line in lines]
    # What a cluster's head runs is a command of ours, quoted.
    return [shlex.split(w[-1]) if w[:2] == ["ray", "exec"] else w for w in words]


OUR_COMMANDS = [words[1:] for words in commands() if words[0] == "hiddenweights"]


@pytest.mark.parametrize("words", OUR_COMMANDS, ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    assert callable(cli.parse(COMMANDS, "hiddenweights", words))


def test_readme_shows_each_package() -> None:
    assert {words[0] for words in OUR_COMMANDS} >= {"train", "info", "sweeps", "analysis"}


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link
