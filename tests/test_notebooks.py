"""The notebooks of the documentation run with small settings, and lie in git without outputs.

Their code runs in this process: a kernel of its own for each takes longer than all of their work. The build
of the documentation runs them as they are, in a kernel.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SMALL = {"EPOCHS": 2, "SEEDS": (0, 1)}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    names: dict[str, Any] = {}
    figures = 0
    for cell in json.loads(file.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            code = "".join(line for line in cell["source"] if not line.startswith("%"))
            exec(compile(code, str(file), "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names |= {name: value for name, value in SMALL.items() if name in names}
            figures += cell["source"][-1] == "figure" and isinstance(names["figure"], Figure)
    assert figures
