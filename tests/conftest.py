"""What all tests share: one thread, and the folder of the downloaded data sets."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # here: most tests of the analysis need none

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with CIFAR-10 and Fashion-MNIST in torchvision's layout."""
    folder = os.environ.get("HIDDENWEIGHTS_DATA")
    if not folder:
        pytest.skip("HIDDENWEIGHTS_DATA does not name a folder with CIFAR-10 and Fashion-MNIST")
    return Path(folder)
