"""``hiddenweights evaluate | info | export | diff``."""

import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from hiddenweights import cli
from hiddenweights.__main__ import COMMANDS
from hiddenweights.flat import unflatten
from hiddenweights.identity import pinned
from hiddenweights.images.dataset import load_dataset, normalise
from hiddenweights.models import build_network
from hiddenweights.tickets.ticket import load_ticket, read_ticket
from hiddenweights.training.train import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a and b differ in their scores' seeds; r is a ResNet."""
    folder = tmp_path_factory.mktemp("tickets")
    small = {"model.arch": "fc", "data.subset": 300, "train.epochs": 2, "model.k": 0.3}
    resnet = {"model.arch": "resnet18", "model.width": 0.125, "train.epochs": 1}
    for name, fields in {"a": {}, "b": {"seeds.scores": 1}, "r": resnet}.items():
        trainer = Trainer(unflatten({**small, **fields}))
        trainer.ticket(list(trainer.epochs())[-1]).save(folder / f"{name}.ticket")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Call a command in the tickets' folder; returns (status, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def call(*words: str) -> tuple[int, str, str]:
        status = cli.run(COMMANDS, "hiddenweights", words)
        return status, *capsys.readouterr()

    return call


def images() -> torch.Tensor:
    dataset = load_dataset(unflatten({}).data)
    return normalise(dataset.test.pixels[:50], dataset.mean, dataset.std)


def logits(name: str) -> torch.Tensor:
    """Of the ticket's network in the memory format of exports: others differ in a last bit."""
    with torch.no_grad():
        return load_ticket(f"{name}.ticket").to(memory_format=torch.contiguous_format)(images())


def test_evaluate_measures_the_accuracy_of_the_end_of_training(run):
    for split in ("test", "validation"):
        expected = read_ticket("a.ticket").record[f"{split}_accuracy"]
        status, out, _ = run("evaluate", "a.ticket", "--split", split)
        assert status == 0
        assert out.count(f"{expected:.2%}") == 2  # measured now, and recorded then


def test_info_shows_each_layer_and_the_signs_add_up(run):
    status, out, _ = run("info", "a.ticket")
    assert status == 0
    ticket = read_ticket("a.ticket")
    network = ticket.network()
    for name, mask in ticket.masks.items():
        row = next(line for line in out.splitlines() if line.startswith(name)).split()
        weights = network.get_parameter(name)
        assert [int(row[i]) for i in (2, 3, 5, 6)] == [
            mask.numel(), int(mask.sum()), int((weights > 0).sum()), int((weights < 0).sum())
        ]  # fmt: skip
    assert ticket.weights_checksum in out
    bits = [float(row.split()[-1]) for row in out.splitlines() if row.startswith((*ticket.masks, "all"))]
    assert min(bits[:-1]) <= bits[-1] <= max(bits[:-1])  # without the rest of the file


def test_diff_tells_equal_masks_from_unrelated_ones(run):
    _, same, _ = run("diff", "a.ticket", "a.ticket")
    assert len(re.findall("above", same)) == 4
    assert "100.0%" in same
    _, other, _ = run("diff", "a.ticket", "b.ticket")
    assert "100.0%" not in other
    status, _, error = run("diff", "a.ticket", "r.ticket")
    assert status == 2
    assert "resnet18" in error


def test_an_exported_state_dict_fits_the_plain_network(run, tmp_path):
    assert run("export", "r.ticket", "--to", "state_dict", "--output", str(tmp_path / "r.pt"))[0] == 0
    plain = build_network("resnet18", channels=1, image_size=8, classes=10, width=0.125).eval()
    plain.load_state_dict(torch.load(tmp_path / "r.pt"))
    with torch.no_grad():
        assert torch.equal(plain(images()), logits("r"))


