"""What all tests share: their order, the arithmetic, and the folder of the downloaded data sets.

Environment variables choose the arithmetic that the machine would choose otherwise (`make test-processors`):

- HIDDENWEIGHTS_TEST_PRECISION=float32 or bfloat16: what ``train.precision=auto`` is.
- HIDDENWEIGHTS_TEST_THREADS: torch's threads; unset: 1.
- ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, of torch and oneDNN: the instructions used.
"""

import gc
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from hiddenweights.garbage import collect_rarely

settings.register_profile("tests", deadline=None)  # of 200 ms, which a busy machine misses
settings.load_profile("tests")
gc.disable()  # while all tests are imported
# Started in the background of a script, they and the commands that they start would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays, and is not looked through for garbage again and again
    gc.enable()
    collect_rarely()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or some modules complain at the end


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        items[:] = dealt(items, int(workers))


def dealt(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """The order in which every worker of `--dist worksteal` begins with as many seconds of slow tests.

    It first gives each worker an equal stretch of the list, from whose end the others take later. Tests under
    one mark stay together: they share a fixture.
    """
    slow: dict[int, list[pytest.Item]] = {}
    seconds: dict[int, float] = {}
    quick = []
    for item in items:
        mark = item.get_closest_marker("slow")
        if mark:
            slow.setdefault(id(mark), []).append(item)
            seconds[id(mark)] = mark.kwargs["seconds"]
        else:
            quick.append(item)
    stretches: list[list[int]] = [[] for _ in range(workers)]
    for group in sorted(slow, key=lambda group: -seconds[group]):
        min(stretches, key=lambda stretch: sum(seconds[one] for one in stretch)).append(group)
    order: list[pytest.Item] = []
    for number, stretch in enumerate(stretches):
        end = len(order) + (len(items) - len(order)) // (workers - number)
        order += [item for group in stretch for item in slow[group]]
        order += [quick.pop(0) for _ in range(min(end - len(order), len(quick)))]
    return order


@pytest.fixture(autouse=True, scope="session")
def _precision() -> None:
    forced = os.environ.get("HIDDENWEIGHTS_TEST_PRECISION")
    if forced not in (None, "float32", "bfloat16"):
        pytest.exit(f"HIDDENWEIGHTS_TEST_PRECISION: {forced!r}; choices: float32, bfloat16", 2)
    if forced:
        import torch  # here: most tests of the analysis need none

        from hiddenweights.training import build

        features = {**getattr(torch.cpu, "get_capabilities", dict)(), "amx_bf16": False}
        features["avx512_bf16"] = forced == "bfloat16"
        torch.cpu.get_capabilities = lambda: dict(features)  # type: ignore[method-assign]
        build.WITHOUT_BFLOAT16 = ()


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Of every test: a cell sets its own number."""
    import torch

    torch.set_num_threads(int(os.environ.get("HIDDENWEIGHTS_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with CIFAR-10 and Fashion-MNIST in torchvision's layout."""
    folder = os.environ.get("HIDDENWEIGHTS_DATA")
    if not folder:
        pytest.skip("HIDDENWEIGHTS_DATA does not name a folder with CIFAR-10 and Fashion-MNIST")
    return Path(folder)
