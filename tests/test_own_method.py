"""A mask method that a user brings: a file in an empty folder, used by the installed package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hiddenweights import own
from hiddenweights.__main__ import main
from hiddenweights.cells.store import Store
from hiddenweights.errors import UserError
from hiddenweights.flat import from_dict, to_dict, unflatten
from hiddenweights.identity import cell_id, resolve
from hiddenweights.training.methods import mask_type
from hiddenweights.training.train import Trainer

METHOD = '''
"""Mask methods of a user."""

import torch
from hiddenweights import Mask
from hiddenweights.masking.masks import top_k_mask

from shift import SHIFT


class Positive(Mask):
    """Keep the top k by score."""

    steps = 0

    def mask(self):
        return top_k_mask((self.scores + SHIFT).exp(), self.kept)

    def after_step(self, weight, step):
        type(self).steps = step


class Halved(Positive):
    """Not its weight times a mask."""

    def forward(self, weight):
        return super().forward(weight) / 2


class Fewer(Mask):
    def __init__(self, scores):
        pass


class Flat(Mask):
    def mask(self):
        return torch.ones(self.scores.numel())


class Constant(Mask):
    def mask(self):
        return torch.ones_like(self.scores)


class Fails(Mask):
    def mask(self):
        return 1 / 0


function = len
'''
TINY = {"model.arch": "fc", "model.width": 0.1, "train.epochs": 1, "data.subset": 200}
FLAGS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


def write(folder: Path, shift: str = "0.5") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "my_masks.py").write_text(METHOD)
    (folder / "shift.py").write_text(f"SHIFT = {shift}\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, as the present one."""
    monkeypatch.chdir(write(tmp_path / "mine"))
    return tmp_path / "mine"


def cell_in(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "my_masks.py:Positive") -> str:
    monkeypatch.chdir(folder)
    return cell_id(unflatten({**TINY, "model.method": name}))


