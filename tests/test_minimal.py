"""examples/minimal.py finds the masks that the package finds, and its text is what it claims to be."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hiddenweights import CellConfig, Trainer
from hiddenweights.flat import unflatten
from hiddenweights.images.dataset import load_dataset, normalise

pytestmark = pytest.mark.arithmetic

FILE = Path(__file__).parents[1] / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(seed: int, k: float) -> CellConfig:
    fields = {
        "model.arch": "conv2",
        "model.width": 0.25,
        "model.k": k,
        "data.protocol": "paper",
        "optim.batch_size": 64,
        "train.epochs": 2,
        "train.precision": "float32",
        "seed": seed,
    }
    return unflatten(fields)


@pytest.mark.parametrize(("seed", "k"), [(0, 0.5), (3, 0.2)])
def test_the_masks_are_those_of_the_package(minimal: ModuleType, seed: int, k: float) -> None:
    trainer = Trainer(config(seed, k))
    for _ in trainer.epochs():
        pass
    expected = trainer.masks_after(2)

    data = load_dataset(trainer.config.data)
    network = minimal.conv2(data.channels, data.image_size, data.classes, 0.25)
    parts = [(normalise(part.pixels, data.mean, data.std), part.labels) for part in (data.train, data.test)]
    found = minimal.find_masks(network, *parts[0], *parts[1], k=k, epochs=2, seed=seed)

    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(found[name].bool(), mask), name


def test_it_imports_nothing_of_the_package() -> None:
    assert "import hiddenweights" not in FILE.read_text()
    assert "from hiddenweights" not in FILE.read_text()
