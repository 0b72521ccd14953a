"""User code that is named on a command line: ``my_sweeps.py:k_of_fc`` or ``my_package.sweeps:k_of_fc``.

It is imported only if the user typed its name, never because a file names it.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from hiddenweights.errors import UserError


def is_own(text: str) -> bool:
    """Whether `text` names user code instead of something in this package."""
    return ":" in text


def load(text: str, field: str) -> Any:
    """The object that `text` (``FILE.py:NAME`` or ``module:NAME``) names.

    Raises `UserError` that starts with `field` if the import fails or the name does not exist.
    """
    place, _, name = text.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # user code may raise anything
        raise UserError(f"{field}: {place} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        public = ", ".join(sorted(known for known in vars(module) if not known.startswith("_")))
        raise UserError(f"{field}: {place} has no {name!r}; it has: {public}") from None


def slug(text: str) -> str:
    """A name for files and plots: ``my_sweeps.py:k_of_fc`` becomes ``my_sweeps-k_of_fc``."""
    if not is_own(text):
        return text
    place, _, name = text.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return re.sub("[^a-z0-9_-]", "_", f"{stem}-{name}".lower())


def registered(group: str) -> dict[str, Any]:
    """The objects that installed packages register under the entry points ``hiddenweights.GROUP``, by name.

    Raises `UserError` that names the package if one cannot be imported.
    """
    found = {}
    for point in entry_points(group=f"hiddenweights.{group}"):
        try:
            found[point.name] = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise UserError(
                f"{group}: {point.name} of package {package} cannot be imported: {error}"
            ) from error
    return found


def _from_file(file: Path) -> ModuleType:
    """The module in `file`, imported once. Its folder is on the path, as for a script."""
    file = file.resolve(strict=True)
    name = f"hiddenweights_own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
