"""What all tests share: the arithmetic, and the folder of the downloaded data sets.

Environment variables choose the arithmetic that the machine would choose otherwise (`make test-processors`):

- HIDDENWEIGHTS_TEST_PRECISION=float32 or bfloat16: what ``train.precision=auto`` is.
- HIDDENWEIGHTS_TEST_THREADS: torch's threads; unset: 1.
- ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, of torch and oneDNN: the instructions used.
"""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _arithmetic() -> None:
    import torch  # here: most tests of the analysis need none

    torch.set_num_threads(int(os.environ.get("HIDDENWEIGHTS_TEST_THREADS", "1")))
    forced = os.environ.get("HIDDENWEIGHTS_TEST_PRECISION")
    if forced not in (None, "float32", "bfloat16"):
        pytest.exit(f"HIDDENWEIGHTS_TEST_PRECISION: {forced!r}; choices: float32, bfloat16", 2)
    if forced:
        features = {**getattr(torch.cpu, "get_capabilities", dict)(), "amx_bf16": False}
        features["avx512_bf16"] = forced == "bfloat16"
        torch.cpu.get_capabilities = lambda: dict(features)  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with CIFAR-10 and Fashion-MNIST in torchvision's layout."""
    folder = os.environ.get("HIDDENWEIGHTS_DATA")
    if not folder:
        pytest.skip("HIDDENWEIGHTS_DATA does not name a folder with CIFAR-10 and Fashion-MNIST")
    return Path(folder)
