"""The notebook runs from top to bottom on a small table, and lies in git without outputs."""

import sys
from pathlib import Path

import pytest
from analysis_stores import grid, made_store

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "analysis" / "notebooks" / "paper.ipynb"


def test_outputs_are_stripped() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_every_figure_has_its_cell() -> None:
    from hiddenweights.analysis import study
    from hiddenweights.analysis.experiments import FIGURES

    code = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    of_study = {spec.name for spec in study.FIGURES}  # drawn in a loop
    assert [name for name in FIGURES if f'draw("{name}")' not in code and name not in of_study] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made_store(tmp_path / "store", "depth", grid(archs=("conv2",), ks=(0.1, 0.5), seeds=(0, 1)))
    monkeypatch.setenv("HIDDENWEIGHTS_STORE", str(store))
    monkeypatch.setenv("HIDDENWEIGHTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kernel = tmp_path / "kernels" / "here"  # whatever kernels this machine has: run it with this Python
    kernel.mkdir(parents=True)
    argv = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernel / "kernel.json").write_text(f'{{"argv": {argv}, "display_name": "here", "language": "python"}}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="here").execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2  # depth, and the question of one's own
