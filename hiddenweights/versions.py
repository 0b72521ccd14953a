"""The versions of Python and of packages, recorded with every result."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of `packages`. Packages that are not installed are left out."""
    found = {package: _version(package) for package in packages}
    return {"python": platform.python_version()} | {name: text for name, text in found.items() if text}


@functools.cache  # called for every cell, and each call reads a file
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