def test_train_with_two_processes_and_the_ticket_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "hiddenweights", "train", *FLAGS, "--no-track", "--ranks", "2"]
    command += ["--model.method", "my_masks.py:Positive"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    cell = cell_id(unflatten({**TINY, "model.method": "my_masks.py:Positive"}))
    store = Store(str(folder / "runs"))
    result = store.result(cell)
    assert result is not None
    assert own.plain(result["config"]["model"]["method"]) == "my_masks.py:Positive"
    assert result["summary"]["kept"] == pytest.approx(0.5, abs=0.01)

    # The ticket needs none of the user's code.
    content = store.ticket(cell)
    assert content is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (folder / "my_masks.py").unlink()
    Path("found.ticket").write_bytes(content)
    monkeypatch.setattr(own, "_NAMED", {})
    monkeypatch.setattr(own, "_imported", lambda *arguments: pytest.fail("user code was imported"))
    assert main(["info", "found.ticket"]) == 0
    assert "my_masks.py:Positive@" in capsys.readouterr().out
    assert main(["evaluate", "found.ticket"]) == 0
    measured, recorded = (line.split(" accuracy ")[-1] for line in capsys.readouterr().out.splitlines())
    assert recorded.split()[-1] == measured.split("%")[0] + "%"
    assert main(["export", "found.ticket", "--to", "state_dict"]) == 0
    arguments = ["train", *FLAGS, "--no-track", "--model.init-from", "found.ticket"]
    assert main(arguments) == 0


def test_the_version_of_the_code_is_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, same, other = (
        cell_in(write(tmp_path / name, shift), monkeypatch)
        for name, shift in (("a", "0.5"), ("b", "0.5"), ("c", "0.25"))  # what it imports counts, too
    )
    assert first == same != other
    monkeypatch.chdir(tmp_path)
    assert cell_id(unflatten({**TINY, "model.method": f"{tmp_path}/a/my_masks.py:Positive"})) == first
    assert cell_id(unflatten({**TINY, "model.method": "c/my_masks.py:Halved"})) != other


def test_its_recipe_is_edge_popups(folder: Path) -> None:
    for arch in ("fc", "resnet18", "torchvision/resnet50"):
        mine = resolve(unflatten({"model.arch": arch, "model.method": "my_masks.py:Positive"}))
        assert mine.optim == resolve(unflatten({"model.arch": arch})).optim
        assert mine.model.distribution == "signed_constant"
    given = {"model.method": "my_masks.py:Positive", "optim.lr": 0.3, "model.k": 0.1}
    assert resolve(unflatten(given)).optim.lr == 0.3


def test_it_is_told_of_every_step_and_leaves_a_ticket_only_for_a_plain_mask(folder: Path) -> None:
    for name, has_ticket in (("Positive", True), ("Halved", False)):
        trainer = Trainer(unflatten({**TINY, "model.method": f"my_masks.py:{name}"}))
        (record,) = trainer.epochs()
        assert type(next(iter(trainer.stepping.values()))).steps == trainer.steps == 2
        if has_ticket:
            trainer.ticket(record)
        else:
            with pytest.raises(UserError, match="times a mask of 0 and 1"):
                trainer.ticket(record)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:Mine", "nowhere.py"),
        ("no_such_module:Mine", "no_such_module"),
        ("my_masks.py:Absent", "Positive"),
        ("my_masks.py:function", "subclass of hiddenweights.Mask"),
        ("my_masks.py:Fewer", r"\(scores, k, layer\)"),
        ("my_masks.py:Flat", r"\(24,\)"),
        ("my_masks.py:Constant", "no gradient in the scores"),
        ("my_masks.py:Fails", "ZeroDivisionError"),
        ("positive", "edge_popup.*FILE.py:CLASS"),
        ("my_masks.py", "FILE.py:CLASS"),
    ],
)
def test_a_wrong_name_is_one_line(folder: Path, name: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^model.method: .*{says}") as error:
        mask_type(resolve(unflatten({"model.method": name})).model.method)
    assert "\n" not in str(error.value)


def test_the_code_travels_to_a_machine_that_lacks_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = resolve(unflatten({"model.method": "my_masks.py:Positive"})).model.method
    sent = json.dumps(own.carried())
    for file in ("my_masks.py", "shift.py"):
        (folder / file).unlink()
    monkeypatch.setattr(own, "_NAMED", {})
    own._with_imports.cache_clear()  # that other machine has not read the files
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UserError, match="only if the command names it"):
        mask_type(method)
    own.receive(json.loads(sent))
    assert mask_type(method).__name__ == "Positive"
    assert Path(sys.modules[mask_type(method).__module__].__file__ or "").parent != folder


def test_a_helper_is_the_file_beside_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "helper_of_mine", raising=False)
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 0\n")
    for value, folder in enumerate(("a", "b"), start=1):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper_of_mine.py").write_text(f"VALUE = {value}\n")
        (tmp_path / folder / "types.py").write_text("")  # beside one that everything has imported
        (tmp_path / folder / "code.py").write_text("import types\nfrom helper_of_mine import VALUE\n")
    first, second = (
        own.versioned(f"{tmp_path}/{folder}/code.py:VALUE", "data.name", "data") for folder in "ab"
    )
    assert own.code(first, "data.name") == 1  # not that of another folder on the path
    with pytest.raises(UserError, match=r"helper_of_mine\.py beside it is not imported"):
        own.code(second, "data.name")


def test_a_config_that_was_read_names_no_file_to_look_at(folder: Path) -> None:
    read = to_dict(unflatten({"model.method": "my_masks.py:Positive"}))
    with pytest.raises(UserError, match="without a version"):
        from_dict(read)


def test_a_package_adds_methods_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hiddenweights.methods]\npositive = their_masks:Positive\n")
    (tmp_path / "their_masks.py").write_text(METHOD.replace("from shift import SHIFT", "SHIFT = 1"))
    monkeypatch.syspath_prepend(str(tmp_path))
    method = resolve(unflatten({"model.method": "positive"})).model.method
    assert own.plain(method) == "positive" != method
    assert mask_type(method).__name__ == "Positive"
    with pytest.raises(UserError, match=r"iterand.*positive"):
        unflatten({"model.method": "nothing"})
