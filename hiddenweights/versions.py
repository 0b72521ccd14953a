"""Which versions made a result."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """Python's version and those of `packages`; one that is not installed (run from a checkout) is absent."""
    found = {package: _version(package) for package in packages}
    return {"python": platform.python_version()} | {name: text for name, text in found.items() if text}


@functools.cache  # every cell asks, and each answer reads a file
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
