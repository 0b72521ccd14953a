"""User code that is named on a command line: ``my_sweeps.py:k_of_fc``, ``my_package.masks:Mine``, or the name
of an entry point.

It is imported only if the user typed its name, never because a file names it. Code that affects a result
(mask methods, data sets) has a version in its name, ``my_masks.py:Mine@0123456789ab``: a digest of its
source. A process reads each source once, so one launch uses one version.
"""

import ast
import atexit
import functools
import hashlib
import importlib
import importlib.util
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from hiddenweights.errors import UserError

LONGEST = 64  # characters of the name of a sweep: W&B allows a tag no more
_VERSION = re.compile("@[0-9a-f]{12}$")


@dataclass(frozen=True)
class Code:
    """The source of user code: a file with the files beside it that it imports, or an importable module."""

    place: str
    """The file, absolute, or the name of the module."""
    name: str
    """The name of the object in it."""
    files: Mapping[str, str]
    """The text of each file by its name, the first one imports the others. Empty for a module."""


# The code that the user named, in this process or in the one that started it, by its name with version.
_NAMED: dict[str, Code] = {}


def is_own(text: str) -> bool:
    """Whether `text` names user code instead of something in this package."""
    return ":" in text


def load(text: str, field: str) -> Any:
    """The object that `text` (``FILE.py:NAME`` or ``module:NAME``) names.

    Raises `UserError` that starts with `field` if the import fails or the name does not exist.
    """
    place, _, name = text.rpartition(":")
    return _attribute(_imported(place, field), place, name, field)


def slug(text: str) -> str:
    """A name for files and plots: ``my_sweeps.py:k_of_fc`` becomes ``my_sweeps-k_of_fc``."""
    if not is_own(text):
        return text
    place, _, name = text.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return short_slug(re.sub("[^a-z0-9_-]", "_", f"{stem}-{name}".lower()))


def short_slug(name: str) -> str:
    """`name` with at most `LONGEST` characters: a hash replaces the end of a longer one."""
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def registered(group: str) -> dict[str, Any]:
    """The objects that installed packages register under the entry points ``hiddenweights.GROUP``, by name.

    Raises `UserError` that names the package if one cannot be imported.
    """
    found = {}
    for point in _points(group, tuple(sys.path)).values():
        try:
            found[point.name] = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise UserError(
                f"{group}: {point.name} of package {package} cannot be imported: {error}"
            ) from error
    return found


def names(group: str) -> tuple[str, ...]:
    """The names of the entry points ``hiddenweights.GROUP``. Imports nothing."""
    return tuple(_points(group, tuple(sys.path)))


# --- code with a version -----------------------------------------------------------------------------------


def is_name(text: str, group: str) -> bool:
    """Whether `text` has the form of user code, or names an entry point of ``hiddenweights.GROUP``."""
    place, colon, name = text.rpartition(":")
    return bool(place and name) if colon else is_versioned(text) or text in names(group)


def is_versioned(text: str) -> bool:
    """Whether `text` ends with the version of its code."""
    return bool(_VERSION.search(text))


def plain(text: str) -> str:
    """`text` without the version of its code."""
    return _VERSION.sub("", text)


def versioned(text: str, field: str, group: str) -> str:
    """`text` with the version of its code, which `code` may import from now on. Imports no code.

    The name of a file loses its folder, so that the name is the same on every machine. A name with a version
    is returned as it is. Raises `UserError` that starts with `field` if there is no such source.
    """
    if is_versioned(text):
        return text
    place, _, name = text.rpartition(":")
    label = text
    if not place:
        if text not in names(group):
            raise UserError(f"{field}: no installed package registers {text!r}")
        point = _points(group, tuple(sys.path))[text]
        place, name = point.module, point.attr
    if place.endswith(".py"):
        try:
            file = Path(place).resolve(strict=True)
            files = _with_imports(file)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{field}: {place} cannot be read: {_line(error)}") from error
        found, sources, label = Code(str(file), name, files), files, f"{file.name}:{name}"
    else:
        found, sources = Code(place, name, {}), _module_source(place, field)
    full = f"{label}@{_digest(sources)}"
    _NAMED[full] = found
    return full


def same_version(text: str, field: str, group: str) -> None:
    """Name the code `text`, whose version the user typed. Raises `UserError` if it now has another one."""
    if (found := versioned(plain(text), field, group)) != text:
        raise UserError(f"{field}: {plain(text)} is version {found[-12:]} now, not {text[-12:]}")