def test_an_exported_program_runs_without_this_package(run, folder, tmp_path):
    assert run("export", "r.ticket", "--to", "exported_program")[0] == 0
    torch.save(images(), tmp_path / "images.pt")
    program = (
        "import sys; sys.modules['hiddenweights'] = None\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "network = torch.export.load('r.pt2').module()\n"
        f"with torch.no_grad(): logits = network(torch.load({str(tmp_path / 'images.pt')!r}))\n"
        "sys.stdout.buffer.write(logits.numpy().tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, check=True)
    assert done.stdout == logits("r").numpy().tobytes()


@pytest.mark.parametrize("name", ["a", "r"])
def test_an_exported_onnx_model_gives_the_same_logits(run, name):
    from onnx.reference import ReferenceEvaluator

    assert run("export", f"{name}.ticket", "--to", "onnx")[0] == 0
    (found,) = ReferenceEvaluator(f"{name}.onnx").run(None, {"images": images().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("to", "suffix"), [("onnx", "onnx"), ("exported_program", "pt2")])
def test_exports_take_any_batch_and_hold_no_path_of_this_machine(run, tmp_path, to, suffix):
    for name in ("a", "again"):
        assert run("export", "a.ticket", "--to", to, "--output", str(tmp_path / f"{name}.{suffix}"))[0] == 0
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content == (tmp_path / f"again.{suffix}").read_bytes()
    for path in (Path(torch.__file__).parent, Path(__file__).parents[1], tmp_path, Path.cwd()):
        assert str(path).encode() not in content
    if to == "onnx":
        import onnx

        graph = onnx.load(tmp_path / "a.onnx").graph
        axes = [value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)]
        assert axes == ["batch", "batch"]
    else:
        program = torch.export.load(tmp_path / "a.pt2")
        inputs = program.graph_signature.user_inputs
        (images_,) = (node for node in program.graph.nodes if node.name in inputs)
        assert str(images_.meta["val"].shape[0]) == "batch"
        assert [*map(str, program.range_constraints)] == ["batch"]
        assert b"Symbol('s" not in content
        network = program.module()
        for n in (1, 3, 50):
            torch.testing.assert_close(network(images()[:n]), logits("a")[:n])


def test_onnx_is_named_where_it_is_not_installed(run, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    status, _, error = run("export", "a.ticket", "--to", "onnx", "--output", "never.onnx")
    assert status == 2
    assert "onnxscript" in error
    assert not Path("never.onnx").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("info", "absent"), "absent"),
        (("evaluate", "a.ticket", "--device", "abacus"), "abacus"),
        (("evaluate", "a.ticket", "--data", "nothing"), "nothing"),
        (("evaluate", "a.ticket", "--arch", "os:system"), "arch"),
        (("export", "a.ticket", "--to", "paper"), "paper"),
        (("export", "a.ticket", "--to", "state_dict", "--output", "no/such/folder.pt"), "folder.pt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_status_2(run, folder, words, named):
    before = sorted(folder.iterdir())
    status, _, error = run(*words)
    assert status == 2
    assert named in error
    assert error.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_the_validation_split_of_the_papers_protocol_is_refused(run, folder):
    trainer = Trainer(unflatten({"model.arch": "linear", "train.epochs": 1, "data.protocol": "paper"}))
    (folder / "p.ticket").write_bytes(trainer.ticket(list(trainer.epochs())[-1]).to_bytes())
    status, _, error = run("evaluate", "p.ticket", "--split", "validation")
    assert status == 2
    assert "protocol" in error


def test_a_data_set_of_another_shape_is_refused(run, data_root):
    status, _, error = run("evaluate", "a.ticket", "--data", "cifar10", "--root", str(data_root))
    assert status == 2
    assert "channels" in error


FLOW = """
from torch import nn


class Flow(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.one = nn.Linear(64, classes, bias=False)

    def forward(self, images):
        logits = self.one(images.flatten(1))
        return 2 * logits if logits.mean() > 0 else logits


def make(num_classes):
    return Flow(num_classes)
"""


def test_a_network_that_torch_cannot_export_is_an_error_of_one_line(run, folder, tmp_path):
    (tmp_path / "flow.py").write_text(FLOW)
    arch = f"{tmp_path / 'flow.py'}:make"
    trainer = Trainer(pinned(unflatten({"model.arch": arch, "data.subset": 300, "train.epochs": 1})))
    trainer.ticket(list(trainer.epochs())[-1]).save(folder / "flow.ticket")
    output = str(tmp_path / "flow.pt2")
    words = ("export", "flow.ticket", "--to", "exported_program", "--output", output, "--arch", arch)
    status, _, error = run(*words)
    last = error.splitlines()[-1]  # torch prints its own diagnosis before it
    assert status == 2
    assert last.startswith("error: ")
    assert "state_dict" in last
    assert not Path(output).exists()


def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "x.pt", tmp_path / ("x" * 300)):
        status, _, error = run("export", "a.ticket", "--to", "state_dict", "--output", str(output))
        assert (status, len(error.splitlines())) == (2, 1)
