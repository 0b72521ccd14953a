"""Facts about a host, found on the host itself. Imports torch and W&B only when needed."""

import contextlib
import ctypes
import fcntl
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hiddenweights.cells.store import Store
from hiddenweights.config import CellConfig, DataConfig, own_code
from hiddenweights.errors import UserError

GIB = 2**30
LITTLE = 5.0  # GiB of free disk space
NO_DRIVER = "no NVIDIA driver"


def gpu_trouble(share: float) -> str | None:
    """Why a cell with a `share` of a GPU would train without one; None if torch sees a GPU."""
    if not share:
        return None
    import torch  # imported here, because the launch does not need it

    if torch.cuda.is_available():
        return None
    return (
        f"Ray gave the cell {share:g} GPU on {platform.node()}, where torch sees none: torch "
        f"{torch.__version__} is built for CUDA {torch.version.cuda}; {driver()}"
    )


def driver() -> str:
    """NVIDIA's driver and the newest CUDA that it supports: ``driver 580.65.06, up to CUDA 13.0``."""
    known = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", known.read_text()) if known.exists() else None
    number = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    if not found and not number.value:
        return NO_DRIVER
    name = f"driver {found[0]}" if found else "a driver"
    if not number.value:
        return f"{name}, whose libcuda.so.1 does not load"
    return f"{name}, up to CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def store_trouble(store: Store) -> str | None:
    """Why this host cannot use the store that the launch has prepared; None if it can."""
    try:
        if not store.present():
            return f"the store {store.uri} is not there on {platform.node()}; hosts must share it"
        if store.local:
            with tempfile.TemporaryFile(dir=store.local) as probe:
                probe.write(bytes(2**16))
                fcntl.flock(probe, fcntl.LOCK_EX)  # some network file systems have no locks; leases need them
        else:
            store.prepare()  # writes the header again, because read access does not imply write access
    except (OSError, UserError) as error:
        return f"the store {store.uri} cannot be used from {platform.node()}: {error}"
    return None


def data_trouble(config: DataConfig) -> str | None:
    """Why the data set cannot be loaded here; None if it can. Only the user's own code might download it."""
    from hiddenweights.images.dataset import load_dataset

    reads_root = (
        config.name != "digits" and not own_code(CellConfig(data=config)) and config.name[:3] != "hf:"
    )
    if reads_root and not any(Path(config.root).glob("*")):
        return f"{config.root} is empty or not there"
    try:
        load_dataset(config, download=False)
    except UserError as error:
        return str(error)
    return None


def versions() -> dict[str, str]:
    """The versions of Python, torch and Ray."""
    found = {"python": platform.python_version()}
    for package in ("torch", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def free_disk(folder: Path) -> float:
    """Free GiB on the file system of `folder`, or of its nearest existing parent."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free / GIB


@dataclass(frozen=True)
class Fact:
    """A fact about a host: one or two words, and an explanation."""

    text: str
    note: str = ""
    well: bool = True


def facts(store: str, data: DataConfig) -> dict[str, Fact]:
    """The facts that matter to a worker on this host."""
    from hiddenweights.sweeps.tracking_mode import choose_mode

    opened = Store(store)
    mode, reason = choose_mode()
    disk = min(free_disk(Path(tempfile.gettempdir())), free_disk(opened.local or Path.cwd()))
    return {
        **{name: Fact(text) for name, text in versions().items()},
        **_gpus(),
        "store": _checked("writable", store_trouble(opened)),
        "data": _checked(data.name, data_trouble(data)),
        "W&B": Fact(mode, "" if mode == "online" else reason),
        "free disk": Fact(f"{disk:.0f} GiB", well=disk > LITTLE),
    }


def _gpus() -> dict[str, Fact]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    seen = ", ".join(sorted({f"{names.count(name)} {name}" for name in names})) or "none"
    idle = f"torch is built for CUDA {torch.version.cuda}" if not names and driver() != NO_DRIVER else ""
    return {"GPUs": Fact(seen, idle, well=not idle), "driver": Fact(driver())}


def _checked(text: str, trouble: str | None) -> Fact:
    return Fact("no", trouble, well=False) if trouble else Fact(text)