def code(text: str, field: str) -> Any:
    """The object behind a name with a version. Imports it.

    Raises `UserError` that starts with `field` if the user did not name this code, if it is another version
    on this machine, or if it cannot be imported.
    """
    if text not in _NAMED:
        raise UserError(f"{field}: {text} is user code, imported only if the command names it: {plain(text)}")
    found, version = _NAMED[text], text.rpartition("@")[2]
    if found.files:
        place = _place_of(found, version)
    else:
        place = found.place
        if (here := _digest(_module_source(place, field))) != version:
            raise UserError(
                f"{field}: {place} is version {here} on this machine, and {version} where it was named"
            )
    return _attribute(_imported(place, field), Path(place).name, found.name, field)


def carried() -> dict[str, dict[str, Any]]:
    """The code that the user named, ready for JSON: what another process needs for `receive`."""
    return {text: {"place": c.place, "name": c.name, "files": dict(c.files)} for text, c in _NAMED.items()}


def receive(sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Let `code` import what the user named in the process that called `carried`."""
    _NAMED.update({text: Code(**source) for text, source in sources.items()})


def _place_of(found: Code, version: str) -> str:
    """The file to import: the user's own if this machine has it, else a copy."""
    with_same = _same_version(found.place, version)
    return found.place if with_same else str(_copied(version, tuple(found.files.items())))


def _same_version(place: str, version: str) -> bool:
    try:
        return _digest(_with_imports(Path(place).resolve(strict=True))) == version
    except (OSError, SyntaxError, ValueError):
        return False


@functools.cache
def _copied(version: str, files: tuple[tuple[str, str], ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"hiddenweights-code-{version}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, text in files:
        (folder / name).write_text(text, "utf-8")
    return folder / files[0][0]


@functools.cache
def _with_imports(file: Path) -> dict[str, str]:
    """The text of `file` and of all files of its folder that it imports, also through each other."""
    texts: dict[str, str] = {}
    wanted = [file.name]
    while wanted:
        if (name := wanted.pop()) in texts:
            continue
        texts[name] = (file.parent / name).read_text("utf-8")
        wanted += [f"{top}.py" for top in _imports(texts[name]) if (file.parent / f"{top}.py").is_file()]
    return texts


def _imports(text: str) -> set[str]:
    """The top-level names that the source `text` imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@functools.cache
def _module_source(module: str, field: str) -> dict[str, str]:
    """The source of an importable module. Only the packages around it are imported."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            near = f" (the file here: {module}.py)" if Path(f"{module}.py").is_file() else ""
            raise ImportError(f"no such module{near}" if spec is None else "it has no Python source")
        return {Path(spec.origin).name: Path(spec.origin).read_text("utf-8")}
    except Exception as error:  # user code may raise anything
        raise UserError(f"{field}: {module} cannot be imported: {_line(error)}") from error


def _digest(files: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{files[name]}\0".encode())
    return whole.hexdigest()[:12]


@functools.cache  # looking through the installed packages takes some ms; `path` is sys.path
def _points(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"hiddenweights.{group}")}


# --- imports -----------------------------------------------------------------------------------------------


def _imported(place: str, field: str) -> ModuleType:
    read: Callable[[str], ModuleType] = _from_file if place.endswith(".py") else importlib.import_module
    try:
        return read(place)
    except Exception as error:  # user code may raise anything
        raise UserError(f"{field}: {place} cannot be imported: {_line(error)}") from error


def _attribute(module: ModuleType, place: str, name: str, field: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        public = ", ".join(sorted(known for known in vars(module) if not known.startswith("_")))
        raise UserError(f"{field}: {place} has no {name!r}; it has: {public}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _from_file(place: str) -> ModuleType:
    """The module in the file `place`, imported once. The files beside it come first, as for a script.

    Raises ImportError if one of its imports is another file of the same name, such as a helper that was
    imported before from another folder: the version in the name would not be that of the code.
    """
    file = Path(place).resolve(strict=True)
    name = f"hiddenweights_own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
        _check_imports(file)
    except BaseException:
        del sys.modules[name]
        raise
    finally:  # for imports within functions it is the last: it must not hide a package from anyone else
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
    return module


def _check_imports(file: Path) -> None:
    """Raise ImportError unless the modules that `file` imports from its folder have the text of the files."""
    for helper, text in _with_imports(file).items():
        name = helper.removesuffix(".py")
        place = getattr(sys.modules.get(name), "__file__", None)
        if helper == file.name or name in sys.stdlib_module_names or not place:
            continue
        if Path(place).read_text("utf-8") != text:
            raise ImportError(f"{helper} beside it is not imported, because {place} has its name; rename it")
