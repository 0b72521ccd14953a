"""Build the documentation site: ``python docs/site.py`` writes build/site. A warning is an error.

The pages are written for the repository, so that their links can be followed there. This script copies
them to build/docs and rewrites each link that leaves docs/. It then leads to a page of the site or to the
reference of a module; the link to any other file becomes plain text. Zensical builds the site from the
copy, without a network. The notebooks are run, and their pages have the outputs.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).parents[1]
PAGES, SITE = ROOT / "build/docs", ROOT / "build/site"
# Pages that lie outside docs/, and their places on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\\.|!\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main() -> int:
    """Write build/docs and build/site; the exit status."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(
        ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "*.ipynb", "store", "__pycache__")
    )
    places = {page: page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    places |= {ROOT / source: place for source, place in OUTSIDE.items()}
    modules = _documented_modules()
    notebooks = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
    places |= {notebook: f"notebooks/{notebook.stem}.md" for notebook in notebooks}
    for source, place in places.items():
        text = _executed(source) if source in notebooks else source.read_text()
        (PAGES / place).write_text(_relinked(text, source, place, places, modules))
    # The documentation tool warns of docstrings on stderr, and counts only its own warnings as errors.
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(built.stderr)
    if built.returncode or "griffe:" in built.stderr:
        return 1
    print(f"{len(places)} pages: {(SITE / 'index.html').relative_to(ROOT)}")
    return 0


def _documented_modules() -> dict[Path, str]:
    """The page and anchor of each module of the reference, by the module's file."""
    found = {}
    for page in (ROOT / "docs/reference").glob("*.md"):
        for module in re.findall(r"^::: (\S+)", page.read_text(), flags=re.MULTILINE):
            file = ROOT / (module.replace(".", "/") + ".py")
            file = file if file.exists() else file.with_suffix("") / "__init__.py"
            found[file.resolve()] = f"reference/{page.name}#{module}"
    return found


def _executed(notebook: Path) -> str:
    """The notebook as Markdown with the outputs of its cells; pictures go to build/docs/notebooks."""
    os.environ["WANDB_MODE"] = "offline"
    pictures = f"{notebook.stem}_files"
    content = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:  # notebooks write files
        run = ExecutePreprocessor(timeout=300, startup_timeout=300)
        run.preprocess(content, {"metadata": {"path": folder}})
    resources = {"output_files_dir": pictures, "unique_key": notebook.stem}
    text, found = MarkdownExporter().from_notebook_node(content, resources)
    (PAGES / "notebooks" / pictures).mkdir()
    for name, content in found["outputs"].items():
        (PAGES / "notebooks" / name).write_bytes(content)
    return str(text)


def _relinked(text: str, source: Path, place: str, places: dict[Path, str], modules: dict[Path, str]) -> str:
    """The `text` of the page `source` for its `place` on the site."""

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        path, _, anchor = target.partition("#")
        if target.startswith("https://") or not path:
            return match[0]
        if source.suffix == ".ipynb" and path.startswith(f"{source.stem}_files/"):  # its own picture
            return match[0]
        file = (source.parent / path).resolve()
        if file in places:
            new = places[file] + (f"#{anchor}" if anchor else "")
        elif file in modules:
            new = modules[file]
        elif file.is_relative_to(ROOT / "docs") and file.suffix in (".svg", ".png", ".csv"):
            new = file.relative_to(ROOT / "docs").as_posix()
        else:  # a file that is no page
            return label
        return f"{image}[{label}]({os.path.relpath(new, Path(place).parent)})"

    return LINK.sub(link, text)


if __name__ == "__main__":
    sys.exit(main())
